//! Entropy device (virtio 1.2, 5.4): fills what the driver offers with random bytes from the host's kernel.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use crate::reactor::Worker;
use crate::virtio::queue::{BrokenQueue, Chain, Flow, VirtQueue};
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request gets. The specification lets the device fill less than was offered, and a driver
/// that wants more asks again; so no request keeps the event loop for long.
const MAX_FILL: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(RngWorker { queues: activation.queues }))
    }
}

struct RngWorker {
    queues: Vec<VirtQueue>,
}

fn fill(queue: &mut VirtQueue, chain: &Chain) -> Result<Flow, BrokenQueue> {
    let mut written = 0;
    if !chain.is_malformed() {
        let mut random = [0; MAX_FILL];
        let wanted = chain.writable_len().min(MAX_FILL as u64) as usize;
        // A request that cannot be served comes back empty, and the driver asks again.
        if getrandom::fill(&mut random[..wanted]).is_ok() {
            written = chain.write_at(0, &random[..wanted]);
        }
    }
    queue.push(chain.head(), written as u32)?;
    Ok(Flow::Continue)
}

impl MutEventSubscriber for RngWorker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        for queue in &mut self.queues {
            queue.clear_kick();
            if queue.drain(|queue, chain| fill(queue, &chain)).is_err() {
                queue.fail();
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for queue in &self.queues {
            // Only a dead loop refuses, and then no device works.
            let _ = ops.add(Events::new(queue.kick(), EventSet::IN));
        }
    }
}

impl Worker for RngWorker {
    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        self.queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Harness, descriptor};
    use crate::virtio::mmio::status;

    #[test]
    fn fills_scattered_buffers_with_bytes_that_differ() {
        let mut harness = Harness::new(&mut Rng, 0);
        let head = harness.drivers[0].add(&[], &[5, 1, 90]);
        assert_eq!(harness.complete(0), (head, 96));
        let first = harness.drivers[0].written(head);
        let head = harness.drivers[0].add_indirect(&[], &[96]);
        assert_eq!(harness.complete(0), (head, 96));
        let second = harness.drivers[0].written(head);
        assert_ne!(first, second);
        assert!(first.iter().filter(|byte| **byte != 0).count() > 60);
    }

    #[test]
    fn large_requests_are_cut() {
        let mut harness = Harness::new(&mut Rng, 0);
        let head = harness.drivers[0].add(&[], &[100_000]);
        assert_eq!(harness.complete(0), (head, 4096));
    }

    #[test]
    fn requests_that_make_no_sense_come_back_empty() {
        let mut harness = Harness::new(&mut Rng, 0);
        let head = harness.drivers[0].add(&[b"not for reading"], &[]);
        assert_eq!(harness.complete(0), (head, 0));
        // Outside memory, and a loop.
        for (address, len, flags, next) in
            [(u64::MAX - 8, 64, descriptor::WRITE, 0), (0x1000, 64, descriptor::WRITE | descriptor::NEXT, 9)]
        {
            harness.drivers[0].set_descriptor(9, address, len, flags, next);
            harness.drivers[0].make_available(9);
            assert_eq!(harness.complete(0), (9, 0));
        }
    }

    #[test]
    fn a_broken_ring_asks_for_a_reset_and_stays_quiet() {
        let mut harness = Harness::new(&mut Rng, 0);
        harness.drivers[0].set_available_index(1000);
        harness.kick(0);
        harness.run(1000);
        assert!(harness.interrupt.is_reset_needed(), "status would show {}", status::NEEDS_RESET);
        harness.kick(0);
        harness.run(1000);
        assert_eq!(harness.drivers[0].used(), None);
        assert_eq!(harness.stop().len(), 1);
    }
}
