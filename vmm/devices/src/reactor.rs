//! The event loop that all devices share.
//!
//! A device's [`Worker`] lives inside the loop and owns its queues there; vCPU threads reach it only through
//! event descriptors, and through a [`Handle`] that moves workers in and out. So no device is ever locked
//! while it works, and a vCPU waits for the loop only while its driver activates or resets a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};

use crate::virtio::queue::VirtQueue;

/// The part of a device that handles events. It must never block: the loop is shared.
pub trait Worker: MutEventSubscriber + Send {
    /// Ends all work (waiting for what is in flight) and hands the queues back.
    fn stop(self: Box<Self>) -> Vec<VirtQueue>;
}

/// What the loop dispatches to.
pub enum Subscriber {
    /// A virtio device's worker.
    Worker(Box<dyn Worker>),
    /// Anything else that waits for events: a terminal, a timer, signals.
    Other(Box<dyn MutEventSubscriber + Send>),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            Self::Worker(worker) => worker.process(events, ops),
            Self::Other(other) => other.process(events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Self::Worker(worker) => worker.init(ops),
            Self::Other(other) => other.init(ops),
        }
    }
}

/// The loop itself.
pub struct Reactor {
    events: EventManager<Subscriber>,
    stop: Arc<AtomicBool>,
}

impl Reactor {
    /// A loop with nothing in it.
    pub fn new() -> Result<Self, event_manager::Error> {
        Ok(Self { events: EventManager::new()?, stop: Arc::default() })
    }

    /// What other threads talk to the loop through.
    pub fn handle(&self) -> Handle {
        Handle { endpoint: self.events.remote_endpoint(), stop: Arc::clone(&self.stop) }
    }

    /// Adds a subscriber that is no virtio device.
    pub fn add(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) -> SubscriberId {
        self.events.add_subscriber(Subscriber::Other(subscriber))
    }

    /// Adds a virtio device's worker, from the loop's own thread.
    pub fn add_worker(&mut self, worker: Box<dyn Worker>) -> WorkerId {
        WorkerId(self.events.add_subscriber(Subscriber::Worker(worker)))
    }

    /// Takes a worker out, waits until its work has ended, and returns its queues.
    pub fn remove_worker(&mut self, id: WorkerId) -> Result<Vec<VirtQueue>, event_manager::Error> {
        stop_worker(&mut self.events, id)
    }

    /// Dispatches events until somebody calls [`Handle::stop`].
    pub fn run(&mut self) -> Result<(), event_manager::Error> {
        while !self.stop.load(Ordering::Acquire) {
            match self.events.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Dispatches what is ready now, or within `milliseconds`.
    pub fn run_once(&mut self, milliseconds: i32) -> Result<usize, event_manager::Error> {
        self.events.run_with_timeout(milliseconds)
    }
}

/// A worker's place in the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(SubscriberId);

/// A thread's access to the loop. Never call the blocking ones from inside the loop.
#[derive(Clone)]
pub struct Handle {
    endpoint: RemoteEndpoint<Subscriber>,
    stop: Arc<AtomicBool>,
}

impl Handle {
    /// Moves `worker` into the loop and waits until it listens.
    pub fn add(&self, worker: Box<dyn Worker>) -> Result<WorkerId, event_manager::Error> {
        self.endpoint.call_blocking(move |ops| {
            Ok::<_, event_manager::Error>(WorkerId(ops.add_subscriber(Subscriber::Worker(worker))))
        })
    }

    /// Takes a worker out of the loop, waits until its work has ended, and returns its queues.
    pub fn remove(&self, id: WorkerId) -> Result<Vec<VirtQueue>, event_manager::Error> {
        self.endpoint.call_blocking(move |ops| stop_worker(ops, id))
    }

    /// Ends [`Reactor::run`] soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Fails only when the loop is gone, which is what was asked for.
        let _ = self.endpoint.kick();
    }
}

fn stop_worker(
    ops: &mut dyn SubscriberOps<Subscriber = Subscriber>,
    id: WorkerId,
) -> Result<Vec<VirtQueue>, event_manager::Error> {
    match ops.remove_subscriber(id.0)? {
        Subscriber::Worker(worker) => Ok(worker.stop()),
        Subscriber::Other(_) => Err(event_manager::Error::InvalidId),
    }
}
