//! Interrupts as devices see them: event descriptors that the machine has bound to an interrupt line.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line. The machine hands its descriptor to the interrupt controller (irqfd),
/// so raising it takes one system call and no exit.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// A line that is not connected to anything yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK)?))
    }

    /// Raises the line.
    pub fn raise(&self) {
        // Only a counter at its maximum makes this fail, and then the interrupt is pending anyway.
        let _ = self.0.write(1);
    }

    /// The descriptor to bind to an interrupt controller.
    pub fn event(&self) -> &EventFd {
        &self.0
    }

    /// Another handle on the same line.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.raise();
        Ok(())
    }
}

/// The interrupt of one virtio device: the line and the reasons that the driver reads from the transport
/// (virtio 1.2, 4.2.2: `InterruptStatus`, `ConfigGeneration`, `Status`).
#[derive(Debug)]
pub struct VirtioInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicU32,
    line: IrqLine,
}

impl VirtioInterrupt {
    /// "The device has used a buffer in at least one of the active virtual queues."
    pub const USED: u32 = 1;
    /// "The configuration of the device has changed."
    pub const CONFIG: u32 = 2;

    /// An interrupt on `line` with no reason pending.
    pub fn new(line: IrqLine) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that buffers were used.
    pub fn used(&self) {
        self.raise(Self::USED);
    }

    /// Tells the driver to read the configuration space again.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(Self::CONFIG);
    }

    /// The driver broke the rules and the device cannot go on until it is reset
    /// (virtio 1.2, 2.1.2: `DEVICE_NEEDS_RESET`).
    pub fn needs_reset(&self) {
        self.needs_reset.store(1, Ordering::Release);
        self.config_changed();
    }

    /// Whether [`needs_reset`](Self::needs_reset) was called since the last reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire) != 0
    }

    /// The reasons pending.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Clears the reasons that the driver acknowledged.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::AcqRel);
    }

    /// Counts changes of the configuration space.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Forgets all reasons, as a device reset does.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(0, Ordering::Release);
    }

    /// The line underneath.
    pub fn line(&self) -> &IrqLine {
        &self.line
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::AcqRel);
        self.line.raise();
    }
}
