//! Block device (virtio 1.2, 5.2): a file or a block device of the host as the guest's disk.
//!
//! Requests go from the ring straight to an [`engine`]: data moves between the file and guest memory without a copy
//! in between, up to a whole ring of requests at a time, and whatever one round over the ring brought is started by one
//! system call.

mod engine;
mod file;
mod pool;
mod request;
#[cfg(test)]
mod tests;
mod uring;
mod worker;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use file::OpenError;

use crate::reactor::Worker;
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice, read_config_bytes};
use engine::Engine;
use pool::Pool;
use request::{ID_LEN, Limits};
use uring::Uring;
use worker::BlockWorker;

/// Bytes of a sector, in which the protocol counts.
const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
/// Segments of data per request: what fits a ring with header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most that one discard or write-zeroes request covers: 2 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// What discards should be aligned to, in sectors: a page, which is what file systems give back.
const DISCARD_ALIGNMENT: u32 = 8;

/// Feature bits (5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// A request that failed on the host. The driver has been told that there was an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("{action} at byte {offset} failed")]
pub struct Fault {
    /// What was to be done.
    pub action: &'static str,
    /// Where, in bytes.
    pub offset: u64,
    /// Why it failed.
    #[source]
    pub error: io::Error,
}

/// Who hears of [`Fault`]s. Called in the event loop, so it must not block.
pub type FaultSink = Arc<dyn Fn(&Fault) + Send + Sync>;

/// What carries out requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// `io_uring` where the host has it, else threads.
    #[default]
    Auto,
    /// Threads.
    Threads,
}

/// How a file becomes a disk.
#[derive(Clone, Default)]
pub struct Options {
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// What carries out requests.
    pub engine: EngineChoice,
    /// Who hears of requests that fail on the host.
    pub faults: Option<FaultSink>,
}

/// The device.
pub struct Block {
    file: File,
    sectors: u64,
    id: [u8; ID_LEN],
    options: Options,
}

impl Block {
    /// Opens the file at `path` and locks it for as long as the device lives.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let mut id = [0; ID_LEN];
        if let Some(serial) = &options.serial {
            let room =
                id.get_mut(..serial.len()).ok_or_else(|| OpenError::Serial { serial: serial.clone() })?;
            room.copy_from_slice(serial.as_bytes());
        }
        let (file, sectors) = file::open(path, options.read_only)?;
        Ok(Self { file, sectors, id, options })
    }

    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        if self.options.engine == EngineChoice::Auto
            && let Ok(ring) = Uring::new(self.file.try_clone()?, QUEUE_SIZE)
        {
            return Ok(Box::new(ring));
        }
        Ok(Box::new(Pool::new(self.file.try_clone()?)?))
    }

    /// The configuration space (5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        if !self.options.read_only {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &DISCARD_ALIGNMENT.to_le_bytes());
            put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[1]);
        }
        config
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let common = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        common | if self.options.read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let failed = |source| ActivateError { kind: DeviceKind::Block, source };
        let engine = self.engine().map_err(failed)?;
        let queue = activation.queues.pop().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let limits = Limits { sectors: self.sectors, read_only: self.options.read_only };
        let write_back = activation.features & feature::FLUSH != 0;
        let faults = self.options.faults.clone();
        Ok(Box::new(BlockWorker::new(engine, queue, limits, write_back, self.id, faults)))
    }
}
