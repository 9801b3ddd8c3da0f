//! The user's end of a guest's console: the terminal in raw mode, and what is typed there.

use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use nix::sys::termios::{self, SetArg, Termios};
use vmm_devices::console::Size;
use vmm_devices::input::ConsoleInput;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// Ctrl-]: leaves the console.
const DETACH: u8 = 0x1d;

/// What the terminal was like before, for whoever restores it first.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal in raw mode; it is restored when this goes, and when the program panics.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Puts the terminal on standard input into raw mode, if there is one.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let original = termios::tcgetattr(&stdin)?;
        let mut raw = original.clone();
        termios::cfmakeraw(&mut raw);
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
        // In place before the mode changes, so that no panic leaves the terminal raw.
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(original) = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that has gone away needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &original);
    }
}

/// The size of the terminal that shows the guest's output, if there is one.
pub(crate) fn size() -> Size {
    terminal_size::terminal_size_of(io::stdout())
        .map_or_else(Size::default, |(cols, rows)| Size { cols: cols.0, rows: rows.0 })
}

/// Feeds standard input to the guest's console, in the machine's event loop. It takes no more than the guest
/// has room for, so that a pipe is read as fast as the guest reads.
pub(crate) struct Input {
    guest: Arc<dyn ConsoleInput>,
    room: Arc<EventFd>,
    terminal: bool,
    /// Read, but not taken by the guest yet.
    pending: Vec<u8>,
    /// Whether the event loop watches standard input. It cannot watch a regular file, which is always ready.
    watching: bool,
    done: bool,
}

impl Input {
    pub(crate) fn new(guest: Arc<dyn ConsoleInput>, terminal: bool) -> Self {
        let room = guest.room();
        Self { guest, room, terminal, pending: Vec::new(), watching: false, done: false }
    }

    /// Reads once and hands on what was read.
    fn feed(&mut self) {
        if self.pending.is_empty() {
            let mut buffer = [0; 4096];
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => self.done = true,
                Ok(count) => self.pending.extend(&buffer[..count]),
            }
            if self.terminal
                && let Some(at) = self.pending.iter().position(|&byte| byte == DETACH)
            {
                self.pending.truncate(at);
                self.done = true;
                restore();
            }
        }
        let taken = self.guest.input(&self.pending);
        self.pending.drain(..taken);
    }

    fn watch(&mut self, on: bool, ops: &mut EventOps) {
        if on == self.watching {
            return;
        }
        let events = Events::new_raw(io::stdin().as_fd().as_raw_fd(), EventSet::IN);
        let changed = if on { ops.add(events) } else { ops.remove(events) };
        self.watching = on && changed.is_ok();
    }
}

impl MutEventSubscriber for Input {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            let _ = self.room.read();
        }
        if self.done && self.pending.is_empty() {
            self.watch(false, ops);
            return;
        }
        self.feed();
        let wanted = self.pending.is_empty() && !self.done;
        self.watch(wanted, ops);
        if wanted && !self.watching {
            // Nothing will tell of more in a regular file: come back by ourselves.
            let _ = self.room.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Only a dead loop refuses, and then nothing works.
        let _ = ops.add(Events::new(&*self.room, EventSet::IN));
        self.watch(true, ops);
        if !self.watching {
            let _ = self.room.write(1);
        }
    }
}
