//! Giving guest memory back to the host.

use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::PAGE_SIZE;
use crate::Memory;

/// Frees what lies behind the whole pages of a range of guest memory; the guest then finds zeroes there, or, in pages of
/// its kernel, what they were at the start. A range that is not in memory is left alone, as are pages too large to be
/// freed in part.
pub(super) fn release(memory: &Memory, start: u64, len: u64) {
    let Some(end) = start.checked_add(len) else { return };
    let start = start.next_multiple_of(PAGE_SIZE);
    let end = end - end % PAGE_SIZE;
    if start >= end {
        return;
    }
    let Ok(slice) = memory.get_slice(GuestAddress(start), (end - start) as usize) else { return };
    let guard = slice.ptr_guard_mut();
    let Some(address) = NonNull::new(guard.as_ptr().cast()) else { return };
    // SAFETY: the range is guest memory, which is mapped for as long as `slice` lives and which nobody takes for
    // unchanging. Its pages stay mapped.
    let removed = unsafe { madvise(address, slice.len(), MmapAdvise::MADV_REMOVE) };
    if removed.is_err() {
        // A private mapping of a file: what can be given back are the guest's own copies. If that fails too, nothing
        // is lost but the chance.
        // SAFETY: as above.
        let _ = unsafe { madvise(address, slice.len(), MmapAdvise::MADV_DONTNEED) };
    }
}
