//! The engine on a few threads, for hosts where `io_uring` is missing or forbidden.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::engine::{Completion, Engine, Operation};

/// Enough to keep a disk busy, few enough not to matter.
const THREADS: usize = 4;
/// They make system calls and nothing else.
const STACK: usize = 64 << 10;

pub(super) struct Pool {
    /// Gone when the threads are to end.
    jobs: Option<Sender<(u16, Operation)>>,
    completions: Receiver<Completion>,
    /// Received while waiting.
    next: Option<Completion>,
    event: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Threads for operations on `file`.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let (done, completions) = mpsc::channel();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let file = Arc::new(file);
        let mut pool = Self { jobs: Some(jobs), completions, next: None, event, threads: Vec::new() };
        for i in 0..THREADS {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            let (event, file) = (Arc::clone(&pool.event), Arc::clone(&file));
            let thread = std::thread::Builder::new()
                .name(format!("disk{i}"))
                .stack_size(STACK)
                .spawn(move || work(&queue, &done, &event, &file))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

fn work(queue: &Mutex<Receiver<(u16, Operation)>>, done: &Sender<Completion>, event: &EventFd, file: &File) {
    loop {
        // One thread waits for the next job, the others for their turn to wait.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((token, operation)) = job else { return };
        let result = execute(file, operation);
        if done.send(Completion { token, result }).is_err() {
            return;
        }
        // Fails only if it is signalled already.
        let _ = event.write(1);
    }
}

fn execute(file: &File, operation: Operation) -> i32 {
    let fd = file.as_raw_fd();
    loop {
        let result = match operation {
            Operation::Read { buffers, count, offset } => {
                // SAFETY: whoever submitted this keeps the buffers valid until it has taken the completion.
                unsafe { libc::preadv(fd, buffers, count as libc::c_int, offset as libc::off_t) }
            }
            Operation::Write { buffers, count, offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above.
                unsafe { libc::pwritev2(fd, buffers, count as libc::c_int, offset as libc::off_t, flags) }
            }
            // SAFETY: takes no memory.
            Operation::Sync => unsafe { libc::fdatasync(fd) as isize },
            Operation::Allocate { mode, offset, len } => {
                // SAFETY: takes no memory.
                unsafe { libc::fallocate(fd, mode, offset as libc::off_t, len as libc::off_t) as isize }
            }
        };
        if result >= 0 {
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        if errno != libc::EINTR {
            return -errno;
        }
    }
}

impl Engine for Pool {
    unsafe fn submit(&mut self, token: u16, operation: Operation) -> io::Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((token, operation)).is_ok());
        if sent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completed(&mut self) -> Option<Completion> {
        self.next.take().or_else(|| self.completions.try_recv().ok())
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.next.is_none() {
            self.next = Some(self.completions.recv().map_err(|_| io::ErrorKind::BrokenPipe)?);
        }
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // A panic of the thread has been printed by the panic hook already.
            let _ = thread.join();
        }
    }
}
