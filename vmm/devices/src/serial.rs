//! The serial console: a 16550A on the ports of COM1, interrupt-driven both ways.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Serial as Uart;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::input::ConsoleInput;
use crate::interrupt::IrqLine;
use crate::output::Output;

/// The I/O ports of COM1.
pub const PORTS: Range<u64> = 0x3f8..0x400;
/// The interrupt of COM1.
pub const INTERRUPT: u32 = 4;
/// Bytes of input that may wait for the guest.
const CAPACITY: usize = 64 << 10;

/// The serial port.
pub struct Serial {
    uart: Uart<IrqLine, NoEvents, Output>,
    /// Input that the receive FIFO has no room for yet.
    waiting: VecDeque<u8>,
    room: Arc<EventFd>,
}

impl Serial {
    /// A port that interrupts on `line` and prints to `output`, which never blocks.
    pub fn new(line: IrqLine, output: Output) -> io::Result<Self> {
        let room = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { uart: Uart::new(line, output), waiting: VecDeque::new(), room })
    }

    fn input(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(CAPACITY - self.waiting.len().min(CAPACITY));
        self.waiting.extend(&data[..taken]);
        self.refill();
        taken
    }

    fn refill(&mut self) {
        while self.uart.fifo_capacity() > 0 && !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let count = front.len().min(self.uart.fifo_capacity());
            // In loopback mode the port takes nothing; the bytes then stay where they are.
            match self.uart.enqueue_raw_bytes(&front[..count]) {
                Ok(0) | Err(_) => return,
                Ok(taken) => drop(self.waiting.drain(..taken)),
            }
            if self.waiting.is_empty() {
                // Fails only where nobody has listened to very many signals.
                let _ = self.room.write(1);
            }
        }
    }
}

/// As it is shared between the bus and whoever types.
impl ConsoleInput for Mutex<Serial> {
    fn input(&self, data: &[u8]) -> usize {
        self.lock().unwrap_or_else(PoisonError::into_inner).input(data)
    }

    fn room(&self) -> Arc<EventFd> {
        Arc::clone(&self.lock().unwrap_or_else(PoisonError::into_inner).room)
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = self.uart.read(offset as u8);
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = *data {
            // Fails only where the guest loops its own output back into a full FIFO.
            let _ = self.uart.write(offset as u8, byte);
            self.refill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output;
    use std::io::Write;
    use std::time::Duration;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const DATA: u64 = 0;
    const LINE_STATUS: u64 = 5;

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_writes_reaches_the_screen_and_is_remembered() {
        let screen = Screen::default();
        let (output, thread) = output::spawn(Box::new(screen.clone())).unwrap();
        let mut serial = Serial::new(IrqLine::new().unwrap(), output.clone()).unwrap();
        assert!(!output.is_mid_line());
        serial.write(DATA, b"h");
        assert!(output.is_mid_line());
        for byte in b"ello\r\n[    1.0] Kernel panic - not syncing: no init\r\n" {
            serial.write(DATA, &[*byte]);
        }
        thread.finish(Duration::from_secs(10));
        assert!(screen.0.lock().unwrap().starts_with(b"hello\r\n["));
        assert_eq!(output.last_lines(1), ["[    1.0] Kernel panic - not syncing: no init"]);
        assert_eq!(output.panic_message().as_deref(), Some("no init"));
    }

    #[test]
    fn input_beyond_the_fifo_waits_until_the_guest_reads() {
        let (output, thread) = output::spawn(Box::new(std::io::sink())).unwrap();
        let line = IrqLine::new().unwrap();
        let mut serial = Serial::new(line.try_clone().unwrap(), output).unwrap();
        serial.write(1, &[1]); // enable the receive interrupt
        let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!(serial.input(&data), 1000);
        assert!(line.event().read().is_ok(), "no interrupt");
        let mut read_back = Vec::new();
        while read(&mut serial, LINE_STATUS) & 1 != 0 {
            read_back.push(read(&mut serial, DATA));
        }
        assert_eq!(read_back, data);
        assert!(serial.room.read().is_ok(), "nobody was told of the room");
        assert_eq!(serial.input(&vec![0; 2 * CAPACITY]), CAPACITY);
        thread.finish(Duration::from_secs(10));
    }
}
