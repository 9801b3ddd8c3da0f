//! The virtio-over-MMIO transport, version 2 (virtio 1.2, 4.2).

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::VirtQueue;
use super::{Activation, VirtioDevice, feature};
use crate::Memory;
use crate::bus::BusDevice;
use crate::interrupt::{IrqLine, VirtioInterrupt};
use crate::reactor::{Handle, WorkerId};

/// Bytes of address space one device takes.
pub const REGION_SIZE: u64 = 0x1000;

/// Register offsets (virtio 1.2, 4.2.2, table 4.1).
pub mod register {
    #![allow(missing_docs)] // The names are the specification's.
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    #![allow(missing_docs)] // The names are the specification's.
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// The moves of the status register that a driver may make, each adding one bit (virtio 1.2, 3.1.1).
const LEGAL_MOVES: [(u32, u32); 4] = {
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
    [
        (0, ACKNOWLEDGE),
        (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
    ]
};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");

/// A virtio device on the MMIO bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    reactor: Handle,
    interrupt: Arc<VirtioInterrupt>,
    kicks: Vec<EventFd>,
    rings: Vec<Ring>,
    worker: Option<WorkerId>,
    status: u32,
    queue_sel: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
}

/// What the driver has said of a queue so far.
struct Ring {
    queue: Queue,
    /// The driver named a size that the queue cannot have.
    bad_size: bool,
}

impl MmioTransport {
    /// Puts `device` behind a transport whose interrupts go to `line`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        reactor: Handle,
        line: IrqLine,
    ) -> io::Result<Self> {
        let kicks =
            device.queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        let mut transport = Self {
            interrupt: Arc::new(VirtioInterrupt::new(line)),
            rings: Vec::new(),
            kicks,
            device,
            memory,
            reactor,
            worker: None,
            status: 0,
            queue_sel: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
        };
        transport.rings = transport.fresh_rings()?;
        Ok(transport)
    }

