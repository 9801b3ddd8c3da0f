//! The console's queues at work.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::Handle;
use crate::output::Output;
use crate::reactor::Worker;
use crate::virtio::queue::{BrokenQueue, Chain, Flow, VirtQueue};

/// The queues (5.3.2), and the events of the loop.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const INPUT: usize = 2;
const ROOM: usize = 3;

/// Bytes copied at once.
const CHUNK: usize = 4096;
/// Bytes printed before other devices have their turn.
const BUDGET: usize = 256 << 10;

pub(super) struct ConsoleWorker {
    queues: Vec<VirtQueue>,
    output: Output,
    handle: Arc<Handle>,
    /// Bytes of the transmit queue's next chain that have been printed already.
    printed: u64,
}

impl ConsoleWorker {
    pub(super) fn new(queues: Vec<VirtQueue>, output: Output, handle: Arc<Handle>) -> Self {
        Self { queues, output, handle, printed: 0 }
    }

    /// Hands input to the guest, as far as it has offered buffers.
    fn receive(&mut self) -> Result<(), BrokenQueue> {
        let mut waiting = self.handle.waiting();
        if waiting.is_empty() {
            return Ok(());
        }
        self.queues[RECEIVE].drain(|queue, chain| {
            let mut written = 0;
            if !chain.is_malformed() {
                written = chain.write_at(0, waiting.make_contiguous());
                waiting.drain(..written);
            }
            queue.push(chain.head(), written as u32)?;
            // The rest of the buffers waits for the next input.
            Ok(if waiting.is_empty() { Flow::Stop } else { Flow::Continue })
        })?;
        if waiting.is_empty() {
            // Fails only where nobody has listened to very many signals.
            let _ = self.handle.room.write(1);
        }
        Ok(())
    }

    /// Prints what the guest sent, as far as there is room for it.
    fn transmit(&mut self) -> Result<(), BrokenQueue> {
        let Self { queues, output, printed, .. } = self;
        let mut budget = BUDGET;
        queues[TRANSMIT].drain(|queue, chain| {
            if !chain.is_malformed() && !print(output, &chain, printed, &mut budget) {
                queue.undo_pop();
                if budget == 0 {
                    // Fails only if a kick is pending already.
                    let _ = queue.kick().write(1);
                }
                return Ok(Flow::Stop);
            }
            *printed = 0;
            queue.push(chain.head(), 0)?;
            Ok(Flow::Continue)
        })
    }
}

/// Prints a chain from its byte `printed` on, and at most `budget` bytes. Tells whether all of it is printed.
fn print(output: &Output, chain: &Chain, printed: &mut u64, budget: &mut usize) -> bool {
    let mut chunk = [0; CHUNK];
    while *budget > 0 {
        let len = chain.read_at(*printed, &mut chunk[..CHUNK.min(*budget)]);
        if len == 0 {
            return true;
        }
        let taken = output.offer(&chunk[..len]);
        *printed += taken as u64;
        *budget -= taken;
        if taken < len {
            return false;
        }
    }
    *printed >= chain.readable_len()
}

impl MutEventSubscriber for ConsoleWorker {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // Clearing an event fails only where somebody was quicker.
        let (queue, done) = match events.data() as usize {
            RECEIVE => {
                self.queues[RECEIVE].clear_kick();
                (RECEIVE, self.receive())
            }
            INPUT => {
                let _ = self.handle.arrived.read();
                (RECEIVE, self.receive())
            }
            TRANSMIT => {
                self.queues[TRANSMIT].clear_kick();
                (TRANSMIT, self.transmit())
            }
            _ => {
                let _ = self.output.room().read();
                (TRANSMIT, self.transmit())
            }
        };
        if done.is_err() {
            self.queues[queue].fail();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            (self.queues[RECEIVE].kick(), RECEIVE),
            (self.queues[TRANSMIT].kick(), TRANSMIT),
            (&self.handle.arrived, INPUT),
            (self.output.room(), ROOM),
        ];
        for (event, data) in sources {
            // Only a dead loop refuses, and then no device works.
            let _ = ops.add(Events::with_data(event, data as u32, EventSet::IN));
        }
    }
}

impl Worker for ConsoleWorker {
    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        *self.handle.driver() = None;
        self.queues
    }
}
