//! What a guest says about its memory.

use serde::Serialize;

/// Bytes of one statistic on the wire: tag (`u16`), value (`u64`).
pub(super) const ENTRY_LEN: usize = 10;

/// A guest's memory as it sees it (virtio 1.2, 5.5.6.3). Each value is present if the guest told it; it may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Statistics {
    /// Bytes swapped in since boot.
    pub swap_in: Option<u64>,
    /// Bytes swapped out since boot.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk, since boot.
    pub major_faults: Option<u64>,
    /// Page faults that did not, since boot.
    pub minor_faults: Option<u64>,
    /// Bytes not in use at all.
    pub free: Option<u64>,
    /// Bytes there are, without those in the balloon.
    pub total: Option<u64>,
    /// Bytes that a new program could have without swapping.
    pub available: Option<u64>,
    /// Bytes that hold files and could be given up.
    pub disk_caches: Option<u64>,
}

impl Statistics {
    /// Takes an entry off the wire. Tags that mean nothing here are passed over.
    pub(super) fn set(&mut self, entry: [u8; ENTRY_LEN]) {
        let [a, b, value @ ..] = entry;
        let field = match u16::from_le_bytes([a, b]) {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.disk_caches,
            _ => return,
        };
        *field = Some(u64::from_le_bytes(value));
    }
}