    /// The device behind the transport.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// One event per queue, signalled by a write of the queue's index to `QueueNotify`. The machine binds
    /// them (ioeventfd) so that a kick needs no exit to user space.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Arc<VirtioInterrupt> {
        &self.interrupt
    }

    fn fresh_rings(&self) -> io::Result<Vec<Ring>> {
        let ring = |&size| {
            let queue = Queue::new(size).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            Ok(Ring { queue, bad_size: false })
        };
        self.device.queue_sizes().iter().map(ring).collect()
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn read_register(&self, offset: u64) -> u32 {
        use register as r;
        let ring = self.rings.get(self.queue_sel as usize);
        match offset {
            r::MAGIC_VALUE => MAGIC,
            r::VERSION => VERSION,
            r::DEVICE_ID => self.device.kind() as u32,
            r::VENDOR_ID => VENDOR,
            r::DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            r::QUEUE_NUM_MAX => ring.map_or(0, |ring| u32::from(ring.queue.max_size())),
            r::QUEUE_READY => ring.map_or(0, |ring| u32::from(ring.queue.ready())),
            r::INTERRUPT_STATUS => self.interrupt.status(),
            r::STATUS if self.interrupt.is_reset_needed() => self.status | status::NEEDS_RESET,
            r::STATUS => self.status,
            // "If the shared memory region does not exist, reads return -1" (4.2.2): none does.
            r::SHM_LEN_LOW..=r::SHM_BASE_HIGH => u32::MAX,
            r::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        use register as r;
        match offset {
            r::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            r::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            r::DRIVER_FEATURES => self.set_driver_features(value),
            r::QUEUE_SEL => self.queue_sel = value,
            // Reached only where no ioeventfd answers in the kernel.
            r::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            r::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            r::STATUS => self.set_status(value),
            r::QUEUE_NUM..=r::QUEUE_DEVICE_HIGH => self.configure_queue(offset, value),
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        // Features are frozen by FEATURES_OK (3.1.1).
        if self.status & status::FEATURES_OK != 0 || self.driver_features_sel > 1 {
            return;
        }
        let shift = 32 * self.driver_features_sel;
        self.driver_features &= !(0xffff_ffff << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn configure_queue(&mut self, offset: u64, value: u32) {
        use register as r;
        // Queues are set up between FEATURES_OK and DRIVER_OK (3.1.1, step 7).
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let Some(ring) = self.rings.get_mut(self.queue_sel as usize) else { return };
        match offset {
            r::QUEUE_READY => {
                ring.queue.set_event_idx(event_idx);
                ring.queue.set_ready(value == 1);
            }
            // "The driver MUST NOT write to configuration fields of an enabled queue" (4.2.2.2).
            _ if ring.queue.ready() => {}
            r::QUEUE_NUM => {
                ring.bad_size =
                    u16::try_from(value).map_or(true, |size| ring.queue.try_set_size(size).is_err());
            }
            r::QUEUE_DESC_LOW => ring.queue.set_desc_table_address(Some(value), None),
            r::QUEUE_DESC_HIGH => ring.queue.set_desc_table_address(None, Some(value)),
            r::QUEUE_DRIVER_LOW => ring.queue.set_avail_ring_address(Some(value), None),
            r::QUEUE_DRIVER_HIGH => ring.queue.set_avail_ring_address(None, Some(value)),
            r::QUEUE_DEVICE_LOW => ring.queue.set_used_ring_address(Some(value), None),
            r::QUEUE_DEVICE_HIGH => ring.queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        if value & status::FAILED != 0 {
            self.status |= status::FAILED;
            return;
        }
        if !LEGAL_MOVES.contains(&(self.status, value)) {
            return;
        }
        match value & !self.status {
            // Leaving the bit unset is how a device refuses the features (3.1.1, step 6).
            status::FEATURES_OK if !self.features_acceptable() => {}
            status::DRIVER_OK => {
                self.status = value;
                self.activate();
            }
            _ => self.status = value,
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & feature::VERSION_1 != 0 && self.driver_features & !self.offered_features() == 0
    }

    fn activate(&mut self) {
        let usable =
            |ring: &Ring| !ring.queue.ready() || (!ring.bad_size && addresses_valid(ring, &self.memory));
        if !self.rings.iter().all(usable) {
            self.interrupt.needs_reset();
            return;
        }
        let result = self.start_worker();
        if result.is_err() {
            // Nobody but the driver can do anything about it: it sees the device as broken and may reset it.
            self.interrupt.needs_reset();
        }
    }

    fn start_worker(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let fresh = self.fresh_rings()?;
        let rings = std::mem::replace(&mut self.rings, fresh);
        let mut queues = Vec::with_capacity(rings.len());
        for (index, (ring, kick)) in rings.into_iter().zip(&self.kicks).enumerate() {
            let memory = Arc::clone(&self.memory);
            let interrupt = Arc::clone(&self.interrupt);
            // What drivers can still read of an active queue.
            self.rings[index].queue.set_ready(ring.queue.ready());
            queues.push(VirtQueue::new(index, ring.queue, memory, kick.try_clone()?, interrupt));
        }
        let worker = self.device.activate(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            features: self.driver_features,
            interrupt: Arc::clone(&self.interrupt),
        })?;
        self.worker = Some(self.reactor.add(worker)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            // Fails only while the whole machine goes down. The rings start afresh in any case.
            let _ = self.reactor.remove(worker);
        }
        for (ring, max) in self.rings.iter_mut().zip(self.device.queue_sizes()) {
            ring.queue.reset();
            ring.queue.set_size(*max);
            ring.bad_size = false;
        }
        for kick in &self.kicks {
            let _ = kick.read();
        }
        self.interrupt.reset();
        self.status = 0;
        self.queue_sel = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            self.device.read_config(offset - register::CONFIG, data);
        } else if let Ok(bytes) = <&mut [u8; 4]>::try_from(&mut *data) {
            // "The driver MUST only use 32 bit wide and aligned reads" (4.2.2.2).
            *bytes = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            // Drivers write configuration space only after FEATURES_OK or while probing legacy devices.
            if self.status & status::DRIVER != 0 {
                self.device.write_config(offset - register::CONFIG, data);
            }
        } else if let Ok(bytes) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

/// The low (0) or high (1) half of a feature word; nothing beyond.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Whether the three parts of a ring are aligned (virtio 1.2, 2.7) and lie in guest memory. The queue refuses
/// misaligned addresses when they are set; what stays is checked against memory here.
fn addresses_valid(ring: &Ring, memory: &Memory) -> bool {
    let zero = GuestAddress(0).0;
    // The defaults of a queue that was enabled without addresses.
    ring.queue.desc_table() != zero && ring.queue.is_valid(&**memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::Reactor;
    use crate::testkit::{self, EchoDevice};

    fn read(transport: &mut MmioTransport, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(transport: &mut MmioTransport, offset: u64, value: u32) {
        transport.write(offset, &value.to_le_bytes());
    }

    fn transport() -> (MmioTransport, Reactor) {
        let reactor = Reactor::new().unwrap();
        let transport = MmioTransport::new(
            Box::new(EchoDevice),
            testkit::memory(),
            reactor.handle(),
            IrqLine::new().unwrap(),
        );
        (transport.unwrap(), reactor)
    }

    fn negotiate(transport: &mut MmioTransport) {
        write(transport, register::STATUS, status::ACKNOWLEDGE);
        write(transport, register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        write(transport, register::DRIVER_FEATURES_SEL, 1);
        write(transport, register::DRIVER_FEATURES, (feature::VERSION_1 >> 32) as u32);
        write(transport, register::STATUS, 11);
    }

    #[test]
    fn identifies_itself() {
        let (mut t, _reactor) = transport();
        assert_eq!(read(&mut t, register::MAGIC_VALUE), 0x7472_6976);
        assert_eq!(read(&mut t, register::VERSION), 2);
        assert_eq!(read(&mut t, register::DEVICE_ID), 4);
        write(&mut t, register::DEVICE_FEATURES_SEL, 1);
        assert_eq!(read(&mut t, register::DEVICE_FEATURES), 1);
        write(&mut t, register::DEVICE_FEATURES_SEL, 2);
        assert_eq!(read(&mut t, register::DEVICE_FEATURES), 0);
        assert_eq!(read(&mut t, register::SHM_LEN_LOW), u32::MAX);
        let mut byte = [1];
        t.read(register::MAGIC_VALUE, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn status_moves_only_along_the_specified_path() {
        let (mut t, _reactor) = transport();
        for value in [2, 3, 4, 8, 11, 15, 0x10] {
            write(&mut t, register::STATUS, value);
            assert_eq!(read(&mut t, register::STATUS), 0, "status {value} accepted from reset");
        }
        negotiate(&mut t);
        assert_eq!(read(&mut t, register::STATUS), 11);
        write(&mut t, register::STATUS, 0);
        assert_eq!(read(&mut t, register::STATUS), 0);
    }

    #[test]
    fn features_not_offered_are_refused() {
        let (mut t, _reactor) = transport();
        write(&mut t, register::STATUS, 1);
        write(&mut t, register::STATUS, 3);
        write(&mut t, register::STATUS, 11);
        assert_eq!(read(&mut t, register::STATUS), 3, "VERSION_1 is compulsory");
        write(&mut t, register::DRIVER_FEATURES_SEL, 1);
        write(&mut t, register::DRIVER_FEATURES, 0x8000_0001);
        write(&mut t, register::STATUS, 11);
        assert_eq!(read(&mut t, register::STATUS), 3, "bit 63 was not offered");
    }

    #[test]
    fn queues_outside_memory_need_a_reset_and_get_one() {
        let (mut t, _reactor) = transport();
        negotiate(&mut t);
        write(&mut t, register::QUEUE_DESC_LOW, 0xffff_f000);
        write(&mut t, register::QUEUE_DRIVER_LOW, 0x1000);
        write(&mut t, register::QUEUE_DEVICE_LOW, 0x2000);
        write(&mut t, register::QUEUE_NUM, 8);
        write(&mut t, register::QUEUE_READY, 1);
        assert_eq!(read(&mut t, register::QUEUE_READY), 1);
        write(&mut t, register::STATUS, 15);
        assert_eq!(read(&mut t, register::STATUS), 15 | status::NEEDS_RESET);
        assert_eq!(read(&mut t, register::INTERRUPT_STATUS), VirtioInterrupt::CONFIG);
        write(&mut t, register::STATUS, 0);
        assert_eq!(read(&mut t, register::STATUS), 0);
        assert_eq!(read(&mut t, register::INTERRUPT_STATUS), 0);
    }

    #[test]
    fn bad_queue_sizes_are_not_activated() {
        for size in [0, 3, 512, 65536] {
            let (mut t, _reactor) = transport();
            negotiate(&mut t);
            write(&mut t, register::QUEUE_NUM, size);
            write(&mut t, register::QUEUE_DESC_LOW, 0x1000);
            write(&mut t, register::QUEUE_DRIVER_LOW, 0x2000);
            write(&mut t, register::QUEUE_DEVICE_LOW, 0x3000);
            write(&mut t, register::QUEUE_READY, 1);
            write(&mut t, register::STATUS, 15);
            assert_ne!(read(&mut t, register::STATUS) & status::NEEDS_RESET, 0, "size {size}");
        }
    }

    #[test]
    fn queue_that_does_not_exist_has_no_size() {
        let (mut t, _reactor) = transport();
        write(&mut t, register::QUEUE_SEL, 7);
        assert_eq!(read(&mut t, register::QUEUE_NUM_MAX), 0);
        write(&mut t, register::QUEUE_READY, 1);
        assert_eq!(read(&mut t, register::QUEUE_READY), 0);
    }

    #[test]
    fn activates_works_and_resets_through_the_loop() {
        let (mut t, mut reactor) = transport();
        let handle = reactor.handle();
        let memory = Arc::clone(&t.memory);
        let driver = std::thread::spawn(move || {
            for _ in 0..2 {
                negotiate(&mut t);
                let mut ring = testkit::Driver::new(&memory, 0x1000, 8);
                ring.configure(|offset, value| write(&mut t, offset, value));
                write(&mut t, register::STATUS, 15);
                assert_eq!(read(&mut t, register::STATUS), 15);
                let head = ring.add(&[], &[5]);
                write(&mut t, register::QUEUE_NOTIFY, 0);
                assert_eq!(ring.wait_used(), (head, 5));
                assert_eq!(read(&mut t, register::INTERRUPT_STATUS), VirtioInterrupt::USED);
                write(&mut t, register::INTERRUPT_ACK, VirtioInterrupt::USED);
                assert_eq!(read(&mut t, register::INTERRUPT_STATUS), 0);
                write(&mut t, register::STATUS, 0);
            }
            handle.stop();
        });
        reactor.run().unwrap();
        driver.join().unwrap();
    }
}
