//! The processor modes that boot protocols start a kernel in, and the tables they need in guest memory.

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

/// Flat segments (Intel SDM volume 3, 3.4.5): access byte and flags as they stand in bits 40..56 of a
/// descriptor.
mod descriptor {
    /// 64-bit code, execute and read.
    pub(super) const CODE_64: u16 = 0xa09b;
    /// 32-bit code, execute and read.
    pub(super) const CODE_32: u16 = 0xc09b;
    /// Data, read and write.
    pub(super) const DATA: u16 = 0xc093;
    /// Task state, busy.
    pub(super) const TSS: u16 = 0x808b;
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Sets up long mode as the 64-bit boot protocol asks (Linux `Documentation/arch/x86/boot.rst`): flat
/// segments with selectors `0x10` and `0x18`, paging on, the first GiB mapped one to one.
pub fn long_mode(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs) -> Result<(), GuestMemoryError> {
    segments(memory, sregs, descriptor::CODE_64)?;
    let [top, second, third] = [0, 1, 2].map(|page| layout::PAGE_TABLES + page * 0x1000);
    memory.write_obj(second | PRESENT_WRITABLE, GuestAddress(top))?;
    memory.write_obj(third | PRESENT_WRITABLE, GuestAddress(second))?;
    let entries: Vec<u8> = (0..512u64)
        .flat_map(|i| ((i * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, GuestAddress(third))?;
    sregs.cr3 = top;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    Ok(())
}

/// Sets up 32-bit protected mode without paging, as PVH asks (Xen `docs/misc/pvh.pandoc`).
pub fn protected_mode(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs) -> Result<(), GuestMemoryError> {
    segments(memory, sregs, descriptor::CODE_32)?;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    Ok(())
}

fn segments(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs, code: u16) -> Result<(), GuestMemoryError> {
    // Index 0 is the null descriptor, 1 is unused: Linux expects code at 0x10 and data at 0x18.
    let flags = [0, 0, code, descriptor::DATA, descriptor::TSS];
    for (i, flags) in (0..).zip(flags) {
        memory.write_obj(raw(flags), GuestAddress(layout::GDT + 8 * i))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 8 * flags.len() as u16 - 1;
    sregs.cs = segment(2, code);
    sregs.tr = segment(4, descriptor::TSS);
    let data = segment(3, descriptor::DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    Ok(())
}

/// A descriptor of base 0 and the largest limit, or the null descriptor.
fn raw(flags: u16) -> u64 {
    if flags == 0 { 0 } else { (u64::from(flags) << 40) | 0x000f_0000_0000_ffff }
}

/// The same descriptor as KVM takes it.
fn segment(index: u16, flags: u16) -> kvm_segment {
    let bit = |n: u16| u8::from((flags >> n) & 1 != 0);
    kvm_segment {
        base: 0,
        limit: if bit(15) != 0 { u32::MAX } else { 0xfffff },
        selector: index * 8,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: ((flags >> 5) & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_architectural_form() {
        assert_eq!(raw(descriptor::CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(raw(descriptor::DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(raw(0), 0);
        let code = segment(2, descriptor::CODE_64);
        assert_eq!((code.selector, code.type_, code.l, code.db, code.g), (0x10, 11, 1, 0, 1));
    }

    #[test]
    fn the_first_gibibyte_is_mapped_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut sregs = kvm_sregs::default();
        long_mode(&memory, &mut sregs).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(sregs.cr3, layout::PAGE_TABLES);
        let second = read(sregs.cr3) & !0xfff;
        let third = read(second) & !0xfff;
        assert_eq!(read(third + 8 * 511), (511 << 21) | 0x83);
    }
}
