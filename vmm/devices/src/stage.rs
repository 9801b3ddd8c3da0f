//! A port on which the guest marks how far its boot has come.

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The I/O port. Programs reach it with `ioperm` and a one-byte `out`.
pub const PORT: u16 = 0x0a00;
/// What the first user-space program writes, before anything else.
pub const USER_SPACE: u8 = 1;

/// The device behind [`PORT`]. Reads give zero.
pub struct StagePort(EventSink);

impl StagePort {
    /// Reports marks to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self(sink)
    }
}

impl BusDevice for StagePort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [stage] = *data {
            (self.0)(GuestEvent::Stage(stage));
        }
    }
}
