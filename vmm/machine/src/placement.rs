//! Where devices go: their registers on the buses, their interrupts, and how a guest is told of them.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmm_devices::bus::{BusDevice, SharedDevice};
use vmm_devices::event::EventSink;
use vmm_devices::i8042::{self, I8042};
use vmm_devices::interrupt::IrqLine;
use vmm_devices::output::Output;
use vmm_devices::power::{self, PowerButton};
use vmm_devices::pvpanic::{self, PvPanic};
use vmm_devices::reactor::Handle;
use vmm_devices::rtc::{self, Rtc};
use vmm_devices::serial::{self, Serial};
use vmm_devices::stage::{self, StagePort};
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::mmio::{MmioTransport, REGION_SIZE, register};

use crate::acpi::{Hardware, Power};
use crate::description::{Device, Space};
use crate::kvm::Vm;
use crate::layout;
use crate::machine::BuildError;
use crate::vcpus::Buses;

/// Interrupts of the power button and of virtio devices: the pins of the I/O APIC that nothing of a PC's own
/// hardware is expected on.
const BUTTON_INTERRUPT: u32 = 5;
pub(crate) const VIRTIO_INTERRUPTS: [u32; 17] =
    [6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Devices in their places.
pub(crate) struct Placed {
    /// What vCPUs reach them by.
    pub(crate) buses: Buses,
    /// The serial console, if there is one.
    pub(crate) serial: Option<Arc<Mutex<Serial>>>,
    /// The button on the machine's front.
    pub(crate) button: PowerButton,
    /// All of them, as `--dry-run` shows them.
    pub(crate) devices: Vec<Device>,
    /// Address and interrupt of each virtio device.
    virtio: Vec<(u64, u32)>,
}

/// Gives every device its registers and its interrupt. Guest events go to `sink`, the serial console prints to
/// `output`; without one there is no serial port.
pub(crate) fn place(
    vm: &Vm,
    reactor: &Handle,
    sink: &EventSink,
    output: Option<Output>,
    virtio: Vec<Box<dyn VirtioDevice>>,
) -> Result<Placed, BuildError> {
    let (registers, button) =
        power::power(Arc::clone(sink), &line(vm, BUTTON_INTERRUPT)?).map_err(BuildError::Events)?;
    let mut placed = Placed {
        buses: Buses::default(),
        serial: None,
        button,
        devices: Vec::new(),
        virtio: Vec::with_capacity(virtio.len()),
    };
    if let Some(output) = output {
        let serial = Serial::new(line(vm, serial::INTERRUPT)?, output).map_err(BuildError::Events)?;
        let serial = Arc::new(Mutex::new(serial));
        placed.serial = Some(Arc::clone(&serial));
        placed.ports("serial", serial::PORTS, Some(serial::INTERRUPT), serial)?;
    }
    placed.ports("power", power::PORTS, Some(BUTTON_INTERRUPT), shared(registers))?;
    placed.ports("i8042", i8042::PORTS, None, shared(I8042::new(Arc::clone(sink))))?;
    placed.ports("rtc", rtc::PORTS, None, shared(Rtc::default()))?;
    placed.ports("pvpanic", one_port(pvpanic::PORT), None, shared(PvPanic::new(Arc::clone(sink))))?;
    placed.ports("boot-stage", one_port(stage::PORT), None, shared(StagePort::new(Arc::clone(sink))))?;
    for (device, interrupt) in virtio.into_iter().zip(VIRTIO_INTERRUPTS) {
        placed.virtio(vm, reactor, device, interrupt)?;
    }
    Ok(placed)
}

/// An interrupt line that KVM raises when its descriptor is signalled.
fn line(vm: &Vm, interrupt: u32) -> Result<IrqLine, BuildError> {
    let line = IrqLine::new().map_err(BuildError::Events)?;
    vm.bind_interrupt(line.event(), interrupt)?;
    Ok(line)
}

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn one_port(port: u16) -> Range<u64> {
    u64::from(port)..u64::from(port) + 1
}

impl Placed {
    fn ports(
        &mut self,
        name: &str,
        ports: Range<u64>,
        interrupt: Option<u32>,
        device: SharedDevice,
    ) -> Result<(), BuildError> {
        let (start, end) = (ports.start, ports.end);
        self.buses.ports.insert(ports, device)?;
        self.devices.push(Device { name: name.into(), space: Space::Ports, start, end, interrupt });
        Ok(())
    }

    /// Places a virtio device behind those that are there.
    fn virtio(
        &mut self,
        vm: &Vm,
        reactor: &Handle,
        device: Box<dyn VirtioDevice>,
        interrupt: u32,
    ) -> Result<(), BuildError> {
        let start = layout::VIRTIO_MMIO + self.virtio.len() as u64 * REGION_SIZE;
        let end = start + REGION_SIZE;
        let name = format!("virtio-{}", device.kind());
        let line = line(vm, interrupt)?;
        let transport = MmioTransport::new(device, Arc::clone(vm.memory()), reactor.clone(), line)
            .map_err(BuildError::Events)?;
        for (queue, kick) in (0..).zip(transport.kicks()) {
            vm.bind_doorbell(kick, start + register::QUEUE_NOTIFY, queue)?;
        }
        self.buses.mmio.insert(start..end, shared(transport))?;
        self.devices.push(Device { name, space: Space::Mmio, start, end, interrupt: Some(interrupt) });
        self.virtio.push((start, interrupt));
        Ok(())
    }

    /// What ACPI tables tell.
    pub(crate) fn hardware(&self, cpus: u8) -> Hardware {
        let port = |offset| (power::PORTS.start + offset) as u16;
        Hardware {
            cpus,
            virtio: self.virtio.clone(),
            serial: self.serial.is_some().then_some((serial::PORTS.start as u16, serial::INTERRUPT)),
            power: Power {
                sleep_control: port(power::SLEEP_CONTROL),
                sleep_status: port(power::SLEEP_STATUS),
                reset: port(power::RESET),
                reset_value: power::RESET_VALUE,
                button: port(power::BUTTON),
                button_interrupt: BUTTON_INTERRUPT,
                sleep_type_s5: power::SLEEP_TYPE_S5,
            },
            clock_ports: (rtc::PORTS.start as u16, (rtc::PORTS.end - rtc::PORTS.start) as u8),
            panic_port: pvpanic::PORT,
        }
    }

    /// What kernels without ACPI are told on their command line: where the virtio devices are.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        self.virtio
            .iter()
            .map(|(address, interrupt)| format!("virtio_mmio.device={REGION_SIZE}@{address:#x}:{interrupt}"))
    }
}
