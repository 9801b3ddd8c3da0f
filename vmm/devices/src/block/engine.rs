//! What carries requests out on the host, away from the event loop.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Addresses and lengths that one transfer moves data between, in order.
#[derive(Debug, Default)]
pub(super) struct Buffers(pub(super) Vec<libc::iovec>);

// SAFETY: the pointers are into guest memory, which every thread of the monitor may access, or into constant data.
// Whoever makes the buffers keeps what they point to mapped until the transfer is over.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Leaves out the first `count` bytes, which have been transferred.
    pub(super) fn advance(&mut self, mut count: usize) {
        let whole = self
            .0
            .iter()
            .take_while(|buffer| {
                let fits = buffer.iov_len <= count;
                count -= if fits { buffer.iov_len } else { 0 };
                fits
            })
            .count();
        self.0.drain(..whole);
        if let Some(first) = self.0.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
        }
    }
}

/// One operation on the file behind a disk. Offsets and lengths are bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    /// Into these buffers, which stay where they are until the operation is over.
    Read { buffers: *const libc::iovec, count: usize, offset: u64 },
    /// From these buffers; `durable` for data that is on the disk when the operation is over.
    Write { buffers: *const libc::iovec, count: usize, offset: u64, durable: bool },
    /// Makes all data durable that was written before.
    Sync,
    /// `fallocate` in one of its modes.
    Allocate { mode: i32, offset: u64, len: u64 },
}

// SAFETY: as for `Buffers`, of which these are the first elements.
unsafe impl Send for Operation {}

/// An operation that is over: what it was called, and what the system call returned (a negative error number for an
/// error).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) token: u16,
    pub(super) result: i32,
}

/// Carries out operations side by side, in any order.
pub(super) trait Engine: Send {
    /// Takes an operation. It starts at the latest when [`start`](Self::start) is called.
    ///
    /// # Safety
    /// The buffers of `operation`, and what they point to, stay valid until its completion was taken.
    unsafe fn submit(&mut self, token: u16, operation: Operation) -> io::Result<()>;

    /// Starts what was submitted. The caller takes completions afterwards: there is no event for what completes
    /// at once.
    fn start(&mut self) -> io::Result<()>;

    /// Takes one completion, if there is one.
    fn completed(&mut self) -> Option<Completion>;

    /// Waits until there is a completion. Only called with something under way.
    fn wait(&mut self) -> io::Result<()>;

    /// Signalled when something has completed later than at its start.
    fn event(&self) -> &EventFd;
}
