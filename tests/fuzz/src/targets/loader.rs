//! The monitor's own loader: any file as a kernel, put into guest memory.
#![no_main]

use std::fs::File;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_machine::boot::{self, Source};
use vmm_machine::memory::{self, Backing};

/// Bytes of guest memory.
const MEMORY: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let mut kernel = File::from(memfd_create("kernel", MFdFlags::empty()).expect("a memfd"));
    kernel.write_all(data).expect("memory for the kernel");
    let memory = memory::create(MEMORY, Backing::Pages).expect("guest memory");
    let cmdline = boot::command_line("quiet").expect("a command line");
    let source =
        Source { kernel: &kernel, initrd: None, cmdline: &cmdline, protocol: None, rsdp: Some(0xe_0000) };
    if let Ok(loaded) = boot::load(&memory, &source) {
        for range in loaded.contents {
            assert!(range.start <= range.end && range.end <= MEMORY, "{range:?} is outside memory");
        }
    }
});
