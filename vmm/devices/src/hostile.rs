//! A driver that does anything at all, for property tests: whatever it does, a device must neither panic nor hang.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::testkit::{Harness, MEMORY_SIZE};
use crate::virtio::{VirtioDevice, feature};

/// Something a driver can do to a queue.
#[derive(Debug, Clone)]
pub(crate) enum Move {
    /// Writes a descriptor: index, address, length, flags, next.
    Describe(u16, u64, u32, u16, u16),
    /// Writes to memory that descriptors may point at.
    Fill(u64, Vec<u8>),
    /// Makes a chain available.
    Offer(u16),
    /// Sets the available ring's index.
    Jump(u16),
    /// Kicks, and lets the device work.
    Kick,
}

/// Mostly inside memory, where the rings are too; sometimes across its end, or nowhere.
fn address() -> impl Strategy<Value = u64> {
    let end = MEMORY_SIZE as u64;
    prop_oneof![8 => 0..end, 1 => end - 64..end + 64, 1 => any::<u64>()]
}

fn one_move() -> impl Strategy<Value = Move> {
    let len = prop_oneof![6 => 0u32..0x1_0000, 1 => any::<u32>()];
    // Names a successor, is writable, is a table: or not.
    let describe = (0u16..64, address(), len, 0u16..8, 0u16..80);
    prop_oneof![
        8 => describe.prop_map(|(index, at, len, flags, next)| Move::Describe(index, at, len, flags, next)),
        2 => (address(), prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, data)| Move::Fill(at, data)),
        8 => (0u16..70).prop_map(Move::Offer),
        1 => any::<u16>().prop_map(Move::Jump),
        6 => Just(Move::Kick),
    ]
}

/// What a driver does, each to the queue of that number (modulo the number of queues).
pub(crate) fn moves() -> impl Strategy<Value = Vec<(usize, Move)>> {
    prop::collection::vec((0usize..8, one_move()), 1..60)
}

/// Enough cases to find what is there to be found, in a second or so.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() }
}

/// Plays `moves` against `device`, and resets it.
pub(crate) fn play(device: &mut dyn VirtioDevice, event_idx: bool, moves: &[(usize, Move)]) {
    let features = device.features() | if event_idx { feature::EVENT_IDX } else { 0 };
    let mut harness = Harness::new(device, features);
    let queues = harness.drivers.len();
    for (queue, what) in moves {
        let driver = &mut harness.drivers[queue % queues];
        match what {
            Move::Describe(index, at, len, flags, next) => {
                driver.set_descriptor(*index, *at, *len, *flags, *next);
            }
            Move::Fill(at, data) => drop(harness.memory.write_slice(data, GuestAddress(*at))),
            Move::Offer(head) => driver.make_available(*head),
            Move::Jump(index) => driver.set_available_index(*index),
            Move::Kick => {
                harness.kick(queue % queues);
                harness.run(0);
            }
        }
    }
    // A device that kicks itself has a bounded amount of work.
    for _ in 0..4 {
        harness.run(0);
    }
    assert_eq!(harness.stop().len(), queues);
}
