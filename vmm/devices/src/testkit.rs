//! Plays the guest: a driver that lays rings and buffers out in ordinary memory, so that a device is
//! exercised whole without a hypervisor.
//!
//! Buffers are placed with gaps between them, which catches devices that take scattered memory for
//! contiguous.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Memory;
use crate::interrupt::{IrqLine, VirtioInterrupt};
use crate::reactor::{Reactor, Worker, WorkerId};
use crate::virtio::mmio::register;
use crate::virtio::queue::{Flow, Segment, VirtQueue};
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice, feature};

/// Bytes of guest memory that [`memory`] makes.
pub const MEMORY_SIZE: usize = 16 << 20;

/// How long [`Driver::wait_used`] waits before it gives up on a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// Descriptor flags (virtio 1.2, 2.7.5).
pub mod descriptor {
    #![allow(missing_docs)] // The names are the specification's.
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// Guest memory of [`MEMORY_SIZE`] bytes at address 0.
pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("anonymous memory"))
}

/// The driver's side of one split virtqueue.
pub struct Driver {
    memory: Memory,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
    next_buffer: u64,
    writable: HashMap<u16, Vec<Segment>>,
}

impl Driver {
    /// A queue of `size` entries whose rings start at `base`. Buffers follow, up to 1 MiB after `base`.
    pub fn new(memory: &Memory, base: u64, size: u16) -> Self {
        let descriptors = base;
        let available = descriptors + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        memory
            .write_slice(&vec![0; (used - base) as usize + 6 + 8 * usize::from(size)], GuestAddress(base))
            .expect("rings lie in memory");
        Self {
            memory: Arc::clone(memory),
            size,
            descriptors,
            available,
            used,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
            next_buffer: (used + 6 + 8 * u64::from(size)).next_multiple_of(0x1000),
            writable: HashMap::new(),
        }
    }

    /// Writes the queue's place and size to a transport's registers and enables it.
    pub fn configure(&self, mut write: impl FnMut(u64, u32)) {
        write(register::QUEUE_NUM, u32::from(self.size));
        write(register::QUEUE_DESC_LOW, self.descriptors as u32);
        write(register::QUEUE_DESC_HIGH, (self.descriptors >> 32) as u32);
        write(register::QUEUE_DRIVER_LOW, self.available as u32);
        write(register::QUEUE_DRIVER_HIGH, (self.available >> 32) as u32);
        write(register::QUEUE_DEVICE_LOW, self.used as u32);
        write(register::QUEUE_DEVICE_HIGH, (self.used >> 32) as u32);
        write(register::QUEUE_READY, 1);
    }

    /// The device's side of the same queue, as a transport would hand it over.
    pub fn device_queue(&self, index: usize, event_idx: bool, interrupt: &Arc<VirtioInterrupt>) -> VirtQueue {
        let mut ring = Queue::new(self.size).expect("a valid size");
        ring.set_desc_table_address(Some(self.descriptors as u32), Some(0));
        ring.set_avail_ring_address(Some(self.available as u32), Some(0));
        ring.set_used_ring_address(Some(self.used as u32), Some(0));
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        let kick = EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        VirtQueue::new(index, ring, Arc::clone(&self.memory), kick, Arc::clone(interrupt))
    }

    /// Places `data` somewhere in memory.
    pub fn place(&mut self, data: &[u8]) -> Segment {
        let address = GuestAddress(self.next_buffer);
        self.memory.write_slice(data, address).expect("room for buffers");
        // An odd gap, so that neighbours neither touch nor share an alignment.
        self.next_buffer += data.len() as u64 + 13;
        Segment { address, len: data.len() as u32 }
    }

    /// Makes a chain available: buffers the device reads, then buffers of these sizes that it writes.
    pub fn add(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let segments = self.place_all(readable, writable);
        let head = self.next_descriptor;
        let count = segments.len() as u16;
        for (i, (segment, flags)) in segments.iter().enumerate() {
            let more = if i + 1 < segments.len() { descriptor::NEXT } else { 0 };
            let index = (head + i as u16) % self.size;
            self.set_descriptor(index, segment.address.0, segment.len, flags | more, (index + 1) % self.size);
        }
        self.next_descriptor = (head + count) % self.size;
        self.finish(head, &segments)
    }

    /// The same through an indirect table (virtio 1.2, 2.7.5.3).
    pub fn add_indirect(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let segments = self.place_all(readable, writable);
        let mut table = Vec::new();
        for (i, (segment, flags)) in segments.iter().enumerate() {
            let more = if i + 1 < segments.len() { descriptor::NEXT } else { 0 };
            table.extend(raw_descriptor(segment.address.0, segment.len, flags | more, i as u16 + 1));
        }
        let table = self.place(&table);
        let head = self.next_descriptor;
        self.set_descriptor(head, table.address.0, table.len, descriptor::INDIRECT, 0);
        self.next_descriptor = (head + 1) % self.size;
        self.finish(head, &segments)
    }

