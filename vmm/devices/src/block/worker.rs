//! The disk at work: requests off the ring, through the engine, and back.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use crate::reactor::Worker;
use crate::virtio::queue::{BrokenQueue, Chain, Flow, VirtQueue};

use super::engine::{Buffers, Completion, Engine, Operation};
use super::request::{HEADER, ID_LEN, Limits, Request, Status};
use super::{Fault, FaultSink, QUEUE_SIZE};

/// What zeroes are written from where the host can do nothing better.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Pieces of [`ZEROES`] per system call.
const ZERO_PIECES: u64 = 256;

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What is being done for a request.
enum Action {
    Read,
    Write,
    Sync,
    /// The range may keep its data if the host cannot give the space back.
    Discard,
    /// The range is to read as zeroes: in this `fallocate` mode, or by writing.
    Zero {
        mode: i32,
    },
    WriteZeroes,
}

/// A request under way. Its chain keeps guest memory mapped, so that the buffers stay valid.
struct InFlight {
    chain: Chain,
    action: Action,
    buffers: Buffers,
    /// What is left of the range on the disk, in bytes.
    offset: u64,
    len: u64,
}

pub(super) struct BlockWorker {
    // First, so that it is gone before what its operations point to.
    engine: Box<dyn Engine>,
    queue: Option<VirtQueue>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
    limits: Limits,
    /// Whether the driver asks for durability by itself (`VIRTIO_BLK_F_FLUSH`).
    write_back: bool,
    id: [u8; ID_LEN],
    faults: Option<FaultSink>,
}

impl BlockWorker {
    pub(super) fn new(
        engine: Box<dyn Engine>,
        queue: VirtQueue,
        limits: Limits,
        write_back: bool,
        id: [u8; ID_LEN],
        faults: Option<FaultSink>,
    ) -> Self {
        Self {
            engine,
            queue: Some(queue),
            slots: (0..QUEUE_SIZE).map(|_| None).collect(),
            free: (0..QUEUE_SIZE).rev().collect(),
            limits,
            write_back,
            id,
            faults,
        }
    }

    /// Takes what is on the ring, as far as there is room, and returns what is done.
    fn serve(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        let served = queue.drain(|queue, chain| self.take(queue, chain)).and_then(|()| {
            self.start();
            self.complete(&mut queue)
        });
        if served.is_err() {
            queue.fail();
        }
        self.queue = Some(queue);
    }

    fn take(&mut self, queue: &mut VirtQueue, chain: Chain) -> Result<Flow, BrokenQueue> {
        // A driver that adds more than the ring holds breaks the rules: the rest waits.
        let Some(&slot) = self.free.last() else {
            queue.undo_pop();
            return Ok(Flow::Stop);
        };
        if chain.is_malformed() || chain.writable_len() == 0 {
            // There is no place for a status.
            queue.push(chain.head(), 0)?;
            return Ok(Flow::Continue);
        }
        let request = match Request::parse(&chain, self.limits) {
            Ok(Request::GetId) => {
                let room = chain.writable_len() - 1;
                chain.write_at(0, &self.id[..ID_LEN.min(room as usize)]);
                return finish(queue, &chain, Status::Ok);
            }
            Ok(request) => request,
            Err(status) => return finish(queue, &chain, status),
        };
        let (action, buffers, offset, len) = match request {
            Request::Read { offset, len } => {
                let slices = chain.writable_slices(0, len);
                (Action::Read, slices.map(|slice| iovec(&slice)).collect(), offset, len)
            }
            Request::Write { offset, len } => {
                let slices = chain.readable_slices(HEADER, len);
                (Action::Write, slices.map(|slice| iovec(&slice)).collect(), offset, len)
            }
            Request::Flush | Request::GetId => (Action::Sync, Vec::new(), 0, 0),
            Request::Discard { offset, len } => (Action::Discard, Vec::new(), offset, len),
            Request::WriteZeroes { offset, len, unmap } => {
                let mode = if unmap { PUNCH_HOLE } else { ZERO_RANGE };
                (Action::Zero { mode }, Vec::new(), offset, len)
            }
        };
        if len == 0 && !matches!(action, Action::Sync) {
            return finish(queue, &chain, Status::Ok);
        }
        self.free.pop();
        self.slots[usize::from(slot)] =
            Some(InFlight { chain, action, buffers: Buffers(buffers), offset, len });
        if let Err(error) = self.submit(slot) {
            self.finish(queue, slot, Err(error))?;
        }
        Ok(Flow::Continue)
    }

    /// Hands the next step of a request to the engine.
    fn submit(&mut self, slot: u16) -> io::Result<()> {
        let Some(request) = &mut self.slots[usize::from(slot)] else { return Ok(()) };
        let (offset, len, durable) = (request.offset, request.len, !self.write_back);
        if matches!(request.action, Action::WriteZeroes) && request.buffers.0.is_empty() {
            request.buffers.0.extend(zeroes(len));
        }
        // Linux takes no more at a time (`UIO_MAXIOV`); the rest follows as after any short transfer.
        let (buffers, count) = (request.buffers.0.as_ptr(), request.buffers.0.len().min(1024));
        let operation = match request.action {
            Action::Read => Operation::Read { buffers, count, offset },
            Action::Write | Action::WriteZeroes => Operation::Write { buffers, count, offset, durable },
            Action::Sync => Operation::Sync,
            Action::Discard => Operation::Allocate { mode: PUNCH_HOLE, offset, len },
            Action::Zero { mode } => Operation::Allocate { mode, offset, len },
        };
        // SAFETY: the buffers stay in their slot until the completion was taken, and point into guest memory, which
        // the chain beside them keeps mapped, or to constant zeroes.
        unsafe { self.engine.submit(slot, operation) }
    }

