//! Where a guest's console goes: a thread of its own, so that neither a vCPU nor the event loop ever waits for a
//! slow terminal, and a memory of the last lines.
//!
//! A thread, because a terminal shared with a shell must not be made non-blocking, and a blocking write may block
//! even where `poll` promised that it would not. What comes faster than it can be written waits in a buffer. Of a
//! device that cannot wait, what does not fit there is lost, as on a serial line, and counted in the output
//! ([`Write`]); a device that can offers it again when there is room ([`Output::offer`]).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that may wait for the terminal.
const CAPACITY: usize = 256 << 10;
/// Bytes of output that are remembered.
const TAIL: usize = 8 << 10;
/// Enough for a thread that only writes.
const STACK: usize = 64 << 10;
/// How Linux announces its end.
const PANIC: &str = "Kernel panic - not syncing: ";

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    lost: u64,
    tail: VecDeque<u8>,
    /// Somebody was refused, and waits for room.
    refused: bool,
    closed: bool,
    finished: bool,
}

impl State {
    /// How much of `data` fits.
    fn room_for(&self, data: &[u8]) -> usize {
        data.len().min(CAPACITY - self.waiting.len().min(CAPACITY))
    }

    fn remember(&mut self, data: &[u8]) {
        self.tail.extend(data);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    room: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest's console output. Clones write to the same place.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

/// Ends the output's thread when the machine is gone.
pub struct OutputThread {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// Starts the thread that writes to `sink`.
pub fn spawn(sink: Box<dyn Write + Send>) -> io::Result<(Output, OutputThread)> {
    let room = EventFd::new(EFD_NONBLOCK)?;
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), room });
    let worker = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("console".into())
        .stack_size(STACK)
        .spawn(move || pump(&worker, sink))?;
    Ok((Output(Arc::clone(&shared)), OutputThread { shared, thread }))
}

fn pump(shared: &Shared, mut sink: Box<dyn Write + Send>) {
    loop {
        let mut state = shared.lock();
        while state.waiting.is_empty() && state.lost == 0 {
            if state.closed {
                state.finished = true;
                shared.changed.notify_all();
                return;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let chunk = std::mem::take(&mut state.waiting);
        let lost = std::mem::take(&mut state.lost);
        if std::mem::take(&mut state.refused) {
            // Fails only where nobody has listened to very many signals.
            let _ = shared.room.write(1);
        }
        drop(state);
        let (first, second) = chunk.as_slices();
        let mut written = sink.write_all(first).and_then(|()| sink.write_all(second));
        if lost > 0 {
            written = written.and_then(|()| write!(sink, "\r\n[{lost} bytes of output lost]\r\n"));
        }
        if written.and_then(|()| sink.flush()).is_err() {
            // Nobody reads any more: the guest goes on without.
            sink = Box::new(io::sink());
        }
    }
}

impl Output {
    /// Takes as much of `data` as there is room for, and returns how much. Where that is not all,
    /// [`room`](Self::room) is signalled when it is worth trying again.
    pub fn offer(&self, data: &[u8]) -> usize {
        let mut state = self.0.lock();
        let taken = state.room_for(data);
        state.refused |= taken < data.len();
        state.waiting.extend(&data[..taken]);
        state.remember(&data[..taken]);
        self.0.changed.notify_all();
        taken
    }

    /// Signalled when there is room again after [`offer`](Self::offer) did not take everything. All clones share
    /// it, so only one device of an output can wait for it.
    pub fn room(&self) -> &EventFd {
        &self.0.room
    }

    /// The last lines that the guest printed, without colours or carriage returns.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let tail: Vec<u8> = self.0.lock().tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|&line| line.to_owned()).collect()
    }

    /// Whether the guest has printed something, and no end of the line after it.
    pub fn is_mid_line(&self) -> bool {
        self.0.lock().tail.back().is_some_and(|&byte| byte != b'\n')
    }

    /// Why the guest's kernel says that it panicked, if it says so.
    pub fn panic_message(&self) -> Option<String> {
        let lines = self.last_lines(usize::MAX);
        lines.iter().rev().find_map(|line| Some(line.split_once(PANIC)?.1.to_owned()))
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let (kept, lost) = data.split_at(state.room_for(data));
        state.waiting.extend(kept);
        state.lost += lost.len() as u64;
        state.remember(data);
        self.0.changed.notify_all();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputThread {
    /// Waits until everything is written, but no longer than `patience`: a stopped terminal must not keep the
    /// monitor from ending.
    pub fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        while !state.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        // It has nothing left to do but return; what it panicked with has been printed already.
        let _ = self.thread.join();
    }
}
