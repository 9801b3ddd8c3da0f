//! The machine's power button, read as an input device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::inotify::CreationWatch;

const DEVICES: &str = "/dev/input";

/// Event type and code of the button (`linux/input-event-codes.h`).
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Bytes of a bit map of all key codes, `KEY_MAX` being 0x2ff.
const KEY_BITS: usize = 0x300 / 8;

nix::ioctl_read_buf!(
    /// Reads which keys a device has: `EVIOCGBIT(EV_KEY, …)` of `linux/input.h`.
    read_key_bits,
    b'E',
    0x20 + EV_KEY,
    u8
);

/// Every input device with a power button, and a watch for those that are still to come.
pub(crate) struct PowerButton {
    watch: CreationWatch,
    buttons: Vec<(PathBuf, File)>,
}

impl PowerButton {
    /// Finds the buttons that are there.
    pub(crate) fn new() -> nix::Result<Self> {
        let mut button = Self { watch: CreationWatch::new()?, buttons: Vec::new() };
        button.scan();
        Ok(button)
    }

    /// What to poll for input; any of it makes [`Self::pressed`] worth a call.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.watch.as_fd()).chain(self.buttons.iter().map(|(_, file)| file.as_fd()))
    }

    /// Takes in new devices and pending events. Returns whether the button was pressed.
    pub(crate) fn pressed(&mut self) -> bool {
        self.watch.drain();
        self.scan();
        let mut pressed = false;
        // A device that was unplugged fails to read; polling it on would never sleep again.
        self.buttons.retain_mut(|(_, file)| match drain(file) {
            Ok(found) => {
                pressed |= found;
                true
            }
            Err(_) => false,
        });
        pressed
    }

    fn scan(&mut self) {
        // Watch before looking. /dev/input comes with the first input device, so that /dev is watched too.
        let _ = self.watch.add(Path::new("/dev"));
        if self.watch.add(Path::new(DEVICES)).is_err() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(DEVICES) else { return };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let is_event = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("event"));
            if is_event
                && !self.buttons.iter().any(|(known, _)| *known == path)
                && let Some(file) = open_button(&path)
            {
                self.buttons.push((path, file));
            }
        }
    }
}

/// Opens the device at `path` if it has a power button.
fn open_button(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut bits = [0; KEY_BITS];
    // SAFETY: the kernel writes at most the length of the buffer, which it is given.
    unsafe { read_key_bits(file.as_raw_fd(), &mut bits) }.ok()?;
    has_bit(&bits, KEY_POWER).then_some(file)
}

fn has_bit(bits: &[u8], bit: u16) -> bool {
    bits[usize::from(bit / 8)] & (1 << (bit % 8)) != 0
}

/// Reads all pending events. Returns whether one of them is the press of the button.
fn drain(file: &mut File) -> io::Result<bool> {
    let mut pressed = false;
    let mut events = [0; 16 * size_of::<libc::input_event>()];
    loop {
        match file.read(&mut events) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => pressed |= has_press(&events[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(pressed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether `events`, `struct input_event`s as the kernel gives them, hold a press of the button.
fn has_press(events: &[u8]) -> bool {
    /// Type, code and value follow the time of the event.
    const KIND: usize = std::mem::offset_of!(libc::input_event, type_);
    events.chunks_exact(size_of::<libc::input_event>()).any(|event| {
        let field = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        let value = i32::from_ne_bytes([event[KIND + 4], event[KIND + 5], event[KIND + 6], event[KIND + 7]]);
        field(KIND) == EV_KEY && field(KIND + 2) == KEY_POWER && value == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; std::mem::offset_of!(libc::input_event, type_)];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        assert!(has_press(&[event(0, 0, 0), event(EV_KEY, KEY_POWER, 1)].concat()));
        assert!(!has_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!has_press(&event(EV_KEY, 30, 1)));
        assert!(!has_press(&event(0, KEY_POWER, 1)));
        assert!(!has_press(&[]));
    }

    #[test]
    fn bits_are_counted_from_the_least_significant() {
        let mut bits = [0; KEY_BITS];
        bits[14] = 1 << 4;
        assert!(has_bit(&bits, KEY_POWER));
        bits[14] = 1 << 3;
        assert!(!has_bit(&bits, KEY_POWER));
    }
}
