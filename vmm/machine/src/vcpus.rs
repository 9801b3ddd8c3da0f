//! The threads that run vCPUs.
//!
//! Two layers: [`serve`] turns one exit into one decision, with the buses as its only company, so that a test
//! can hand it exits that hardware seldom produces; the thread around it starts, stops and reports.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use vmm_devices::bus::Bus;

use crate::kvm::{Exit, Kicker, KvmError, Vcpu};

/// Bytes of a vCPU thread's stack. The usual 2 MiB would be one transparent huge page, all of it taken at once.
const STACK: usize = 256 << 10;

/// The two address spaces of an x86 machine.
#[derive(Default)]
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

/// Why a vCPU stopped for good, when nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum Crash {
    /// The guest faulted while it handled a fault while it handled a fault.
    #[error("the guest's vCPU {vcpu} hit a triple fault")]
    TripleFault {
        /// Which vCPU.
        vcpu: u8,
    },
    /// KVM cannot execute the guest's next instruction.
    #[error("KVM cannot emulate what the guest's vCPU {vcpu} does")]
    Emulation {
        /// Which vCPU.
        vcpu: u8,
    },
    /// The processor refused the guest's state.
    #[error("the processor refused to enter the guest on vCPU {vcpu}, reason {reason:#x}")]
    Entry {
        /// Which vCPU.
        vcpu: u8,
        /// The processor's own reason.
        reason: u64,
    },
    /// Something that this monitor does not know.
    #[error("vCPU {vcpu} stopped with an unknown exit, {exit}")]
    Unknown {
        /// Which vCPU.
        vcpu: u8,
        /// The exit.
        exit: String,
    },
    /// KVM itself failed.
    #[error("vCPU {vcpu} cannot run")]
    Kvm {
        /// Which vCPU.
        vcpu: u8,
        /// What KVM said.
        source: KvmError,
    },
}

/// Serves one exit of vCPU `vcpu`; the error is why it must not go on.
fn serve(vcpu: u8, exit: Exit, buses: &Buses) -> Result<(), Crash> {
    match exit {
        Exit::PortRead(port, data) => buses.ports.read(port.into(), data),
        Exit::PortWrite(port, data) => buses.ports.write(port.into(), data),
        Exit::MmioRead(address, data) => buses.mmio.read(address, data),
        Exit::MmioWrite(address, data) => buses.mmio.write(address, data),
        Exit::Interrupted => {}
        Exit::TripleFault => return Err(Crash::TripleFault { vcpu }),
        Exit::InternalError => return Err(Crash::Emulation { vcpu }),
        Exit::EntryFailed(reason) => return Err(Crash::Entry { vcpu, reason }),
        // With the interrupt controllers in the kernel, halting is the kernel's business.
        Exit::Halt => return Err(Crash::Unknown { vcpu, exit: "halt".into() }),
        Exit::Other(exit) => return Err(Crash::Unknown { vcpu, exit }),
    }
    Ok(())
}

fn run(vcpu: &mut Vcpu, buses: &Buses, stop: &AtomicBool) -> Result<(), Crash> {
    let index = vcpu.index();
    // A device that ends the guest sets the flag from this very thread: it is looked at after every exit.
    while !stop.load(Ordering::Acquire) {
        let exit = vcpu.run().map_err(|source| Crash::Kvm { vcpu: index, source })?;
        serve(index, exit, buses)?;
    }
    Ok(())
}

/// The running vCPUs of a machine.
pub struct Vcpus {
    threads: Vec<(Kicker, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
}

impl Vcpus {
    /// Gives every vCPU a thread and lets them go together. `started` hears of that moment, `crashed` of a vCPU
    /// that stops by itself.
    pub fn start(
        vcpus: Vec<Vcpu>,
        buses: &Arc<Buses>,
        started: impl FnOnce(),
        crashed: impl Fn(Crash) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::with_capacity(vcpus.len());
        let mut starters = Vec::with_capacity(vcpus.len());
        for mut vcpu in vcpus {
            let (ready, kicker) = mpsc::sync_channel(1);
            let (starter, go) = mpsc::channel::<()>();
            let (buses, stop, crashed) = (Arc::clone(buses), Arc::clone(&stop), crashed.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index()))
                .stack_size(STACK)
                .spawn(move || {
                    let _ = ready.send(vcpu.bind_to_thread());
                    // The other end is dropped unsaid where a later vCPU cannot be started.
                    if go.recv().is_err() {
                        return;
                    }
                    if let Err(crash) = run(&mut vcpu, &buses, &stop) {
                        crashed(crash);
                    }
                })?;
            let kicker = kicker.recv().map_err(|_| io::Error::other("a vCPU thread ended early"))??;
            threads.push((kicker, thread));
            starters.push(starter);
        }
        started();
        for starter in starters {
            // The thread waits for nothing else.
            let _ = starter.send(());
        }
        Ok(Self { threads, stop })
    }

    /// Stops all vCPUs and waits for their threads.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        for (kicker, _) in &self.threads {
            kicker.kick();
        }
        for (_, thread) in self.threads {
            // A panic of the thread has been printed by the panic hook already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_reach_the_buses_and_go_on() {
        let buses = Buses::default();
        let mut data = [0; 2];
        serve(0, Exit::PortRead(0x3f8, &mut data), &buses).unwrap();
        serve(0, Exit::MmioWrite(0xd000_0000, &data), &buses).unwrap();
        assert_eq!(data, [0xff; 2]);
        assert_eq!((buses.ports.misses(), buses.mmio.misses()), (1, 1));
    }

    #[test]
    fn what_no_guest_comes_back_from_ends_the_vcpu() {
        let buses = Buses::default();
        let end = |exit| serve(3, exit, &buses).unwrap_err().to_string();
        assert_eq!(end(Exit::TripleFault), "the guest's vCPU 3 hit a triple fault");
        assert_eq!(
            end(Exit::EntryFailed(0x21)),
            "the processor refused to enter the guest on vCPU 3, reason 0x21"
        );
        assert_eq!(end(Exit::Other("Dirty".into())), "vCPU 3 stopped with an unknown exit, Dirty");
    }
}
