//! The balloon's queues at work.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::release::release;
use super::statistics::{ENTRY_LEN, Statistics};
use super::{Handle, PAGE_SIZE, feature};
use crate::Memory;
use crate::reactor::Worker;
use crate::virtio::Activation;
use crate::virtio::queue::{BrokenQueue, Chain, Flow, VirtQueue};

/// What the events of the loop beyond those of the queues mean.
const ASKED: u32 = u32::MAX;
/// Page numbers taken from a chain. Linux sends 256; what is beyond this stays with the guest.
const PAGES_MAX: usize = 4096;
/// Statistics taken from a chain. There are 16 or so.
const ENTRIES_MAX: usize = 64;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

pub(super) struct BalloonWorker {
    memory: Memory,
    queues: Vec<VirtQueue>,
    /// What each queue is for, as far as the driver uses it.
    roles: Vec<Role>,
    handle: Arc<Handle>,
    /// The chain that the guest brought its statistics in, and that asks for new ones when it is returned.
    held: Option<u16>,
    /// Whether somebody has asked and waits for an answer.
    asked: bool,
}

impl BalloonWorker {
    pub(super) fn new(activation: Activation, handle: Arc<Handle>) -> Self {
        let Activation { memory, queues, features, .. } = activation;
        let mut roles = vec![Role::Inflate, Role::Deflate];
        roles.extend((features & feature::STATS_VQ != 0).then_some(Role::Statistics));
        roles.extend((features & feature::REPORTING != 0).then_some(Role::Reporting));
        Self { memory, queues, roles, handle, held: None, asked: false }
    }

    fn serve(&mut self, index: usize) -> Result<(), BrokenQueue> {
        let Self { memory, queues, handle, held, asked, .. } = self;
        let role = self.roles[index];
        queues[index].drain(|queue, chain| {
            match role {
                Role::Inflate => release_pages(memory, &chain),
                // The guest takes pages by touching them.
                Role::Deflate => {}
                Role::Reporting => {
                    for segment in chain.writable() {
                        release(memory, segment.address.0, segment.len.into());
                    }
                }
                Role::Statistics => {
                    // There is one buffer by the rules; a second one returns the first.
                    if let Some(head) = held.replace(chain.head()) {
                        queue.push(head, 0)?;
                    }
                    let statistics = read_statistics(&chain);
                    // What was there before the question is no answer to it.
                    if !std::mem::take(asked) {
                        return Ok(Flow::Continue);
                    }
                    let mut answer = handle.answer();
                    answer.latest = statistics;
                    answer.count += 1;
                    handle.answered.notify_all();
                    return Ok(Flow::Continue);
                }
            }
            queue.push(chain.head(), 0)?;
            Ok(Flow::Continue)
        })
    }

    /// Asks the guest for statistics, once it has brought a buffer.
    fn ask(&mut self) -> Result<(), BrokenQueue> {
        let Some(index) = self.roles.iter().position(|&role| role == Role::Statistics) else { return Ok(()) };
        let Some(head) = self.held.take() else { return Ok(()) };
        self.asked = true;
        self.queues[index].push(head, 0)?;
        self.queues[index].notify()
    }
}

/// Gives back the pages whose numbers a chain holds, neighbours together.
fn release_pages(memory: &Memory, chain: &Chain) {
    if chain.is_malformed() {
        return;
    }
    let mut bytes = vec![0; PAGES_MAX.min(chain.readable_len() as usize / 4) * 4];
    let read = chain.read_at(0, &mut bytes);
    let (numbers, _) = bytes[..read].as_chunks();
    let mut numbers: Vec<u64> = numbers.iter().map(|&number| u32::from_le_bytes(number).into()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        release(memory, run[0] * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
    }
}

fn read_statistics(chain: &Chain) -> Statistics {
    let mut statistics = Statistics::default();
    let mut bytes = [0; ENTRIES_MAX * ENTRY_LEN];
    let read = if chain.is_malformed() { 0 } else { chain.read_at(0, &mut bytes) };
    for entry in bytes[..read].as_chunks().0 {
        statistics.set(*entry);
    }
    statistics
}

impl MutEventSubscriber for BalloonWorker {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let index = events.data() as usize;
        if events.data() == ASKED {
            // Clearing an event fails only where somebody was quicker.
            let _ = self.handle.asked.read();
            if self.ask().is_err()
                && let Some(index) = self.roles.iter().position(|&role| role == Role::Statistics)
            {
                self.queues[index].fail();
            }
        } else {
            self.queues[index].clear_kick();
            if self.serve(index).is_err() {
                self.queues[index].fail();
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Only a dead loop refuses, and then no device works.
        for index in 0..self.roles.len() {
            let _ = ops.add(Events::with_data(self.queues[index].kick(), index as u32, EventSet::IN));
        }
        let _ = ops.add(Events::with_data(&self.handle.asked, ASKED, EventSet::IN));
    }
}

impl Worker for BalloonWorker {
    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        *self.handle.driver() = None;
        self.queues
    }
}
