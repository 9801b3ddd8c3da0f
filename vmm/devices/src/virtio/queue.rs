//! One virtqueue in the hands of its device: the ring, its notifications, and checked descriptor chains.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::Memory;
use crate::interrupt::VirtioInterrupt;

/// The driver broke a rule that leaves the ring unusable until the device is reset.
#[derive(Debug, thiserror::Error)]
#[error("virtqueue {index} is broken")]
pub struct BrokenQueue {
    /// Which queue of its device.
    pub index: usize,
    /// What was wrong.
    pub source: virtio_queue::Error,
}

/// A buffer inside guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Length in bytes, never zero.
    pub len: u32,
}

/// A descriptor chain, copied off the ring and checked as a whole: every segment lies in guest memory, what
/// the device may read comes before what it may write (virtio 1.2, 2.7.4.2), and the chain ends properly.
/// The guest can change the descriptors afterwards without effect.
#[derive(Debug)]
pub struct Chain {
    memory: Memory,
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    malformed: bool,
}

impl Chain {
    /// The index that names the chain on the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Whether the chain broke a rule. What could be made sense of before that is kept, so that a device can
    /// still report an error in the place its protocol has for it.
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }

    /// What the device may read.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Bytes the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Copies bytes from the readable part, starting `offset` bytes in. Returns how many there were.
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices(&self.readable, offset, data.len() as u64) {
            slice.copy_to(&mut data[done..done + slice.len()]);
            done += slice.len();
        }
        done
    }

    /// Copies bytes into the writable part, starting `offset` bytes in. Returns how many fitted.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices(&self.writable, offset, data.len() as u64) {
            slice.copy_from(&data[done..done + slice.len()]);
            done += slice.len();
        }
        done
    }

    /// The readable bytes `offset..offset + len` as they lie in memory, cut off at the chain's end.
    pub fn readable_slices(&self, offset: u64, len: u64) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.slices(&self.readable, offset, len)
    }

    /// The writable bytes `offset..offset + len` as they lie in memory, cut off at the chain's end.
    pub fn writable_slices(&self, offset: u64, len: u64) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.slices(&self.writable, offset, len)
    }

    fn slices<'a>(
        &'a self,
        segments: &'a [Segment],
        mut offset: u64,
        mut len: u64,
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        segments.iter().filter_map(move |segment| {
            let skip = offset.min(u64::from(segment.len));
            offset -= skip;
            let take = len.min(u64::from(segment.len) - skip);
            len -= take;
            if take == 0 {
                return None;
            }
            let address = GuestAddress(segment.address.0 + skip);
            // The segment was checked when the chain was made, and guest memory never shrinks.
            self.memory.get_slice(address, take as usize).ok()
        })
    }
}

/// A virtqueue that a driver has configured.
pub struct VirtQueue {
    index: usize,
    ring: Queue,
    memory: Memory,
    kick: EventFd,
    interrupt: Arc<VirtioInterrupt>,
}

impl VirtQueue {
    /// Takes charge of `ring`, whose addresses the transport has checked.
    pub fn new(
        index: usize,
        ring: Queue,
        memory: Memory,
        kick: EventFd,
        interrupt: Arc<VirtioInterrupt>,
    ) -> Self {
        Self { index, ring, memory, kick, interrupt }
    }

    /// Signalled when the driver made buffers available.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Forgets a pending kick. Called before the ring is looked at, so that none is lost.
    pub fn clear_kick(&self) {
        // EAGAIN only: somebody else was quicker, or the event was spurious.
        let _ = self.kick.read();
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The next chain the driver made available, if any.
    pub fn pop(&mut self) -> Result<Option<Chain>, BrokenQueue> {
        if !self.ring.ready() {
            return Ok(None);
        }
        let size = self.ring.size();
        let next = match self.ring.iter(&*self.memory) {
            Ok(mut available) => available.next(),
            Err(source) => return Err(BrokenQueue { index: self.index, source }),
        };
        let Some(descriptors) = next else { return Ok(None) };
        let mut chain = Chain {
            memory: Arc::clone(&self.memory),
            head: descriptors.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
            malformed: false,
        };
        if chain.head >= size {
            let source = virtio_queue::Error::InvalidDescriptorIndex;
            return Err(BrokenQueue { index: self.index, source });
        }
        // An iterator that stops on a descriptor that names a successor has met one it could not follow.
        let mut open = true;
        for descriptor in descriptors {
            open = descriptor.has_next();
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
            let in_memory =
                segment.len != 0 && self.memory.check_range(segment.address, segment.len as usize);
            let in_order = descriptor.is_write_only() || chain.writable.is_empty();
            if !in_memory || !in_order {
                chain.malformed = true;
                return Ok(Some(chain));
            }
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else {
                chain.readable.push(segment);
            }
        }
        chain.malformed = open;
        Ok(Some(chain))
    }

    /// Puts a chain back that [`pop`](Self::pop) has just returned, to be taken again later.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Returns a chain to the driver, `written` bytes of it filled.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), BrokenQueue> {
        self.ring.add_used(&*self.memory, head, written).map_err(|source| self.broken(source))
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the last call.
    pub fn notify(&mut self) -> Result<(), BrokenQueue> {
        if self.ring.needs_notification(&*self.memory).map_err(|source| self.broken(source))? {
            self.interrupt.used();
        }
        Ok(())
    }

    /// Asks the driver to kick again, and tells whether something became available in between: the caller
    /// then has to look at the ring once more, since no kick will come for it.
    pub fn enable_kicks(&mut self) -> Result<bool, BrokenQueue> {
        if !self.ring.ready() {
            return Ok(false);
        }
        self.ring.enable_notification(&*self.memory).map_err(|source| self.broken(source))
    }

    /// Asks the driver not to kick while the device is looking at the ring anyway.
    pub fn disable_kicks(&mut self) -> Result<(), BrokenQueue> {
        if !self.ring.ready() {
            return Ok(());
        }
        self.ring.disable_notification(&*self.memory).map_err(|source| self.broken(source))
    }

    /// Handles what is available: `handle` gets each chain and says whether to go on. Kicks are off meanwhile,
    /// and nothing that arrives late is missed. After one ring's worth of chains the queue kicks itself and
    /// returns, so that a driver that never stops adding cannot keep the loop from other devices.
    pub fn drain(
        &mut self,
        mut handle: impl FnMut(&mut Self, Chain) -> Result<Flow, BrokenQueue>,
    ) -> Result<(), BrokenQueue> {
        let mut budget = self.ring.size();
        loop {
            self.disable_kicks()?;
            while let Some(chain) = self.pop()? {
                if handle(self, chain)? == Flow::Stop {
                    return self.notify();
                }
                budget -= 1;
                if budget == 0 {
                    // Fails only if a kick is pending already.
                    let _ = self.kick.write(1);
                    return self.notify();
                }
            }
            if !self.enable_kicks()? {
                return self.notify();
            }
        }
    }

    /// Ends the device's use of the ring after the driver broke it: the driver learns that only a reset helps
    /// (virtio 1.2, 2.1.2).
    pub fn fail(&mut self) {
        self.ring.set_ready(false);
        self.interrupt.needs_reset();
    }

    fn broken(&self, source: virtio_queue::Error) -> BrokenQueue {
        BrokenQueue { index: self.index, source }
    }
}

/// What [`VirtQueue::drain`] does after a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Take the next one.
    Continue,
    /// Leave the rest on the ring: the device can take no more now, and will come back by itself.
    Stop,
}
