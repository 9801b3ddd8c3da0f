//! One virtual processor.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use kvm_bindings::{CpuId, kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;

use super::{KvmError, ioctl};

/// The signal that gets a thread out of `KVM_RUN`.
const KICK: Signal = Signal::SIGUSR2;

/// Why a vCPU came back from the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// The guest reads an I/O port; the answer goes into the slice.
    PortRead(u16, &'a mut [u8]),
    /// The guest wrote an I/O port.
    PortWrite(u16, &'a [u8]),
    /// The guest reads an address without memory.
    MmioRead(u64, &'a mut [u8]),
    /// The guest wrote an address without memory.
    MmioWrite(u64, &'a [u8]),
    /// Somebody kicked the vCPU, or the host interrupted it.
    Interrupted,
    /// The guest halted, which it can only do for good where no interrupt controller wakes it.
    Halt,
    /// A fault while handling a double fault: the processor gave up.
    TripleFault,
    /// KVM could not go on executing the guest, and says why in the suberror of `KVM_EXIT_INTERNAL_ERROR`.
    InternalError,
    /// The processor refused to enter the guest, with the hardware's own reason.
    EntryFailed(u64),
    /// Anything else; by its debug form.
    Other(String),
}

/// A virtual processor. It belongs to the thread that runs it.
pub struct Vcpu {
    index: u8,
    pub(super) fd: VcpuFd,
}

impl Vcpu {
    pub(super) fn new(index: u8, fd: VcpuFd) -> Self {
        Self { index, fd }
    }

    /// Which vCPU of its machine; also its APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Says what the CPUID instruction answers.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), KvmError> {
        self.fd.set_cpuid2(cpuid).map_err(ioctl("KVM_SET_CPUID2"))
    }

    /// Reads the control and segment registers.
    pub fn sregs(&self) -> Result<kvm_sregs, KvmError> {
        self.fd.get_sregs().map_err(ioctl("KVM_GET_SREGS"))
    }

    /// Sets the control and segment registers.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), KvmError> {
        self.fd.set_sregs(sregs).map_err(ioctl("KVM_SET_SREGS"))
    }

    /// Reads the general registers.
    pub fn regs(&self) -> Result<kvm_regs, KvmError> {
        self.fd.get_regs().map_err(ioctl("KVM_GET_REGS"))
    }

    /// Sets the general registers.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.fd.set_regs(regs).map_err(ioctl("KVM_SET_REGS"))
    }

    /// Runs the guest until it needs something.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        match self.fd.run() {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                set_immediate_exit(0);
                Ok(Exit::Interrupted)
            }
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PortRead(port, data)),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PortWrite(port, data)),
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead(address, data)),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite(address, data)),
            Ok(VcpuExit::Hlt) => Ok(Exit::Halt),
            Ok(VcpuExit::Shutdown) => Ok(Exit::TripleFault),
            Ok(VcpuExit::InternalError) => Ok(Exit::InternalError),
            Ok(VcpuExit::FailEntry(reason, _)) => Ok(Exit::EntryFailed(reason)),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(other) => Ok(Exit::Other(format!("{other:?}"))),
            Err(error) => Err(ioctl("KVM_RUN")(error)),
        }
    }

    /// Gives the vCPU to the calling thread, the only one that may run it from now on, and returns what
    /// other threads get it out of the guest with.
    pub fn bind_to_thread(&mut self) -> io::Result<Kicker> {
        install_kick_handler()?;
        RUNNING.set(std::ptr::from_mut(self.fd.get_kvm_run()));
        Ok(Kicker(pthread_self()))
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // A late kick must not write to the unmapped page.
        if RUNNING.get() == std::ptr::from_mut(self.fd.get_kvm_run()) {
            RUNNING.set(std::ptr::null_mut());
        }
    }
}

thread_local! {
    /// The state that this thread's vCPU shares with the kernel. Constant and without a destructor, so that
    /// a signal handler may read it.
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Gets one vCPU out of the guest, whether it is inside `KVM_RUN` or about to enter it.
#[derive(Debug, Clone, Copy)]
pub struct Kicker(Pthread);

impl Kicker {
    /// Makes the vCPU's current or next [`run`](Vcpu::run) return [`Exit::Interrupted`]. The thread must not
    /// have been joined yet.
    pub fn kick(self) {
        // Fails only for a thread that has ended, and then there is nothing to interrupt.
        let _ = pthread_kill(self.0, KICK);
    }
}

fn install_kick_handler() -> io::Result<()> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || vmm_sys_util::signal::register_signal_handler(KICK as i32, on_kick);
    RESULT.get_or_init(|| install().map_err(kvm_ioctls::Error::errno)).map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A plain signal would be lost if it came just before KVM_RUN: the flag makes that KVM_RUN return at once.
    set_immediate_exit(1);
}

/// Sets the flag in what this thread's vCPU shares with the kernel.
fn set_immediate_exit(value: u8) {
    let running = RUNNING.get();
    if !running.is_null() {
        // SAFETY: the pointer is set and cleared by this very thread and points into the page that the vCPU
        // maps until it is dropped.
        unsafe { (&raw mut (*running).immediate_exit).write_volatile(value) };
    }
}