    fn start(&mut self) {
        if self.engine.start().is_err() {
            // Short of memory for the moment: what is queued stays queued, and the loop comes back.
            let _ = self.engine.event().write(1);
        }
    }

    /// Returns finished requests to the driver, and takes the next steps of the others.
    fn complete(&mut self, queue: &mut VirtQueue) -> Result<(), BrokenQueue> {
        let mut again = false;
        loop {
            while let Some(completion) = self.engine.completed() {
                again |= self.advance(queue, completion)?;
            }
            if !std::mem::take(&mut again) {
                return queue.notify();
            }
            self.start();
        }
    }

    /// What follows a step of a request. Returns whether another was submitted.
    fn advance(&mut self, queue: &mut VirtQueue, completion: Completion) -> Result<bool, BrokenQueue> {
        let Completion { token: slot, result } = completion;
        let Some(Some(request)) = self.slots.get_mut(usize::from(slot)) else { return Ok(false) };
        let next = match (&request.action, result) {
            // The file has become shorter.
            (Action::Read | Action::Write | Action::WriteZeroes, 0) => Err(-libc::EIO),
            (Action::Read | Action::Write | Action::WriteZeroes, 1..) => {
                request.buffers.advance(result as usize);
                request.offset += result as u64;
                request.len = request.len.saturating_sub(result as u64);
                if request.len == 0 { Ok(None) } else { Ok(Some(())) }
            }
            (_, 0..) => Ok(None),
            (_, result) if result == -libc::EAGAIN || result == -libc::EINTR => Ok(Some(())),
            // Giving space back is a wish.
            (Action::Discard, result) if result == -libc::EOPNOTSUPP => Ok(None),
            (Action::Zero { mode }, result) if result == -libc::EOPNOTSUPP => {
                request.action = match *mode {
                    ZERO_RANGE => Action::Zero { mode: PUNCH_HOLE },
                    _ => Action::WriteZeroes,
                };
                Ok(Some(()))
            }
            (_, result) => Err(result),
        };
        match next {
            Ok(Some(())) => match self.submit(slot) {
                Ok(()) => return Ok(true),
                Err(error) => self.finish(queue, slot, Err(error))?,
            },
            Ok(None) => self.finish(queue, slot, Ok(()))?,
            Err(result) => self.finish(queue, slot, Err(io::Error::from_raw_os_error(-result)))?,
        }
        Ok(false)
    }

    fn finish(
        &mut self,
        queue: &mut VirtQueue,
        slot: u16,
        result: io::Result<()>,
    ) -> Result<(), BrokenQueue> {
        let Some(request) = self.slots[usize::from(slot)].take() else { return Ok(()) };
        self.free.push(slot);
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                if let Some(faults) = &self.faults {
                    let action = match request.action {
                        Action::Read => "read",
                        Action::Write => "write",
                        Action::Sync => "flush",
                        Action::Discard => "discard",
                        Action::Zero { .. } | Action::WriteZeroes => "write zeroes",
                    };
                    faults(&Fault { action, offset: request.offset, error });
                }
                Status::IoErr
            }
        };
        finish(queue, &request.chain, status).map(|_| ())
    }

    /// Waits for everything under way.
    fn quiesce(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        while self.free.len() < self.slots.len() {
            // The engine fails here only where it could never be used again, and then nothing is under way.
            if self.engine.wait().is_err() || self.complete(&mut queue).is_err() {
                break;
            }
        }
        self.queue = Some(queue);
    }
}

fn iovec(slice: &vm_memory::VolatileSlice) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

/// Buffers of zeroes for up to `len` bytes.
fn zeroes(len: u64) -> impl Iterator<Item = libc::iovec> {
    let piece = ZEROES.len() as u64;
    (0..len.div_ceil(piece).min(ZERO_PIECES)).map(move |i| libc::iovec {
        iov_base: ZEROES.as_ptr().cast_mut().cast(),
        iov_len: (len - i * piece).min(piece) as usize,
    })
}

/// Writes the status and gives the chain back.
fn finish(queue: &mut VirtQueue, chain: &Chain, status: Status) -> Result<Flow, BrokenQueue> {
    let writable = chain.writable_len();
    chain.write_at(writable - 1, &[status as u8]);
    queue.push(chain.head(), u32::try_from(writable).unwrap_or(u32::MAX))?;
    Ok(Flow::Continue)
}

impl MutEventSubscriber for BlockWorker {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.engine.event().as_raw_fd() {
            // EAGAIN only: there is nothing to clear.
            let _ = self.engine.event().read();
            self.start();
            let Some(mut queue) = self.queue.take() else { return };
            let was_full = self.free.is_empty();
            if self.complete(&mut queue).is_err() {
                queue.fail();
            }
            self.queue = Some(queue);
            if !was_full {
                return;
            }
        } else if let Some(queue) = &self.queue {
            queue.clear_kick();
        }
        self.serve();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let kick = self.queue.as_ref().map(VirtQueue::kick);
        for event in kick.into_iter().chain([self.engine.event()]) {
            // Only a dead loop refuses, and then no device works.
            let _ = ops.add(Events::new(event, EventSet::IN));
        }
    }
}

impl Worker for BlockWorker {
    fn stop(mut self: Box<Self>) -> Vec<VirtQueue> {
        self.quiesce();
        self.queue.take().into_iter().collect()
    }
}

impl Drop for BlockWorker {
    fn drop(&mut self) {
        self.quiesce();
    }
}
