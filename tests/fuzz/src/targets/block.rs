//! virtio-block on a small file, with both engines.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;
use vmm_devices::block::{Block, EngineChoice, Options};
use vmm_devices::virtio::{VirtioDevice, feature};
use vmm_fuzz::{Move, play};

/// Unlinked when the fuzzer has opened its path by way of `/proc`, so that nothing is left behind.
static DISK: LazyLock<(std::fs::File, PathBuf)> = LazyLock::new(|| {
    let file = NamedTempFile::new().expect("a file for the disk").into_file();
    file.set_len(64 << 10).expect("room for the disk");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)).into();
    (file, path)
});

fuzz_target!(|input: (bool, bool, bool, Vec<(u8, Move)>)| {
    let (event_idx, read_only, threads, moves) = input;
    let engine = if threads { EngineChoice::Threads } else { EngineChoice::Auto };
    let options = Options { read_only, engine, ..Options::default() };
    let mut block = Block::open(&DISK.1, options).expect("a disk");
    let features = block.features() | if event_idx { feature::EVENT_IDX } else { 0 };
    play(&mut block, features, &moves);
    assert_eq!(DISK.0.metadata().expect("the disk").len(), 64 << 10, "the disk has changed its size");
});
