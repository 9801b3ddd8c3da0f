//! ACPI tables that describe the machine: hardware-reduced (ACPI 6.5, 4.1), so that a kernel looks for nothing
//! that is not there.
//!
//! Memory from [`layout::ACPI`] on holds RSDP, XSDT, FADT, MADT and DSDT, in this order.

use acpi_tables::aml::{
    self, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, ResourceTemplate,
    Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_devices::virtio::mmio::REGION_SIZE;

use crate::description::Range;
use crate::layout;

const OEM: [u8; 6] = *b"VMM   ";
const OEM_TABLE: [u8; 8] = *b"VMMACHIN";
const OEM_REVISION: u32 = 1;

/// FADT, IA-PC boot architecture flags (table 5.11): no VGA to look for. The bits for an 8042 and for other legacy
/// devices stay clear, and so does the one that denies the CMOS clock.
const BOOT_ARCH: u16 = 1 << 2;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Number of processors.
    pub cpus: u8,
    /// Address and interrupt of each virtio-mmio device.
    pub virtio: Vec<(u64, u32)>,
    /// First port and interrupt of the serial console.
    pub serial: Option<(u16, u32)>,
    /// Sleep, reset and button registers.
    pub power: Power,
    /// Port of pvpanic.
    pub panic_port: u16,
    /// First port of the CMOS clock, and how many there are.
    pub clock_ports: (u16, u8),
}

/// The registers by which a guest ends, and learns that it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Power {
    /// Sleep control register (4.8.3.7).
    pub sleep_control: u16,
    /// Sleep status register.
    pub sleep_status: u16,
    /// Reset register.
    pub reset: u16,
    /// What to write to it.
    pub reset_value: u8,
    /// Reads 1 once after the power button was pressed.
    pub button: u16,
    /// Interrupt that says so.
    pub button_interrupt: u32,
    /// Sleep type that means power-off.
    pub sleep_type_s5: u8,
}

/// Writes the tables. Returns where each is, the RSDP first.
pub fn write(memory: &GuestMemoryMmap, hardware: &Hardware) -> Result<Vec<Range>, GuestMemoryError> {
    let dsdt = dsdt(hardware);
    let madt = bytes(&madt(hardware.cpus));
    let rsdp_at = layout::ACPI;
    let xsdt_at = (rsdp_at + Rsdp::len() as u64).next_multiple_of(16);
    // Header and two entries.
    let fadt_at = (xsdt_at + 36 + 2 * 8).next_multiple_of(16);
    let madt_at = (fadt_at + acpi_tables::fadt::FADT::len() as u64).next_multiple_of(16);
    let dsdt_at = (madt_at + madt.len() as u64).next_multiple_of(16);

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    let tables = [
        ("RSDP", rsdp_at, bytes(&Rsdp::new(OEM, xsdt_at))),
        ("XSDT", xsdt_at, bytes(&xsdt)),
        ("FADT", fadt_at, fadt(&hardware.power, dsdt_at)),
        ("MADT", madt_at, madt),
        ("DSDT", dsdt_at, dsdt.as_slice().to_vec()),
    ];
    let mut written = Vec::with_capacity(tables.len());
    for (name, address, table) in tables {
        memory.write_slice(&table, GuestAddress(address))?;
        written.push(Range::new(format!("ACPI {name}"), address, table.len() as u64));
    }
    Ok(written)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(power: &Power, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(power.reset);
    fadt.reset_value = power.reset_value;
    fadt.sleep_control_reg = port(power.sleep_control);
    fadt.sleep_status_reg = port(power.sleep_status);
    bytes(&fadt.finalize())
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(hardware: &Hardware) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    let mut sink = SdtSink(&mut sdt);
    for cpu in 0..hardware.cpus {
        processor(&mut sink, cpu);
    }
    for (i, &(address, interrupt)) in hardware.virtio.iter().enumerate() {
        virtio(&mut sink, i, address, interrupt);
    }
    if let Some((port, interrupt)) = hardware.serial {
        serial(&mut sink, port, interrupt);
    }
    clock(&mut sink, hardware.clock_ports);
    pvpanic(&mut sink, hardware.panic_port);
    power(&mut sink, &hardware.power);
    sdt.update_checksum();
    sdt
}

struct SdtSink<'a>(&'a mut Sdt);

impl AmlSink for SdtSink<'_> {
    fn byte(&mut self, byte: u8) {
        self.0.append(byte);
    }

    fn vec(&mut self, bytes: &[u8]) {
        self.0.append_slice(bytes);
    }
}

