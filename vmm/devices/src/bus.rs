//! An address space of devices: one for port I/O, one for MMIO.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A device that answers reads and writes in a range of addresses.
///
/// `offset` counts from the start of the range the device was registered with; the bus guarantees that
/// `offset + data.len()` does not pass its end.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as buses and their owners share it. vCPU threads lock it for one access at a time.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Two devices claimed the same address.
#[derive(Debug, thiserror::Error)]
#[error("device range {new:#x?} overlaps {old:#x?}")]
pub struct Overlap {
    /// The range that was to be added.
    pub new: Range<u64>,
    /// The range that stood there already.
    pub old: Range<u64>,
}

/// Ranges of addresses and the devices behind them. Filled before the vCPUs start, only read after.
#[derive(Default)]
pub struct Bus {
    /// Keyed by first address; ranges never overlap.
    ranges: BTreeMap<u64, (u64, SharedDevice)>,
    misses: AtomicU64,
}

impl Bus {
    /// Puts `device` at `range`.
    pub fn insert(&mut self, range: Range<u64>, device: SharedDevice) -> Result<(), Overlap> {
        if let Some((&start, &(end, _))) = self.ranges.range(..range.end).next_back()
            && end > range.start
        {
            return Err(Overlap { new: range, old: start..end });
        }
        self.ranges.insert(range.start, (range.end, device));
        Ok(())
    }

    /// Reads at `address`. What nobody claims reads as all ones, like a bus that nothing drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        } else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            data.fill(0xff);
        }
    }

    /// Writes at `address`. What nobody claims is dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        } else {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many accesses found no device.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &SharedDevice)> {
        let (&start, (end, device)) = self.ranges.range(..=address).next_back()?;
        let last = address.checked_add(len as u64)?;
        (last <= *end).then_some((address - start, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register(u8);

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x10..0x18, Arc::new(Mutex::new(Register(1)))).unwrap();
        bus.insert(0x18..0x20, Arc::new(Mutex::new(Register(100)))).unwrap();
        bus
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut byte = [0];
        bus.read(address, &mut byte);
        byte[0]
    }

    #[test]
    fn dispatches_by_offset() {
        let bus = bus();
        assert_eq!((read(&bus, 0x10), read(&bus, 0x17), read(&bus, 0x18)), (1, 8, 100));
        bus.write(0x12, &[7]);
        assert_eq!(read(&bus, 0x10), 7);
        assert_eq!(bus.misses(), 0);
    }

    #[test]
    fn a_miss_reads_as_ones_and_is_counted() {
        let bus = bus();
        assert_eq!((read(&bus, 0xf), read(&bus, 0x20), read(&bus, u64::MAX)), (0xff, 0xff, 0xff));
        bus.write(0x20, &[1]);
        assert_eq!(bus.misses(), 4);
    }

    #[test]
    fn an_access_across_the_end_of_a_device_reaches_none() {
        let bus = bus();
        let mut data = [0; 4];
        bus.read(0x1e, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus();
        for range in [0x0..0x11, 0x17..0x18, 0x1f..0x30, 0x0..0x100, 0x11..0x12] {
            assert!(bus.insert(range, Arc::new(Mutex::new(Register(0)))).is_err());
        }
        bus.insert(0x20..0x21, Arc::new(Mutex::new(Register(0)))).unwrap();
    }
}
