//! What the kernel is told about the machine: the zero page of the Linux protocol, or PVH's start info.

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{self, BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{self, load_cmdline};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_devices::Memory;

use crate::layout;

/// The boot parameters could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// The command line.
    #[error("the command line does not fit")]
    Cmdline(#[source] loader::Error),
    /// The rest.
    #[error("the parameters do not fit")]
    Write(#[source] configurator::Error),
}

/// Memory types of the e820 map, which PVH shares.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Header values of the Linux boot protocol (boot.rst).
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;

const PVH_MAGIC: u32 = 0x336e_c578;

/// Address, length and type of each piece of the address space below the holes.
pub(crate) fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::MP_TABLE, RAM),
        (layout::MP_TABLE, layout::CONVENTIONAL_END - layout::MP_TABLE, RESERVED),
        (layout::ACPI, layout::KERNEL - layout::ACPI, RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::KERNEL);
        let end = region.start_addr().0 + region.len();
        map.push((start, end - start, RAM));
    }
    map
}

/// What a memory type is called.
pub(crate) fn memory_type(kind: u32) -> &'static str {
    if kind == RAM { "memory" } else { "reserved" }
}

/// Writes command line and zero page for the 64-bit protocol.
pub(super) fn write_linux(
    memory: &Memory,
    cmdline: &Cmdline,
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
    header: Option<setup_header>,
) -> Result<(), ParamsError> {
    write_cmdline(memory, cmdline)?;
    let mut params = boot_params::default();
    if let Some(header) = header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = super::cmdline::MAX as u32;
    if let Some((address, size)) = initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = rsdp.unwrap_or(0);
    for (i, (addr, size, type_)) in memory_map(memory).into_iter().enumerate() {
        params.e820_table[i] = boot_e820_entry { addr, size, r#type: type_ };
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(layout::BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, &**memory).map_err(ParamsError::Write)
}

/// Writes command line and start info for PVH.
pub(super) fn write_pvh(
    memory: &Memory,
    cmdline: &Cmdline,
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
) -> Result<(), ParamsError> {
    write_cmdline(memory, cmdline)?;
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::BOOT_PARAMS));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, &**memory).map_err(ParamsError::Write)
}

fn write_cmdline(memory: &Memory, cmdline: &Cmdline) -> Result<(), ParamsError> {
    load_cmdline(&**memory, GuestAddress(layout::CMDLINE), cmdline).map_err(ParamsError::Cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, create};
    use vm_memory::Bytes;

    #[test]
    fn the_map_leaves_the_gap_and_the_tables_out() {
        let map = memory_map(&create(5 << 30, Backing::Pages).unwrap());
        let ram: Vec<_> = map.iter().filter(|piece| piece.2 == RAM).map(|p| (p.0, p.0 + p.1)).collect();
        assert_eq!(ram, [(0, 0x9fc00), (1 << 20, 3 << 30), (4 << 30, 6 << 30)]);
    }

    #[test]
    fn pvh_start_info_points_to_its_parts() {
        let memory = create(64 << 20, Backing::Pages).unwrap();
        let line = crate::boot::command_line("quiet").unwrap();
        write_pvh(&memory, &line, Some((0x200_0000, 77)), Some(layout::ACPI)).unwrap();
        let read = |offset| memory.read_obj::<u32>(GuestAddress(layout::BOOT_PARAMS + offset)).unwrap();
        assert_eq!((read(0), read(4), read(12)), (PVH_MAGIC, 1, 1));
        let mut text = [0; 6];
        memory.read_slice(&mut text, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!(&text, b"quiet\0");
        let module: [u64; 2] =
            [0, 8].map(|i| memory.read_obj(GuestAddress(layout::PVH_MODULES + i)).unwrap());
        assert_eq!(module, [0x200_0000, 77]);
    }

    #[test]
    fn zero_page_has_header_map_and_rsdp() {
        let memory = create(64 << 20, Backing::Pages).unwrap();
        let line = crate::boot::command_line("quiet").unwrap();
        write_linux(&memory, &line, None, Some(layout::ACPI), None).unwrap();
        let at = |offset| GuestAddress(layout::BOOT_PARAMS + offset);
        assert_eq!(memory.read_obj::<u8>(at(0x1e8)).unwrap(), 4);
        assert_eq!(memory.read_obj::<u64>(at(0x70)).unwrap(), layout::ACPI);
        assert_eq!(memory.read_obj::<u32>(at(0x202)).unwrap(), HEADER_MAGIC);
        assert_eq!(memory.read_obj::<u32>(at(0x228)).unwrap(), layout::CMDLINE as u32);
    }
}
