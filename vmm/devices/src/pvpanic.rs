//! pvpanic: a port by which a guest's kernel says that it has panicked (QEMU `docs/specs/pvpanic.rst`).

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The I/O port.
pub const PORT: u16 = 0x505;
/// Event bit: the kernel panicked.
const PANICKED: u8 = 1;

/// The device behind [`PORT`].
pub struct PvPanic(EventSink);

impl PvPanic {
    /// Reports panics to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self(sink)
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // The events the device understands.
        data.fill(PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            (self.0)(GuestEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_the_panic_bit_counts() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let mut device = PvPanic::new(Arc::new(move |event| sink.lock().unwrap().push(event)));
        let mut supported = [0];
        device.read(0, &mut supported);
        assert_eq!(supported, [1]);
        device.write(0, &[2]);
        assert!(heard.lock().unwrap().is_empty());
        device.write(0, &[1]);
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::Panicked]);
    }
}
