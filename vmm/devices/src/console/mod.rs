//! Console (virtio 1.2, 5.3) of one port: what a guest prints costs one kick a buffer, where a serial line takes an
//! exit a byte.
//!
//! Output waits for its reader: what the [`Output`] has no room for stays on the transmit queue. Nothing is lost,
//! and a guest whose terminal has stopped comes to a halt when it prints more, as a process does. Linux waits in a
//! loop with a lock held, so its processors may complain of that later.
//!
//! Left out: `VIRTIO_CONSOLE_F_MULTIPORT`.

mod worker;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::ConsoleInput;
use crate::interrupt::VirtioInterrupt;
use crate::output::Output;
use crate::reactor::Worker;
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice, read_config_bytes};
use worker::ConsoleWorker;

/// Feature bits (5.3.3).
mod feature {
    /// `VIRTIO_CONSOLE_F_SIZE`: columns and rows are valid.
    pub(super) const SIZE: u64 = 1 << 0;
    /// `VIRTIO_CONSOLE_F_EMERG_WRITE`: a byte can be printed without queues.
    pub(super) const EMERG_WRITE: u64 = 1 << 2;
}

/// Receive queue, transmit queue (5.3.2).
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Bytes of device configuration space (5.3.4): columns, rows, number of ports, emergency write.
const CONFIG_LEN: usize = 12;
/// Where emergency writes go.
const EMERG_WR: u64 = 8;
/// Bytes of input that may wait for the guest.
const CAPACITY: usize = 64 << 10;

/// The size of a terminal in characters. The default, zero by zero, means that there is no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Characters in a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// The device.
pub struct Console {
    output: Output,
    handle: Arc<Handle>,
}

/// What reaches into the console from any thread.
pub struct Handle {
    /// Input that the guest has offered no buffers for yet.
    waiting: Mutex<VecDeque<u8>>,
    /// Tells the worker that there is input.
    arrived: EventFd,
    room: Arc<EventFd>,
    /// [`Size`], packed so that it changes as one.
    size: AtomicU32,
    /// Whom to tell of a new size: the driver, while there is one.
    interrupt: Mutex<Option<Arc<VirtioInterrupt>>>,
}

impl Console {
    /// A console that prints to `output`, and what reaches into it.
    pub fn new(output: Output, size: Size) -> io::Result<(Self, Arc<Handle>)> {
        let handle = Arc::new(Handle {
            waiting: Mutex::default(),
            arrived: EventFd::new(EFD_NONBLOCK)?,
            room: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            size: AtomicU32::new(pack(size)),
            interrupt: Mutex::default(),
        });
        Ok((Self { output, handle: Arc::clone(&handle) }, handle))
    }
}

impl Handle {
    /// Tells the guest that its terminal has a new size.
    pub fn resize(&self, size: Size) {
        let before = self.size.swap(pack(size), Ordering::AcqRel);
        if before != pack(size)
            && let Some(interrupt) = &*self.driver()
        {
            interrupt.config_changed();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self) -> MutexGuard<'_, Option<Arc<VirtioInterrupt>>> {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleInput for Handle {
    fn input(&self, data: &[u8]) -> usize {
        let mut waiting = self.waiting();
        let taken = data.len().min(CAPACITY - waiting.len().min(CAPACITY));
        waiting.extend(&data[..taken]);
        // Fails only when the worker has been told very often already.
        let _ = self.arrived.write(1);
        taken
    }

    fn room(&self) -> Arc<EventFd> {
        Arc::clone(&self.room)
    }
}

/// As both numbers lie in configuration space, read as one.
fn pack(size: Size) -> u32 {
    u32::from(size.rows) << 16 | u32::from(size.cols)
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        config[..4].copy_from_slice(&self.handle.size.load(Ordering::Acquire).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERG_WR, [byte, ..]) = (offset, data) {
            // A vCPU waits for this, so the byte is lost where there is no room for it.
            let _ = self.output.write(&[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        if activation.features & feature::SIZE != 0 {
            *self.handle.driver() = Some(activation.interrupt);
        }
        let handle = Arc::clone(&self.handle);
        Ok(Box::new(ConsoleWorker::new(activation.queues, self.output.clone(), handle)))
    }
}

#[cfg(test)]
mod tests;
