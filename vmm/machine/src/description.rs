//! What a machine looks like to its guest: what `--dry-run` shows.

use serde::Serialize;

use crate::boot::Protocol;

/// A machine as its guest finds it.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// Processors.
    pub cpus: u8,
    /// What lies where in the guest's physical address space, lowest first; the rest is empty.
    pub memory_map: Vec<Range>,
    /// What was put into memory before the start.
    pub contents: Vec<Range>,
    /// Devices, in the order in which the guest finds them.
    pub devices: Vec<Device>,
    /// The kernel's command line, whole.
    pub cmdline: String,
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Where the kernel is entered: a guest physical address.
    pub entry: u64,
}

/// A range of guest physical addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Range {
    /// What is there.
    pub what: String,
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
}

impl Range {
    /// `len` bytes from `start`.
    pub(crate) fn new(what: impl Into<String>, start: u64, len: u64) -> Self {
        Self { what: what.into(), start, end: start + len }
    }
}

/// A device, where the guest reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name, such as `virtio-block` or `serial`.
    pub name: String,
    /// Whether it has I/O ports or memory-mapped registers.
    pub space: Space,
    /// First address or port.
    pub start: u64,
    /// First address or port behind it.
    pub end: u64,
    /// Its global system interrupt, if it has one.
    pub interrupt: Option<u32>,
}

/// The address spaces of an x86 machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// I/O ports.
    Ports,
    /// Guest physical addresses.
    Mmio,
}
