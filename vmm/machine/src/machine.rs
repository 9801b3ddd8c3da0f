//! A machine put together: memory, processors, devices, a kernel; and its life until it ends.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_devices::bus::Overlap;
use vmm_devices::event::{EventSink, GuestEvent};
use vmm_devices::output::Output;
use vmm_devices::power::PowerButton;
use vmm_devices::reactor::{Handle, Reactor};
use vmm_devices::serial::Serial;
use vmm_devices::stage;
use vmm_devices::virtio::VirtioDevice;

use crate::boot::{self, BootError, CmdlineError, Protocol, Source};
use crate::description::{Description, Range};
use crate::kvm::{Hypervisor, KvmError, Vcpu, Vm};
use crate::memory::{self, Backing, MemoryError};
use crate::placement::{self, VIRTIO_INTERRUPTS};
use crate::timeline::{Stage, Timeline};
use crate::vcpus::{Buses, Crash, Vcpus};
use crate::x86::cpuid;
use crate::{acpi, layout, mptable};

/// The most processors a machine can have.
pub const MAX_CPUS: u8 = 32;

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
    /// Where the serial console prints; without it the machine has none.
    pub serial: Option<Output>,
    /// Where the stages of the boot are marked.
    pub timeline: Timeline,
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

/// A machine that has not started yet.
pub struct Machine {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    buses: Arc<Buses>,
    reactor: Reactor,
    control: Control,
    outcome: mpsc::Receiver<Outcome>,
    description: Description,
    timeline: Timeline,
}

/// What reaches into a running machine, from any thread.
#[derive(Clone)]
pub struct Control {
    ends: Ends,
    button: PowerButton,
    serial: Option<Arc<Mutex<Serial>>>,
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

    /// The serial console's input, if the machine has one.
    pub fn serial(&self) -> Option<&Arc<Mutex<Serial>>> {
        self.serial.as_ref()
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
        let timeline = config.timeline;
        timeline.enter(Stage::Memory);
        let memory = memory::create(config.memory_bytes, config.backing)?;
        timeline.enter(Stage::Vm);
        let vm = hypervisor.create_vm(Arc::clone(&memory))?;
        // Interrupt controllers come before processors and before anything is bound to a line.
        vm.create_irqchip()?;

        timeline.enter(Stage::Devices);
        let reactor = Reactor::new().map_err(|e| BuildError::Events(io::Error::other(e)))?;
        let (sender, outcome) = mpsc::channel();
        let ends = Ends { outcome: sender, reactor: reactor.handle() };
        let sink = event_sink(&ends, &timeline);
        let placed = placement::place(&vm, &reactor.handle(), &sink, config.serial, config.devices)?;

        timeline.enter(Stage::Kernel);
        let mut cmdline = config.cmdline;
        let tables = if config.acpi {
            acpi::write(&memory, &placed.hardware(config.cpus))?
        } else {
            for word in placed.words() {
                boot::insert_word(&mut cmdline, &word);
            }
            vec![mptable::write(&memory, config.cpus)?]
        };
        let loaded = boot::load(
            &memory,
            &Source {
                kernel: &config.kernel,
                initrd: config.initrd.as_ref(),
                cmdline: &boot::command_line(&cmdline)?,
                protocol: config.protocol,
                rsdp: config.acpi.then(|| tables[0].start),
            },
        )?;

        timeline.enter(Stage::Vcpus);
        let vcpus = create_vcpus(hypervisor, &vm, config.cpus)?;
        let mut sregs = vcpus[0].sregs()?;
        let regs = loaded.entry.prepare(&memory, &mut sregs)?;
        vcpus[0].set_sregs(&sregs)?;
        vcpus[0].set_regs(&regs)?;

        let mut contents = [tables, loaded.contents].concat();
        contents.sort_by_key(|range| range.start);
        let description = Description {
            cpus: config.cpus,
            memory_map: boot::memory_map(&memory)
                .into_iter()
                .map(|(start, len, kind)| Range::new(boot::memory_type(kind), start, len))
                .collect(),
            contents,
            devices: placed.devices,
            cmdline,
            protocol: loaded.entry.protocol,
            entry: loaded.entry.address,
        };
        let control = Control { ends, button: placed.button, serial: placed.serial };
        let buses = Arc::new(placed.buses);
        Ok(Self { vm, vcpus, buses, reactor, control, outcome, description, timeline })
    }

    /// What reaches into the machine while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// What the machine looks like to its guest.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The machine's event loop, for what else is to be dispatched there.
    pub fn reactor(&mut self) -> &mut Reactor {
        &mut self.reactor
    }

    /// Runs the machine to its end, with the event loop on the calling thread.
    pub fn run(mut self) -> io::Result<Outcome> {
        self.timeline.enter(Stage::Start);
        let (ends, timeline) = (self.control.ends.clone(), self.timeline.clone());
        let crashed = move |crash| ends.end(Outcome::Crashed(crash));
        let started = move || timeline.enter(Stage::GuestKernel);
        let vcpus = Vcpus::start(self.vcpus, &self.buses, started, crashed)?;
        let ran = self.reactor.run();
        self.timeline.enter(Stage::End);
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

fn event_sink(ends: &Ends, timeline: &Timeline) -> EventSink {
    let ends = Mutex::new(ends.clone());
    let timeline = timeline.clone();
    let end = move |outcome| ends.lock().unwrap_or_else(PoisonError::into_inner).end(outcome);
    Arc::new(move |event| match event {
        GuestEvent::PowerOff => end(Outcome::PowerOff),
        GuestEvent::Reset => end(Outcome::Reset),
        GuestEvent::Panicked => end(Outcome::Panicked),
        GuestEvent::Stage(stage::USER_SPACE) => timeline.enter(Stage::UserSpace),
        GuestEvent::Stage(number) => timeline.enter(Stage::Guest(number)),
    })
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
