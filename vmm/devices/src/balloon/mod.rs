//! Memory balloon (virtio 1.2, 5.5): the guest gives pages back, on request or as soon as they are free.
//!
//! Left out: `VIRTIO_BALLOON_F_FREE_PAGE_HINT` and `VIRTIO_BALLOON_F_PAGE_POISON`, and the rule that only a balloon's
//! own pages come out of it: a page that is given back and used again is zeroed by the host, whoever did it.

mod release;
mod statistics;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::VirtioInterrupt;
use crate::reactor::Worker;
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice, read_config_bytes};
pub use statistics::Statistics;
use worker::BalloonWorker;

/// Feature bits (5.5.3).
mod feature {
    /// `VIRTIO_BALLOON_F_STATS_VQ`: there is a queue for statistics.
    pub(super) const STATS_VQ: u64 = 1 << 1;
    /// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest takes pages back before it kills for memory.
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest tells of pages that are free.
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// Inflate, deflate, statistics, reporting (5.5.2). A driver that leaves a feature out counts on without its queue.
const QUEUE_SIZES: [u16; 4] = [64; 4];
/// A balloon counts in pages of this many bytes, whatever the guest's are (5.5.6).
const PAGE_SIZE: u64 = 4096;
/// Where the driver says how large the balloon is (5.5.4).
const ACTUAL: u64 = 4;

/// The device.
pub struct Balloon {
    handle: Arc<Handle>,
}

/// What reaches into the balloon from any thread.
pub struct Handle {
    /// Pages that the balloon is to have.
    target: AtomicU32,
    /// Pages that the driver says it has.
    actual: AtomicU32,
    /// Tells the worker that somebody wants statistics.
    asked: EventFd,
    answer: Mutex<Answer>,
    answered: Condvar,
    /// Whom to tell of a new target: the driver, while there is one.
    interrupt: Mutex<Option<Arc<VirtioInterrupt>>>,
}

/// Statistics and how many came before them.
#[derive(Default)]
struct Answer {
    latest: Statistics,
    count: u64,
}

impl Balloon {
    /// A balloon that is to hold `bytes` (rounded down to 4 KiB), and what reaches into it.
    pub fn new(bytes: u64) -> io::Result<(Self, Arc<Handle>)> {
        let handle = Arc::new(Handle {
            target: AtomicU32::new(pages(bytes)),
            actual: AtomicU32::new(0),
            asked: EventFd::new(EFD_NONBLOCK)?,
            answer: Mutex::default(),
            answered: Condvar::new(),
            interrupt: Mutex::default(),
        });
        Ok((Self { handle: Arc::clone(&handle) }, handle))
    }
}

impl Handle {
    /// Tells the guest to bring the balloon to `bytes` (rounded down to 4 KiB). It takes its time, and may refuse.
    pub fn set_target(&self, bytes: u64) {
        if self.target.swap(pages(bytes), Ordering::AcqRel) != pages(bytes)
            && let Some(interrupt) = &*self.driver()
        {
            interrupt.config_changed();
        }
    }

    /// Bytes that the guest says are in the balloon.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Asks the guest how it uses its memory. None if it does not answer in time. Not to be called from the event loop,
    /// which brings the answer.
    pub fn statistics(&self, patience: Duration) -> Option<Statistics> {
        let answer = self.answer();
        let before = answer.count;
        // Fails only when the worker has been told very often already.
        let _ = self.asked.write(1);
        let (answer, waited) = self
            .answered
            .wait_timeout_while(answer, patience, |answer| answer.count == before)
            .unwrap_or_else(PoisonError::into_inner);
        (!waited.timed_out()).then(|| answer.latest)
    }

    fn answer(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self) -> MutexGuard<'_, Option<Arc<VirtioInterrupt>>> {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.handle.target.load(Ordering::Acquire).to_le_bytes());
        config[4..].copy_from_slice(&self.handle.actual.load(Ordering::Acquire).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.handle.actual.store(u32::from_le_bytes(actual), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        *self.handle.driver() = Some(Arc::clone(&activation.interrupt));
        Ok(Box::new(BalloonWorker::new(activation, Arc::clone(&self.handle))))
    }
}

#[cfg(test)]
mod tests;
