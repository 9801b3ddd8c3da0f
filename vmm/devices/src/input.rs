//! What a console reads, whatever device is behind it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A guest's console, seen from whoever types.
pub trait ConsoleInput: Send + Sync {
    /// Gives the guest something to read. Returns how many bytes were taken: all, unless the guest has not read for
    /// long.
    fn input(&self, data: &[u8]) -> usize;

    /// Signalled when the guest has read all that waited for it.
    fn room(&self) -> Arc<EventFd>;
}
