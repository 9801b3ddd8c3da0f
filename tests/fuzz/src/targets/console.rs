//! The console: output, input that waits, and its registers, with everything a driver can do.
#![no_main]

use std::io;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmm_devices::console::{Console, Size};
use vmm_devices::input::ConsoleInput;
use vmm_devices::output;
use vmm_devices::virtio::VirtioDevice;
use vmm_fuzz::{Move, play};

type Input<'a> = (u64, [u8; 4], &'a [u8], Vec<(u8, Move<'a>)>);

fuzz_target!(|input: Input| {
    let (features, emergency, typed, moves) = input;
    let (output, thread) = output::spawn(Box::new(io::sink())).expect("a thread");
    let (mut console, handle) = Console::new(output, Size::default()).expect("event descriptors");
    console.write_config(8, &emergency);
    handle.input(typed);
    play(&mut console, features, &moves);
    thread.finish(Duration::from_secs(5));
});
