//! virtio-rng, and with it the queues.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_devices::rng::Rng;
use vmm_devices::virtio::feature;
use vmm_fuzz::{Move, play};

fuzz_target!(|input: (bool, Vec<(u8, Move)>)| {
    let (event_idx, moves) = input;
    play(&mut Rng, if event_idx { feature::EVENT_IDX } else { 0 }, &moves);
});
