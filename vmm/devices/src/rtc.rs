//! The clock of a PC (Motorola MC146818): what a stock kernel reads the date from when nothing better tells it.
//!
//! It tells the host's time in UTC, as BCD digits, 24 hours a day. It has no interrupts: no alarm, no periodic tick.
//! What a guest writes to the time is dropped, so that a guest's clock is wrong only for the guest itself.

use std::ops::Range;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::bus::BusDevice;

/// Index port 0x70 and data port 0x71.
pub const PORTS: Range<u64> = 0x70..0x72;
const INDEX: u64 = 0;
const DATA: u64 = 1;

/// The index port's top bit masks non-maskable interrupts and is not part of the index.
const INDEX_MASK: u8 = 0x7f;

/// Register A: the divider runs at 32768 Hz; the bit that says "update in progress" is never set, since a reading
/// of the host's clock is always whole.
const STATUS_A: u8 = 0x20;
/// Register B: 24 hours.
const STATUS_B: u8 = 1 << 1;
/// Register D: the battery holds.
const STATUS_D: u8 = 1 << 7;

mod register {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const DAY_OF_WEEK: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// The clock.
pub struct Rtc {
    now: fn() -> OffsetDateTime,
    index: u8,
    /// The registers that only remember: alarm and battery-backed memory.
    memory: [u8; INDEX_MASK as usize + 1],
}

impl Default for Rtc {
    fn default() -> Self {
        Self { now: || SystemTime::now().into(), index: 0, memory: [0; INDEX_MASK as usize + 1] }
    }
}

impl Rtc {
    fn register(&self) -> u8 {
        let now = (self.now)();
        match self.index {
            register::SECONDS => bcd(now.second()),
            register::MINUTES => bcd(now.minute()),
            register::HOURS => bcd(now.hour()),
            register::DAY_OF_WEEK => now.weekday().number_from_sunday(),
            register::DAY => bcd(now.day()),
            register::MONTH => bcd(now.month().into()),
            register::YEAR => bcd(now.year().rem_euclid(100) as u8),
            register::CENTURY => bcd(now.year().div_euclid(100) as u8),
            register::A => STATUS_A,
            register::B => STATUS_B,
            register::C => 0,
            register::D => STATUS_D,
            other => self.memory[usize::from(other)],
        }
    }
}

/// Two decimal digits.
fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // An access wider than a register finds nothing behind the second port.
        data.fill(0xff);
        if offset == DATA
            && let Some(byte) = data.first_mut()
        {
            *byte = self.register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (INDEX, [index]) => self.index = index & INDEX_MASK,
            (INDEX, [index, value]) => {
                self.index = index & INDEX_MASK;
                self.memory[usize::from(self.index)] = *value;
            }
            (DATA, [value]) => self.memory[usize::from(self.index)] = *value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2028-02-29, 23:59:58 UTC, a Tuesday.
    fn leap_day() -> Rtc {
        Rtc { now: || OffsetDateTime::from_unix_timestamp(1_835_481_598).unwrap(), ..Rtc::default() }
    }

    fn read(rtc: &mut Rtc, register: u8) -> u8 {
        let mut byte = [0];
        rtc.write(INDEX, &[register]);
        rtc.read(DATA, &mut byte);
        byte[0]
    }

    #[test]
    fn it_tells_the_date_in_decimal_digits() {
        let mut rtc = leap_day();
        let date = [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|register| read(&mut rtc, register));
        assert_eq!(date, [0x20, 0x28, 0x02, 0x29, 3, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn it_is_never_busy_and_its_battery_holds() {
        let mut rtc = Rtc::default();
        assert_eq!(read(&mut rtc, register::A) & 0x80, 0);
        assert_eq!(read(&mut rtc, register::B) & 0x76, 0x02, "24 hours, decimal digits, no interrupts");
        assert_eq!(read(&mut rtc, register::D), 0x80);
    }

    #[test]
    fn the_mask_of_interrupts_is_no_part_of_the_index() {
        assert_eq!(read(&mut leap_day(), 0x80 | register::DAY), 0x29);
    }

    #[test]
    fn memory_remembers_and_time_does_not() {
        let mut rtc = leap_day();
        for register in [0x01, 0x40, 0x7f, register::SECONDS] {
            rtc.write(INDEX, &[register]);
            rtc.write(DATA, &[0x11]);
        }
        let kept = [0x01, 0x40, 0x7f, register::SECONDS].map(|register| read(&mut rtc, register));
        assert_eq!(kept, [0x11, 0x11, 0x11, 0x58]);
    }

    #[test]
    fn odd_accesses_reach_nothing() {
        let mut rtc = leap_day();
        let mut data = [0; 4];
        rtc.read(INDEX, &mut data);
        assert_eq!(data, [0xff; 4]);
        rtc.write(INDEX, &[0; 8]);
        rtc.write(DATA, &[]);
        rtc.read(DATA, &mut []);
    }
}
