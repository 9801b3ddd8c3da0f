//! The balloon: page numbers, statistics and its registers, with everything a driver can do.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmm_devices::balloon::Balloon;
use vmm_devices::virtio::VirtioDevice;
use vmm_fuzz::{Move, play};

fuzz_target!(|input: (u32, u64, Vec<(u8, Move)>)| {
    let (actual, features, moves) = input;
    let (mut balloon, handle) = Balloon::new(1 << 20).expect("event descriptors");
    balloon.write_config(4, &actual.to_le_bytes());
    let _ = handle.statistics(Duration::ZERO);
    play(&mut balloon, features, &moves);
});
