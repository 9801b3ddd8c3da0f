//! Requests as the driver writes them (virtio 1.2, 5.2.6), checked against the disk.

use crate::virtio::queue::Chain;

use super::{MAX_DISCARD_SECTORS, SECTOR};

/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER: u64 = 16;
/// Bytes of the answer to `VIRTIO_BLK_T_GET_ID`.
pub(super) const ID_LEN: usize = 20;
/// Bytes of one segment of a discard or write-zeroes request: sector, count, flags.
const SEGMENT: u64 = 16;
/// The segment's flag that lets write-zeroes give the space back.
const UNMAP: u32 = 1;

/// Request types.
pub(super) mod kind {
    pub(in super::super) const IN: u32 = 0;
    pub(in super::super) const OUT: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 4;
    pub(in super::super) const GET_ID: u32 = 8;
    pub(in super::super) const DISCARD: u32 = 11;
    pub(in super::super) const WRITE_ZEROES: u32 = 13;
}

/// The status byte at the end of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// A request that makes sense. Offsets and lengths are bytes and lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    GetId,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// What a request may touch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
}

impl Request {
    /// Reads the request in `chain`, whose last writable byte is for the status.
    pub(super) fn parse(chain: &Chain, limits: Limits) -> Result<Self, Status> {
        let mut header = [0; HEADER as usize];
        if chain.read_at(0, &mut header) != header.len() {
            return Err(Status::IoErr);
        }
        let (kind, rest) = header.split_at(4);
        let kind = u32::from_le_bytes(kind.try_into().unwrap_or_default());
        let sector = u64::from_le_bytes(rest[4..].try_into().unwrap_or_default());
        match kind {
            kind::IN => {
                let (offset, len) = limits.range(sector, chain.writable_len() - 1)?;
                Ok(Self::Read { offset, len })
            }
            kind::OUT => {
                limits.check_writable()?;
                let (offset, len) = limits.range(sector, chain.readable_len() - HEADER)?;
                Ok(Self::Write { offset, len })
            }
            kind::FLUSH => Ok(Self::Flush),
            kind::GET_ID => Ok(Self::GetId),
            kind::DISCARD | kind::WRITE_ZEROES => Self::parse_range(chain, limits, kind),
            _ => Err(Status::Unsupported),
        }
    }

    /// Discard and write-zeroes: the device says that it takes one segment at a time.
    fn parse_range(chain: &Chain, limits: Limits, kind: u32) -> Result<Self, Status> {
        limits.check_writable()?;
        let mut segment = [0; SEGMENT as usize];
        if chain.readable_len() != HEADER + SEGMENT || chain.read_at(HEADER, &mut segment) != segment.len() {
            return Err(Status::IoErr);
        }
        let word = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap_or_default());
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (count, flags) = (word(8), word(12));
        // Reserved bits, and unmapping what is discarded anyway (5.2.6.2).
        if flags & !UNMAP != 0 || (kind == kind::DISCARD && flags != 0) {
            return Err(Status::Unsupported);
        }
        if count > MAX_DISCARD_SECTORS {
            return Err(Status::IoErr);
        }
        let (offset, len) = limits.range(sector, u64::from(count) * SECTOR)?;
        Ok(match kind {
            kind::DISCARD => Self::Discard { offset, len },
            _ => Self::WriteZeroes { offset, len, unmap: flags & UNMAP != 0 },
        })
    }
}

impl Limits {
    fn check_writable(self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoErr) } else { Ok(()) }
    }

    /// Checks that `len` bytes from `sector` are whole sectors on the disk.
    fn range(self, sector: u64, len: u64) -> Result<(u64, u64), Status> {
        let end = sector.checked_add(len / SECTOR).ok_or(Status::IoErr)?;
        if !len.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(Status::IoErr);
        }
        Ok((sector * SECTOR, len))
    }
}
