//! Files on their way into a host and out of it.
//!
//! They go through the mailbox: a file outside that is a disk inside, many times as fast as the byte stream beside
//! it. Only what holds data is copied, so that a disk image arrives as sparse as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::protocol::{Metadata, Piece};

/// Length of the mailbox in bytes.
pub(crate) const MAILBOX_BYTES: u64 = 64 << 20;

/// Pieces start at multiples of this in the mailbox, as direct access to a disk demands.
const ALIGNMENT: u64 = 4096;

/// How much is copied at once. The mailbox's length is a multiple of it.
const BUFFER_BYTES: usize = 1 << 20;

/// Part of a file that fits into the mailbox.
pub(crate) struct Batch {
    /// What holds data.
    pub pieces: Vec<Piece>,
    /// Where the next batch starts, if this is not the last.
    pub next: Option<u64>,
}

/// Finds as much data as the mailbox holds, in the part of `file` from the offset `from` on.
pub(crate) fn batch(file: &File, from: u64) -> io::Result<Batch> {
    let mut pieces = Vec::new();
    let mut room = MAILBOX_BYTES;
    let mut position = from;
    while room > 0 {
        let offset = match lseek(file, position as i64, Whence::SeekData) {
            Ok(offset) => offset as u64,
            // There is no more data.
            Err(Errno::ENXIO) => return Ok(Batch { pieces, next: None }),
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(file, offset as i64, Whence::SeekHole)? as u64;
        let length = room.min(end - offset);
        pieces.push(Piece { offset, length });
        room -= length.next_multiple_of(ALIGNMENT).min(room);
        position = offset + length;
    }
    Ok(Batch { pieces, next: Some(position) })
}

/// Copies pieces of `file` into the mailbox.
pub(crate) fn fill(mailbox: &File, file: &File, pieces: &[Piece]) -> io::Result<()> {
    copy(pieces, |buffer, length, place, offset| {
        file.read_exact_at(&mut buffer[..length], offset)?;
        let padded = length.next_multiple_of(ALIGNMENT as usize);
        buffer[length..padded].fill(0);
        mailbox.write_all_at(&buffer[..padded], place)
    })
}

/// Copies the mailbox's content to where it belongs in `file`.
pub(crate) fn empty(mailbox: &File, file: &File, pieces: &[Piece]) -> io::Result<()> {
    copy(pieces, |buffer, length, place, offset| {
        let padded = length.next_multiple_of(ALIGNMENT as usize);
        mailbox.read_exact_at(&mut buffer[..padded], place)?;
        file.write_all_at(&buffer[..length], offset)
    })
}

/// Calls `step` for every part of `pieces` with an aligned buffer, the part's length, its place in the mailbox, and
/// its offset in the file.
fn copy(
    pieces: &[Piece],
    mut step: impl FnMut(&mut [u8], usize, u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES + ALIGNMENT as usize];
    let start = buffer.as_ptr().align_offset(ALIGNMENT as usize);
    let buffer = &mut buffer[start..start + BUFFER_BYTES];
    let mut place = 0;
    for piece in pieces {
        let mut done = 0;
        while done < piece.length {
            let length = (piece.length - done).min(BUFFER_BYTES as u64);
            step(buffer, length as usize, place + done, piece.offset + done)?;
            done += length;
        }
        place += piece.length.next_multiple_of(ALIGNMENT);
    }
    Ok(())
}

/// What a copy of `file` is to be like.
pub(crate) fn metadata(file: &File) -> io::Result<Metadata> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let modified_ns = metadata.mtime() as u64 * 1_000_000_000 + metadata.mtime_nsec() as u64;
    Ok(Metadata { length: metadata.len(), mode: metadata.mode() & 0o7777, modified_ns })
}

/// Makes `file` like the one described.
pub(crate) fn apply(file: &File, metadata: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    file.set_len(metadata.length)?;
    file.set_permissions(std::fs::Permissions::from_mode(metadata.mode))?;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(metadata.modified_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_is_copied_and_lands_where_it_was() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(b"head", 0).unwrap();
        source.write_all_at(&[7; 5000], 3 << 20).unwrap();
        source.set_len(10 << 20).unwrap();
        let found = batch(&source, 0).unwrap();
        assert_eq!(found.next, None);
        let copied: u64 = found.pieces.iter().map(|piece| piece.length).sum();
        assert!(copied < 64 << 10, "{copied} bytes were taken for data");

        let mailbox = tempfile::tempfile().unwrap();
        let target = tempfile::tempfile().unwrap();
        fill(&mailbox, &source, &found.pieces).unwrap();
        empty(&mailbox, &target, &found.pieces).unwrap();
        apply(&target, &metadata(&source).unwrap()).unwrap();
        assert_eq!(metadata(&target).unwrap(), metadata(&source).unwrap());
        let read = |file: &File| {
            let mut content = vec![0; 10 << 20];
            file.read_exact_at(&mut content, 0).unwrap();
            content
        };
        assert!(read(&source) == read(&target));
    }

    #[test]
    fn what_does_not_fit_goes_in_the_next_batch() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&vec![1; 1 << 20], MAILBOX_BYTES - (1 << 20)).unwrap();
        source.write_all_at(&vec![2; MAILBOX_BYTES as usize], MAILBOX_BYTES).unwrap();
        let first = batch(&source, 0).unwrap();
        assert_eq!(first.next, Some(2 * MAILBOX_BYTES - (1 << 20)));
        let second = batch(&source, first.next.unwrap()).unwrap();
        assert_eq!(second.pieces, [Piece { offset: 2 * MAILBOX_BYTES - (1 << 20), length: 1 << 20 }]);
        assert_eq!(second.next, None);
    }
}
