//! The engine on `io_uring`: one system call starts whatever a round over the virtqueue brought.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::engine::{Completion, Engine, Operation};

/// What this engine needs the kernel to know.
const OPCODES: [u8; 4] =
    [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];

pub(super) struct Uring {
    ring: IoUring,
    file: File,
    event: EventFd,
}

impl Uring {
    /// A ring for `depth` operations on `file`; an error where the kernel has none or does not let us have it.
    pub(super) fn new(file: File, depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(u32::from(depth))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !OPCODES.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self { ring, file, event })
    }
}

impl Engine for Uring {
    unsafe fn submit(&mut self, token: u16, operation: Operation) -> io::Result<()> {
        let fd = Fd(self.file.as_raw_fd());
        let entry = match operation {
            Operation::Read { buffers, count, offset } => {
                opcode::Readv::new(fd, buffers, count as u32).offset(offset).build()
            }
            Operation::Write { buffers, count, offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, buffers, count as u32).offset(offset).rw_flags(flags).build()
            }
            Operation::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Operation::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
        }
        .user_data(token.into());
        loop {
            // SAFETY: the caller keeps the buffers valid until the completion; the file is open as long as the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.start()?;
        }
    }

    fn start(&mut self) -> io::Result<()> {
        // What completes at once, as reads from the page cache do, is taken right after this call: no event for it.
        self.ring.completion().disable_eventfd();
        let started = loop {
            match self.ring.submit() {
                Ok(_) => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.ring.completion().enable_eventfd();
        started
    }

    fn completed(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        Some(Completion { token: entry.user_data() as u16, result: entry.result() })
    }

    fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}
