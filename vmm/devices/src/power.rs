//! Sleep, reset and power button of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.6 to 4.8.3.8).
//!
//! | offset | register |
//! |---|---|
//! | 0 | sleep control: a write with `SLP_EN` and sleep type 5 switches off |
//! | 1 | sleep status: always 0, since nothing ever wakes |
//! | 2 | reset: a write of 1 resets |
//! | 3 | button: reads 1 once after the power button was pressed |

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};
use crate::interrupt::IrqLine;

/// The I/O ports of the four registers.
pub const PORTS: Range<u64> = 0x600..0x604;
/// Offsets of the registers.
pub const SLEEP_CONTROL: u64 = 0;
/// See [`SLEEP_CONTROL`].
pub const SLEEP_STATUS: u64 = 1;
/// See [`SLEEP_CONTROL`].
pub const RESET: u64 = 2;
/// See [`SLEEP_CONTROL`].
pub const BUTTON: u64 = 3;
/// What to write to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means power-off; the DSDT says so to the guest.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Presses the power button, from any thread.
#[derive(Clone)]
pub struct PowerButton {
    pressed: Arc<AtomicBool>,
    line: Arc<IrqLine>,
}

impl PowerButton {
    /// Presses it.
    pub fn press(&self) {
        self.pressed.store(true, Ordering::Release);
        self.line.raise();
    }
}

/// The registers.
pub struct PowerRegisters {
    sink: EventSink,
    pressed: Arc<AtomicBool>,
}

/// Registers that report to `sink`, and the button whose presses raise `line`.
pub fn power(sink: EventSink, line: &IrqLine) -> io::Result<(PowerRegisters, PowerButton)> {
    let pressed = Arc::<AtomicBool>::default();
    let button = PowerButton { pressed: Arc::clone(&pressed), line: Arc::new(line.try_clone()?) };
    Ok((PowerRegisters { sink, pressed }, button))
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == BUTTON
            && let [byte] = data
        {
            *byte = self.pressed.swap(false, Ordering::AcqRel).into();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                (self.sink)(GuestEvent::PowerOff);
            }
            RESET if value == RESET_VALUE => (self.sink)(GuestEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn setup() -> (PowerRegisters, PowerButton, Arc<Mutex<Vec<GuestEvent>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let sink: EventSink = Arc::new(move |event| sink.lock().unwrap().push(event));
        let (registers, button) = power(sink, &IrqLine::new().unwrap()).unwrap();
        (registers, button, heard)
    }

    #[test]
    fn sleep_type_five_switches_off_and_reset_resets() {
        let (mut registers, _, heard) = setup();
        registers.write(SLEEP_CONTROL, &[5 << 2]);
        registers.write(SLEEP_CONTROL, &[3 << 2 | 0x20]);
        registers.write(RESET, &[0]);
        assert!(heard.lock().unwrap().is_empty());
        registers.write(SLEEP_CONTROL, &[5 << 2 | 0x20]);
        registers.write(RESET, &[1]);
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::PowerOff, GuestEvent::Reset]);
    }

    #[test]
    fn a_press_is_read_once() {
        let (mut registers, button, _) = setup();
        let mut read = || {
            let mut byte = [9];
            registers.read(BUTTON, &mut byte);
            byte[0]
        };
        assert_eq!(read(), 0);
        button.press();
        assert_eq!((read(), read()), (1, 0));
    }
}