    /// Writes one entry of the descriptor table, as wrong as the caller likes.
    pub fn set_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let entry = GuestAddress(self.descriptors + 16 * u64::from(index));
        self.memory.write_slice(&raw_descriptor(address, len, flags, next), entry).expect("a table entry");
    }

    /// Puts `head` on the available ring.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).expect("the available ring");
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    /// Sets the available ring's index, as wrong as the caller likes.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        let address = GuestAddress(self.available + 2);
        self.memory.store(index, address, Ordering::Release).expect("the available ring");
    }

    /// The next used chain: its head and the bytes written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).expect("the used ring");
        if index == self.next_used {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).expect("the used ring");
        let len = self.memory.read_obj(GuestAddress(slot + 4)).expect("the used ring");
        self.next_used = self.next_used.wrapping_add(1);
        Some((head as u16, len))
    }

    /// Waits for a device that works on another thread.
    ///
    /// # Panics
    /// When the device is not done in 10 seconds.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "the device used no buffer in {PATIENCE:?}");
            std::thread::yield_now();
        }
    }

    /// The writable part of a chain, whole.
    pub fn written(&self, head: u16) -> Vec<u8> {
        let mut data = Vec::new();
        for segment in self.writable.get(&head).into_iter().flatten() {
            let start = data.len();
            data.resize(start + segment.len as usize, 0);
            self.memory.read_slice(&mut data[start..], segment.address).expect("a buffer in memory");
        }
        data
    }

    fn place_all(&mut self, readable: &[&[u8]], writable: &[u32]) -> Vec<(Segment, u16)> {
        let mut segments: Vec<_> = readable.iter().map(|data| (self.place(data), 0)).collect();
        for &len in writable {
            segments.push((self.place(&vec![0; len as usize]), descriptor::WRITE));
        }
        segments
    }

    fn finish(&mut self, head: u16, segments: &[(Segment, u16)]) -> u16 {
        let writable = segments.iter().filter(|(_, flags)| *flags == descriptor::WRITE);
        self.writable.insert(head, writable.map(|(segment, _)| *segment).collect());
        self.make_available(head);
        head
    }
}

fn raw_descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}

/// An interrupt that goes nowhere; look at [`VirtioInterrupt::status`].
pub fn interrupt() -> Arc<VirtioInterrupt> {
    Arc::new(VirtioInterrupt::new(IrqLine::new().expect("an event descriptor")))
}

/// A device with its queues inside an event loop, as if its driver had just set `DRIVER_OK`.
pub struct Harness {
    /// Guest memory.
    pub memory: Memory,
    /// The driver's side of each queue.
    pub drivers: Vec<Driver>,
    /// The device's interrupt.
    pub interrupt: Arc<VirtioInterrupt>,
    kicks: Vec<EventFd>,
    worker: WorkerId,
    reactor: Reactor,
}

impl Harness {
    /// Activates `device` with `features`, each queue at its largest size.
    ///
    /// # Panics
    /// When the device cannot be activated.
    pub fn new(device: &mut dyn VirtioDevice, features: u64) -> Self {
        let memory = memory();
        let interrupt = interrupt();
        let sizes = device.queue_sizes().to_vec();
        let drivers: Vec<_> =
            (1..).zip(&sizes).map(|(i, size)| Driver::new(&memory, i << 20, *size)).collect();
        let event_idx = features & feature::EVENT_IDX != 0;
        let queues: Vec<_> =
            drivers.iter().enumerate().map(|(i, d)| d.device_queue(i, event_idx, &interrupt)).collect();
        let kicks = queues.iter().map(|q| q.kick().try_clone().expect("an event descriptor")).collect();
        let activation =
            Activation { memory: Arc::clone(&memory), queues, features, interrupt: Arc::clone(&interrupt) };
        let mut reactor = Reactor::new().expect("an event loop");
        let worker = reactor.add_worker(device.activate(activation).expect("a device that starts"));
        Self { memory, drivers, interrupt, kicks, worker, reactor }
    }

    /// Kicks queue `index`, as a write to `QueueNotify` does.
    pub fn kick(&self, index: usize) {
        self.kicks[index].write(1).expect("an event descriptor");
    }

    /// Lets the device handle what becomes ready within `milliseconds`; tells whether anything did.
    pub fn run(&mut self, milliseconds: i32) -> bool {
        self.reactor.run_once(milliseconds).expect("an event loop") > 0
    }

    /// Kicks queue `index` and runs the device until that queue has a used chain.
    ///
    /// # Panics
    /// When that takes more than 10 seconds.
    pub fn complete(&mut self, index: usize) -> (u16, u32) {
        self.kick(index);
        let start = Instant::now();
        loop {
            if let Some(used) = self.drivers[index].used() {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "the device used no buffer in {PATIENCE:?}");
            self.run(50);
        }
    }

    /// Resets the device: ends its work and takes the queues back.
    ///
    /// # Panics
    /// When the worker is gone from the loop.
    pub fn stop(mut self) -> Vec<VirtQueue> {
        self.reactor.remove_worker(self.worker).expect("a worker in the loop")
    }
}

/// The smallest device there is: it fills what it is given. It stands in where a transport is tested.
pub struct EchoDevice;

impl VirtioDevice for EchoDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(EchoWorker(activation.queues.remove(0))))
    }
}

struct EchoWorker(VirtQueue);

impl MutEventSubscriber for EchoWorker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.0.clear_kick();
        let drained = self.0.drain(|queue, chain| {
            let len = chain.write_at(0, &vec![b'!'; chain.writable_len() as usize]);
            queue.push(chain.head(), len as u32)?;
            Ok(Flow::Continue)
        });
        if drained.is_err() {
            self.0.fail();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(self.0.kick(), EventSet::IN)).expect("an event loop");
    }
}

impl Worker for EchoWorker {
    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        vec![self.0]
    }
}
