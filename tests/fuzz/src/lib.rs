//! What the fuzz targets share: a driver that does to a device's queues whatever a byte string says.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use vm_memory::{Bytes, GuestAddress};
use vmm_devices::testkit::Harness;
use vmm_devices::virtio::VirtioDevice;

/// Something a driver can do.
#[derive(Debug, Arbitrary)]
pub enum Move<'a> {
    /// Adds a proper chain: a buffer to read, and buffers of these sizes to write.
    Add(&'a [u8], [u8; 3]),
    /// The same through an indirect table.
    AddIndirect(&'a [u8], u16),
    /// Writes a descriptor: index, address, length, flags, next.
    Describe(u8, u32, u32, u8, u8),
    /// Writes to memory, the rings' own included.
    Fill(u32, &'a [u8]),
    /// Makes a chain available.
    Offer(u16),
    /// Sets the available ring's index.
    Jump(u16),
    /// Kicks, and lets the device work.
    Kick,
}

/// Bytes of buffers that a driver of the testkit has room for.
const BUFFERS_MAX: usize = 900 << 10;

/// Plays `moves`, each on the queue of its number, and resets the device.
pub fn play(device: &mut dyn VirtioDevice, features: u64, moves: &[(u8, Move)]) {
    let mut harness = Harness::new(device, features);
    let queues = harness.drivers.len();
    let mut used = 0;
    for (queue, what) in moves {
        let queue = usize::from(*queue) % queues;
        let driver = &mut harness.drivers[queue];
        match what {
            Move::Add(data, sizes) => {
                used += data.len() + 1024;
                let sizes: Vec<u32> =
                    sizes.iter().filter(|&&size| size > 0).map(|&size| size.into()).collect();
                if used < BUFFERS_MAX && !(data.is_empty() && sizes.is_empty()) {
                    driver.add(&[data], &sizes);
                }
            }
            Move::AddIndirect(data, size) => {
                used += data.len() + usize::from(*size) + 1024;
                if used < BUFFERS_MAX {
                    driver.add_indirect(&[data], &[u32::from(*size) + 1]);
                }
            }
            Move::Describe(index, at, len, flags, next) => {
                driver.set_descriptor(
                    (*index).into(),
                    (*at).into(),
                    *len,
                    (*flags & 7).into(),
                    (*next).into(),
                );
            }
            Move::Fill(at, data) => drop(harness.memory.write_slice(data, GuestAddress((*at).into()))),
            Move::Offer(head) => driver.make_available(*head),
            Move::Jump(index) => driver.set_available_index(*index),
            Move::Kick => {
                harness.kick(queue);
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
