//! The MP table (`MultiProcessor` Specification 1.4), which describes processors and interrupts to kernels that do
//! without ACPI.
//!
//! The floating pointer lies at [`layout::MP_TABLE`], the table right behind it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::description::Range;
use crate::layout;

const SPECIFICATION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
/// Family 6, and the features that say that there are a local APIC and an FPU (table 4-4, 4-5).
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

/// Entry types (table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (table 4-11).
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

/// Pins of the I/O APIC.
const PINS: u8 = 24;
const ISA: u8 = 0;
const EVERY_LOCAL_APIC: u8 = 0xff;

/// Writes the table for `cpus` processors, whose local APIC ids count from 0.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<Range, GuestMemoryError> {
    let table = [floating_pointer(layout::MP_TABLE + 16).to_vec(), table(cpus)].concat();
    memory.write_slice(&table, GuestAddress(layout::MP_TABLE))?;
    Ok(Range::new("MP table", layout::MP_TABLE, table.len() as u64))
}

fn floating_pointer(table: u64) -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(table as u32).to_le_bytes());
    pointer[8] = 1; // length in units of 16 bytes
    pointer[9] = SPECIFICATION;
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(cpus: u8) -> Vec<u8> {
    let io_apic_id = cpus;
    let mut entries = Vec::new();
    for id in 0..cpus {
        // Usable, and for the first: the boot processor.
        let flags = if id == 0 { 3 } else { 1 };
        entries.extend([PROCESSOR, id, APIC_VERSION, flags]);
        entries.extend(CPU_SIGNATURE.to_le_bytes());
        entries.extend(CPU_FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([BUS, ISA]);
    entries.extend(b"ISA   ");
    entries.extend([IO_APIC, io_apic_id, APIC_VERSION, 1]);
    entries.extend(layout::IO_APIC.to_le_bytes());
    for pin in 0..PINS {
        entries.extend([INTERRUPT, VECTORED, 0, 0, ISA, pin, io_apic_id, pin]);
    }
    entries.extend([LOCAL_INTERRUPT, EXTINT, 0, 0, ISA, 0, 0, 0]);
    entries.extend([LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, EVERY_LOCAL_APIC, 1]);

    // Processors, bus, I/O APIC, two local interrupts, and the pins.
    let count = u16::from(cpus) + 4 + u16::from(PINS);
    let mut table = Vec::from(*b"PCMP");
    table.extend((44 + entries.len() as u16).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"VMM     MACHINE     ");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// What makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_the_largest_machine_fits_and_adds_up() {
        let table = table(32);
        assert_eq!(checksum(&table), 0);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert!(layout::MP_TABLE + 16 + table.len() as u64 <= layout::CONVENTIONAL_END);
        assert_eq!(checksum(&floating_pointer(layout::MP_TABLE + 16)), 0);
    }

    #[test]
    fn entries_are_counted_by_their_lengths() {
        let table = table(3);
        let (mut at, mut seen) = (44, 0);
        while at < table.len() {
            at += if table[at] == PROCESSOR { 20 } else { 8 };
            seen += 1;
        }
        assert_eq!(at, table.len());
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), seen);
    }
}
