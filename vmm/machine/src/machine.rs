//! A machine put together: memory, processors, devices, a kernel; and its life until it ends.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_devices::bus::{BusDevice, Overlap};
use vmm_devices::event::{EventSink, GuestEvent};
use vmm_devices::i8042::{self, I8042};
use vmm_devices::interrupt::IrqLine;
use vmm_devices::output::Output;
use vmm_devices::power::{self, PowerButton};
use vmm_devices::pvpanic::{self, PvPanic};
use vmm_devices::reactor::{Handle, Reactor};
use vmm_devices::serial::{self, Serial};
use vmm_devices::stage::{self, StagePort};
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::mmio::{MmioTransport, REGION_SIZE, register};

use crate::acpi::{self, Description, Power};
use crate::boot::{self, BootError, CmdlineError, Protocol, Source};
use crate::kvm::{Hypervisor, KvmError, Vcpu, Vm};
use crate::layout;
use crate::memory::{self, Backing, MemoryError};
use crate::mptable;
use crate::vcpus::{Buses, Crash, Vcpus};
use crate::x86::cpuid;

/// The most processors a machine can have.
pub const MAX_CPUS: u8 = 32;

/// Interrupts of the power button and of virtio devices: the pins of the I/O APIC that nothing of a PC's own
/// hardware is expected on.
const BUTTON_INTERRUPT: u32 = 5;
const VIRTIO_INTERRUPTS: [u32; 17] = [6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// What a machine is made of.
pub struct Config {
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Memory in bytes, at least [`layout::MIN_MEMORY`].
    pub memory_bytes: u64,
    /// What backs the memory.
    pub backing: Backing,
    /// An ELF vmlinux or a bzImage.
    pub kernel: File,
    /// An initial file system.
    pub initrd: Option<File>,
    /// The kernel's command line, whole but for what describes devices to kernels without ACPI.
    pub cmdline: String,
    /// How to enter the kernel.
    pub protocol: Option<Protocol>,
    /// Whether to describe the machine by ACPI tables, or by an MP table and on the command line.
    pub acpi: bool,
    /// virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the serial console prints.
    pub serial: Output,
}

/// The machine could not be made. Each variant is one step.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The number of processors.
    #[error("a machine has 1 to {max} CPUs, not {asked}")]
    Cpus {
        /// What was asked for.
        asked: u8,
        /// The most this host can do.
        max: u8,
    },
    /// The amount of memory.
    #[error("{bytes} bytes of memory are too few, the least is {min}")]
    TooLittleMemory {
        /// What was asked for.
        bytes: u64,
        /// The least.
        min: u64,
    },
    /// The number of devices.
    #[error("a machine has room for {max} virtio devices, not {asked}")]
    TooManyDevices {
        /// How many there were to be.
        asked: usize,
        /// The most.
        max: usize,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Event descriptors and the event loop.
    #[error("cannot set up device events")]
    Events(#[source] io::Error),
    /// Two devices in one place.
    #[error("cannot place a device")]
    Bus(#[from] Overlap),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Tables and processor state.
    #[error("cannot write the tables that describe the machine")]
    Tables(#[from] vm_memory::GuestMemoryError),
}

/// How a guest ended.
#[derive(Debug)]
pub enum Outcome {
    /// It switched the machine off.
    PowerOff,
    /// It rebooted.
    Reset,
    /// Its kernel panicked.
    Panicked,
    /// A processor could not go on.
    Crashed(Crash),
    /// Somebody called [`Control::stop`].
    Stopped,
}

/// A mark that the guest made on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which stage; see [`vmm_devices::stage`].
    pub stage: u8,
    /// When.
    pub at: Instant,
}

/// A machine that has not started yet.
pub struct Machine {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    buses: Arc<Buses>,
    reactor: Reactor,
    ends: Ends,
    outcome: mpsc::Receiver<Outcome>,
    marks: Arc<Mutex<Vec<Mark>>>,
    button: PowerButton,
    serial: Arc<Mutex<Serial>>,
}

/// What reaches into a running machine, from any thread.
#[derive(Clone)]
pub struct Control {
    ends: Ends,
    button: PowerButton,
    serial: Arc<Mutex<Serial>>,
    marks: Arc<Mutex<Vec<Mark>>>,
}

impl Control {
    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        self.button.press();
    }

    /// Ends the machine as if its power was cut.
    pub fn stop(&self) {
        self.ends.end(Outcome::Stopped);
    }

    /// The serial console's input.
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.serial
    }

    /// The marks the guest has made so far.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Where the end of a machine is reported. The first report counts.
#[derive(Clone)]
struct Ends {
    outcome: Sender<Outcome>,
    reactor: Handle,
}

impl Ends {
    fn end(&self, outcome: Outcome) {
        // Nobody listens only when the machine has ended already.
        let _ = self.outcome.send(outcome);
        self.reactor.stop();
    }
}

impl Machine {
    /// Puts a machine together. Nothing runs yet.
    pub fn build(hypervisor: &Hypervisor, config: Config) -> Result<Self, BuildError> {
        check(hypervisor, &config)?;
        let memory = memory::create(config.memory_bytes, config.backing)?;
        let vm = hypervisor.create_vm(Arc::clone(&memory))?;
        // Interrupt controllers come before processors and before anything is bound to a line.
        vm.create_irqchip()?;

        let reactor = Reactor::new().map_err(|e| BuildError::Events(io::Error::other(e)))?;
        let (outcome_sender, outcome) = mpsc::channel();
        let ends = Ends { outcome: outcome_sender, reactor: reactor.handle() };
        let marks = Arc::<Mutex<Vec<Mark>>>::default();
        let sink = event_sink(&ends, &marks);

        let mut buses = Buses::default();
        let (serial, button) = platform_devices(&vm, &mut buses, &sink, config.serial)?;
        let virtio = virtio_devices(&vm, &mut buses, &reactor.handle(), config.devices)?;

        // Kernels without ACPI learn of virtio devices from the command line.
        let mut cmdline = config.cmdline;
        let rsdp = if config.acpi {
            Some(acpi::write(&memory, &describe(config.cpus, virtio))?)
        } else {
            mptable::write(&memory, config.cpus)?;
            describe_on_command_line(&mut cmdline, &virtio);
            None
        };
        let cmdline = boot::command_line(&cmdline)?;
        let entry = boot::load(
            &memory,
            &Source {
                kernel: &config.kernel,
                initrd: config.initrd.as_ref(),
                cmdline: &cmdline,
                protocol: config.protocol,
                rsdp,
            },
        )?;

        let vcpus = create_vcpus(hypervisor, &vm, config.cpus)?;
        let mut sregs = vcpus[0].sregs()?;
        let regs = entry.prepare(&memory, &mut sregs)?;
        vcpus[0].set_sregs(&sregs)?;
        vcpus[0].set_regs(&regs)?;
        Ok(Self { vm, vcpus, buses: Arc::new(buses), reactor, ends, outcome, marks, button, serial })
    }

    /// What reaches into the machine while it runs.
    pub fn control(&self) -> Control {
        Control {
            ends: self.ends.clone(),
            button: self.button.clone(),
            serial: Arc::clone(&self.serial),
            marks: Arc::clone(&self.marks),
        }
    }

    /// The machine's event loop, for what else is to be dispatched there.
    pub fn reactor(&mut self) -> &mut Reactor {
        &mut self.reactor
    }

    /// Runs the machine to its end, with the event loop on the calling thread.
    pub fn run(mut self) -> io::Result<Outcome> {
        let ends = self.ends.clone();
        let vcpus = Vcpus::start(self.vcpus, &self.buses, move |crash| ends.end(Outcome::Crashed(crash)))?;
        let ran = self.reactor.run();
        // Dropping the loop ends its devices' work, and fails the calls of vCPUs that wait for it.
        drop(self.reactor);
        vcpus.stop();
        // No vCPU touches memory any more.
        drop(self.vm);
        ran.map_err(io::Error::other)?;
        Ok(self.outcome.try_recv().unwrap_or(Outcome::Stopped))
    }
}

fn check(hypervisor: &Hypervisor, config: &Config) -> Result<(), BuildError> {
    let max = MAX_CPUS.min(u8::try_from(hypervisor.max_vcpus()).unwrap_or(u8::MAX));
    if config.cpus == 0 || config.cpus > max {
        return Err(BuildError::Cpus { asked: config.cpus, max });
    }
    if config.memory_bytes < layout::MIN_MEMORY {
        return Err(BuildError::TooLittleMemory { bytes: config.memory_bytes, min: layout::MIN_MEMORY });
    }
    if config.devices.len() > VIRTIO_INTERRUPTS.len() {
        let (asked, max) = (config.devices.len(), VIRTIO_INTERRUPTS.len());
        return Err(BuildError::TooManyDevices { asked, max });
    }
    Ok(())
}

fn event_sink(ends: &Ends, marks: &Arc<Mutex<Vec<Mark>>>) -> EventSink {
    let ends = Mutex::new(ends.clone());
    let marks = Arc::clone(marks);
    let end = move |outcome| ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner).end(outcome);
    Arc::new(move |event| match event {
        GuestEvent::PowerOff => end(Outcome::PowerOff),
        GuestEvent::Reset => end(Outcome::Reset),
        GuestEvent::Panicked => end(Outcome::Panicked),
        GuestEvent::Stage(stage) => {
            let mut marks = marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A guest may write as often as it likes; the boot has few stages.
            if marks.len() < 64 {
                marks.push(Mark { stage, at: Instant::now() });
            }
        }
    })
}

/// The devices of every machine: console, power, reset, and what the guest reports by.
fn platform_devices(
    vm: &Vm,
    buses: &mut Buses,
    sink: &EventSink,
    output: Output,
) -> Result<(Arc<Mutex<Serial>>, PowerButton), BuildError> {
    let line = |interrupt| -> Result<IrqLine, BuildError> {
        let line = IrqLine::new().map_err(BuildError::Events)?;
        vm.bind_interrupt(line.event(), interrupt)?;
        Ok(line)
    };
    let serial = Serial::new(line(serial::INTERRUPT)?, output).map_err(BuildError::Events)?;
    let serial = Arc::new(Mutex::new(serial));
    buses.ports.insert(serial::PORTS, Arc::clone(&serial) as _)?;
    let (registers, button) =
        power::power(Arc::clone(sink), &line(BUTTON_INTERRUPT)?).map_err(BuildError::Events)?;
    buses.ports.insert(power::PORTS, shared(registers))?;
    buses.ports.insert(i8042::PORTS, shared(I8042::new(Arc::clone(sink))))?;
    buses.ports.insert(one_port(pvpanic::PORT), shared(PvPanic::new(Arc::clone(sink))))?;
    buses.ports.insert(one_port(stage::PORT), shared(StagePort::new(Arc::clone(sink))))?;
    Ok((serial, button))
}

fn shared(device: impl BusDevice + 'static) -> vmm_devices::bus::SharedDevice {
    Arc::new(Mutex::new(device))
}

fn one_port(port: u16) -> std::ops::Range<u64> {
    u64::from(port)..u64::from(port) + 1
}

/// Places virtio devices one after the other. Returns the address and interrupt of each.
fn virtio_devices(
    vm: &Vm,
    buses: &mut Buses,
    reactor: &Handle,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<(u64, u32)>, BuildError> {
    let mut places = Vec::with_capacity(devices.len());
    for (i, (device, interrupt)) in (0..).zip(devices.into_iter().zip(VIRTIO_INTERRUPTS)) {
        let address = layout::VIRTIO_MMIO + i * REGION_SIZE;
        let line = IrqLine::new().map_err(BuildError::Events)?;
        vm.bind_interrupt(line.event(), interrupt)?;
        let transport = MmioTransport::new(device, Arc::clone(vm.memory()), reactor.clone(), line)
            .map_err(BuildError::Events)?;
        for (queue, kick) in (0..).zip(transport.kicks()) {
            vm.bind_doorbell(kick, address + register::QUEUE_NOTIFY, queue)?;
        }
        buses.mmio.insert(address..address + REGION_SIZE, shared(transport))?;
        places.push((address, interrupt));
    }
    Ok(places)
}

fn describe(cpus: u8, virtio: Vec<(u64, u32)>) -> Description {
    let port = |offset| (power::PORTS.start + offset) as u16;
    Description {
        cpus,
        virtio,
        serial: Some((serial::PORTS.start as u16, serial::INTERRUPT)),
        power: Power {
            sleep_control: port(power::SLEEP_CONTROL),
            sleep_status: port(power::SLEEP_STATUS),
            reset: port(power::RESET),
            reset_value: power::RESET_VALUE,
            button: port(power::BUTTON),
            button_interrupt: BUTTON_INTERRUPT,
            sleep_type_s5: power::SLEEP_TYPE_S5,
        },
        panic_port: pvpanic::PORT,
    }
}

/// Adds `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT` for each device, ahead of what is meant for init.
fn describe_on_command_line(cmdline: &mut String, virtio: &[(u64, u32)]) {
    for (address, interrupt) in virtio {
        let at = cmdline.find(" -- ").unwrap_or(cmdline.len());
        cmdline.insert_str(at, &format!(" virtio_mmio.device={REGION_SIZE}@{address:#x}:{interrupt}"));
    }
}

fn create_vcpus(hypervisor: &Hypervisor, vm: &Vm, count: u8) -> Result<Vec<Vcpu>, BuildError> {
    let supported = hypervisor.supported_cpuid()?;
    let tsc_deadline = hypervisor.has_tsc_deadline_timer();
    (0..count)
        .map(|index| {
            let vcpu = vm.create_vcpu(index)?;
            let mut leaves = supported.clone();
            cpuid::complete(&mut leaves, index, count, tsc_deadline);
            vcpu.set_cpuid(&leaves)?;
            vcpu.set_power_on_state()?;
            Ok(vcpu)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_on_the_command_line_come_before_inits_words() {
        let mut cmdline = String::from("quiet -- sh -c ls");
        describe_on_command_line(&mut cmdline, &[(0xd000_0000, 6)]);
        assert_eq!(cmdline, "quiet virtio_mmio.device=4096@0xd0000000:6 -- sh -c ls");
    }
}
