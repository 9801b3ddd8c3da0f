//! As much of the keyboard controller as a reset takes: command 0xfe on port 0x64 pulses the processor's reset line.

use std::ops::Range;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// Data port 0x60 to command port 0x64.
pub const PORTS: Range<u64> = 0x60..0x65;
const COMMAND: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// The controller. Its status reads as "nothing to read, ready to write", so that a reset is sent at once.
pub struct I8042(EventSink);

impl I8042 {
    /// Reports resets to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self(sink)
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [PULSE_RESET] {
            (self.0)(GuestEvent::Reset);
        }
    }
}
