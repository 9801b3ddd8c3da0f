//! What all virtio devices share: the transport, queues, and the trait a device implements.

pub mod mmio;
pub mod queue;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Memory;
use crate::interrupt::VirtioInterrupt;
use crate::reactor::Worker;
use queue::VirtQueue;

/// Feature bits that belong to the transport and the rings (virtio 1.2, 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device IDs (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum DeviceKind {
    /// Block device (5.2).
    Block = 2,
    /// Console (5.3).
    Console = 3,
    /// Entropy source (5.4).
    Rng = 4,
    /// Memory balloon (5.5).
    Balloon = 5,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
        })
    }
}

/// What a device gets when its driver is ready (virtio 1.2, 3.1.1, step 8).
pub struct Activation {
    /// Guest memory.
    pub memory: Memory,
    /// The queues, in the order of [`VirtioDevice::queue_sizes`]; one that the driver left unconfigured is
    /// never ready and yields nothing.
    pub queues: Vec<VirtQueue>,
    /// Feature bits that both sides agreed on.
    pub features: u64,
    /// The device's interrupt; queues hold it too.
    pub interrupt: Arc<VirtioInterrupt>,
}

/// The device could not start working.
#[derive(Debug, thiserror::Error)]
#[error("cannot activate virtio-{kind} device")]
pub struct ActivateError {
    /// Which device.
    pub kind: DeviceKind,
    /// Why.
    pub source: std::io::Error,
}

/// The front of a virtio device: what the transport needs while the driver negotiates. The work itself is
/// done by the [`Worker`] that [`activate`](Self::activate) makes.
pub trait VirtioDevice: Send {
    /// Which kind of device.
    fn kind(&self) -> DeviceKind;

    /// The feature bits offered, without those of the transport ([`feature`]).
    fn features(&self) -> u64;

    /// The largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Makes the worker. Called again after each reset.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;
}

/// Serves a read of `data.len()` bytes at `offset` from a configuration space in its wire format.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(tail) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    let len = tail.len().min(data.len());
    data[..len].copy_from_slice(&tail[..len]);
}
