//! The user's end of a guest's console: the terminal in raw mode, and what is typed there.

use std::fs::File;
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

/// Feeds what comes from a file to the guest's console, in the machine's event loop. It takes no more than the guest
/// has room for, so that a pipe is read as fast as the guest reads, and it reads only what is there: the loop is all
/// devices'.
pub(crate) struct Input {
    source: File,
    guest: Arc<dyn ConsoleInput>,
    room: Arc<EventFd>,
    terminal: bool,
    /// Read, but not taken by the guest yet.
    pending: Vec<u8>,
    /// Whether the event loop can tell that there is something to read. Of a regular file it cannot: there always is.
    watchable: bool,
    watching: bool,
    done: bool,
}

impl Input {
    /// Hands standard input to `guest`; `terminal` is whether it is one.
    pub(crate) fn of_stdin(guest: Arc<dyn ConsoleInput>, terminal: bool) -> io::Result<Self> {
        Ok(Self::new(io::stdin().as_fd().try_clone_to_owned()?.into(), guest, terminal))
    }

    fn new(source: File, guest: Arc<dyn ConsoleInput>, terminal: bool) -> Self {
        let room = guest.room();
        Self {
            source,
            guest,
            room,
            terminal,
            pending: Vec::new(),
            watchable: true,
            watching: false,
            done: false,
        }
    }

    /// Reads once. Whoever calls this knows that it does not block.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        match self.source.read(&mut buffer) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
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

    /// Hands on what was read, and waits for what is wanted next.
    fn hand_on(&mut self, ops: &mut EventOps) {
        if !self.pending.is_empty() {
            let taken = self.guest.input(&self.pending);
            self.pending.drain(..taken);
        }
        let wanted = self.pending.is_empty() && !self.done;
        if self.watchable {
            self.watch(wanted, ops);
        } else if wanted {
            // Nothing will tell of more in a regular file: come back by ourselves.
            let _ = self.room.write(1);
        }
    }

    fn watch(&mut self, on: bool, ops: &mut EventOps) {
        if on == self.watching {
            return;
        }
        let events = Events::new_raw(self.source.as_raw_fd(), EventSet::IN);
        let changed = if on { ops.add(events) } else { ops.remove(events) };
        self.watching = on && changed.is_ok();
    }
}

impl MutEventSubscriber for Input {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let is_room = events.fd() == self.room.as_raw_fd();
        if is_room {
            // Fails only where somebody was quicker.
            let _ = self.room.read();
        }
        if self.pending.is_empty() && !self.done && (!is_room || !self.watchable) {
            self.read();
        }
        self.hand_on(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Only a dead loop refuses, and then nothing works.
        let _ = ops.add(Events::new(&*self.room, EventSet::IN));
        self.watch(true, ops);
        self.watchable = self.watching;
        if !self.watchable {
            let _ = self.room.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_manager::{EventManager, SubscriberOps};
    use std::io::{Seek, Write};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// A guest with room for so many bytes.
    struct Guest {
        got: Mutex<Vec<u8>>,
        capacity: usize,
        room: Arc<EventFd>,
    }

    impl ConsoleInput for Guest {
        fn input(&self, data: &[u8]) -> usize {
            let mut got = self.got.lock().unwrap();
            let taken = data.len().min(self.capacity - got.len());
            got.extend(&data[..taken]);
            taken
        }

        fn room(&self) -> Arc<EventFd> {
            Arc::clone(&self.room)
        }
    }

    fn guest(capacity: usize) -> Arc<Guest> {
        let room = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Arc::new(Guest { got: Mutex::default(), capacity, room })
    }

    fn got(guest: &Guest) -> String {
        String::from_utf8(guest.got.lock().unwrap().clone()).unwrap()
    }

    /// A guest with room for 100 bytes that reads from a pipe, which may count as a terminal.
    fn piped(terminal: bool) -> (io::PipeWriter, Arc<Guest>, EventManager<Input>) {
        let (source, typed) = io::pipe().unwrap();
        let guest = guest(100);
        let mut events = EventManager::new().unwrap();
        let source = std::os::fd::OwnedFd::from(source);
        events.add_subscriber(Input::new(source.into(), guest.clone(), terminal));
        (typed, guest, events)
    }

    /// Lets the loop handle what there is, without waiting.
    fn settle(events: &mut EventManager<Input>) {
        while events.run_with_timeout(0).unwrap() > 0 {}
    }

    #[test]
    fn room_without_input_does_not_block_the_loop() {
        let (mut typed, guest, mut events) = piped(false);
        typed.write_all(b"one").unwrap();
        settle(&mut events);
        // The guest has taken it, and says so. Nothing is in the pipe now: reading it would block.
        guest.room.write(1).unwrap();
        settle(&mut events);
        typed.write_all(b" two").unwrap();
        settle(&mut events);
        assert_eq!(got(&guest), "one two");
    }

    #[test]
    fn a_regular_file_is_read_to_its_end() {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(&[b'x'; 10_000]).unwrap();
        source.rewind().unwrap();
        let guest = guest(20_000);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Input::new(source, guest.clone(), false));
        settle(&mut events);
        assert_eq!(got(&guest).len(), 10_000);
    }

    #[test]
    fn the_detach_key_ends_a_terminals_input() {
        let (mut typed, guest, mut events) = piped(true);
        typed.write_all(b"ab\x1dcd").unwrap();
        settle(&mut events);
        typed.write_all(b"ef").unwrap();
        settle(&mut events);
        assert_eq!(got(&guest), "ab");
    }
}