/// A device on the system bus, with its objects.
fn device(sink: &mut dyn AmlSink, name: &str, objects: Vec<&dyn Aml>) {
    Scope::new("\\_SB_".into(), vec![&Device::new(name.into(), objects)]).to_aml_bytes(sink);
}

fn edge(interrupt: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, interrupt)
}

/// A processor device (8.4), tied to the MADT's entry by its unique id.
fn processor(sink: &mut dyn AmlSink, id: u8) {
    device(
        sink,
        &format!("C{id:03X}"),
        vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)],
    );
}

/// `LNRO0005` is the id that Linux's virtio-mmio driver answers to.
fn virtio(sink: &mut dyn AmlSink, index: usize, address: u64, interrupt: u32) {
    let registers = Memory32Fixed::new(true, address as u32, REGION_SIZE as u32);
    device(
        sink,
        &format!("V{index:03X}"),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            // Coherent with the caches, as memory of a virtual machine always is.
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &edge(interrupt)])),
        ],
    );
}

fn serial(sink: &mut dyn AmlSink, port: u16, interrupt: u32) {
    let ports = IO::new(port, port, 0, 8);
    device(
        sink,
        "COM1",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &edge(interrupt)])),
        ],
    );
}

/// The clock, without an interrupt: it has no alarms.
fn clock(sink: &mut dyn AmlSink, (port, count): (u16, u8)) {
    let ports = IO::new(port, port, 1, count);
    device(
        sink,
        "RTC_",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    );
}

fn pvpanic(sink: &mut dyn AmlSink, port: u16) {
    let ports = IO::new(port, port, 1, 1);
    device(
        sink,
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    );
}

/// Power-off (`_S5_`), the power button, and the event device (5.6.9) that tells of it: there are no fixed
/// events on hardware-reduced machines.
fn power(sink: &mut dyn AmlSink, power: &Power) {
    Name::new("\\_S5_".into(), &Package::new(vec![&power.sleep_type_s5])).to_aml_bytes(sink);
    device(
        sink,
        "PWRB",
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &aml::ZERO)],
    );
    device(
        sink,
        "GED_",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&edge(power.button_interrupt)])),
            &OpRegion::new("PREG".into(), OpRegionSpace::SystemIO, &power.button, &aml::ONE),
            &Field::new(
                "PREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"PBTN", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&If::new(
                    &Equal::new(&aml::Path::new("PBTN"), &aml::ONE),
                    vec![&Notify::new(&aml::Path::new("\\_SB_.PWRB"), &0x80u8)],
                )],
            ),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            cpus: 2,
            virtio: vec![(layout::VIRTIO_MMIO, 6), (layout::VIRTIO_MMIO + 0x1000, 7)],
            serial: Some((0x3f8, 4)),
            power: Power {
                sleep_control: 0x600,
                sleep_status: 0x601,
                reset: 0x602,
                reset_value: 1,
                button: 0x603,
                button_interrupt: 5,
                sleep_type_s5: 5,
            },
            panic_port: 0x505,
            clock_ports: (0x70, 2),
        }
    }

    fn table(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; len as usize];
        memory.read_slice(&mut table, GuestAddress(address)).unwrap();
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    fn word(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_tables_lead_to_each_other_and_fit() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let full = Hardware {
            cpus: 32,
            virtio: (0..17).map(|i| (layout::VIRTIO_MMIO + i * 0x1000, 6)).collect(),
            ..hardware()
        };
        let rsdp = write(&memory, &full).unwrap()[0].start;
        let mut signature = [0; 8];
        memory.read_slice(&mut signature, GuestAddress(rsdp)).unwrap();
        assert_eq!(&signature, b"RSD PTR ");
        let xsdt = table(&memory, memory.read_obj(GuestAddress(rsdp + 24)).unwrap());
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&memory, word(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&memory, word(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt_at = word(&fadt, 140);
        let dsdt = table(&memory, dsdt_at);
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(dsdt_at + dsdt.len() as u64 <= layout::KERNEL);
    }

    #[test]
    fn the_dsdt_names_every_device() {
        let dsdt = dsdt(&hardware());
        let text = String::from_utf8_lossy(dsdt.as_slice()).into_owned();
        for name in ["C000", "C001", "V000", "V001", "COM1", "PEVT", "PWRB", "GED_", "_S5_"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(!text.contains("V002"));
    }
}
