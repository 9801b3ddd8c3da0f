//! Where things lie in the guest's physical address space, in bytes.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0000_0500` | `0x0000_0520` | GDT of the boot processor |
//! | `0x0000_7000` | `0x0000_8000` | boot parameters (zero page, or PVH start info and memory map) |
//! | `0x0000_9000` | `0x0000_c000` | page tables that the 64-bit boot protocol asks for |
//! | `0x0002_0000` | `0x0002_0800` | kernel command line |
//! | `0x0009_fc00` | `0x000a_0000` | MP table, at the end of conventional memory |
//! | `0x000e_0000` | `0x0010_0000` | ACPI tables, RSDP first |
//! | `0x0010_0000` | up to 3 GiB | kernel, initrd, memory |
//! | `0xc000_0000` | `0x1_0000_0000` | no memory: devices |
//! | `0x1_0000_0000` | | the rest of memory |

/// A page.
pub const PAGE: u64 = 4096;
/// Global descriptor table of the boot processor.
pub const GDT: u64 = 0x500;
/// Page tables: one page each for the top level, the second, and the third, which maps the first GiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// Where the hole for devices starts below 4 GiB.
pub const DEVICE_GAP_START: u64 = 0xc000_0000;
/// Where memory goes on above the hole.
pub const HIGH_MEMORY: u64 = 0x1_0000_0000;
/// Three pages that KVM uses for itself on Intel (`KVM_SET_TSS_ADDR`), in the hole.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM uses for itself on Intel (`KVM_SET_IDENTITY_MAP_ADDR`), in the hole.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The smallest guest that is worth starting.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Zero page of the 64-bit boot protocol, or PVH's start info.
pub const BOOT_PARAMS: u64 = 0x7000;
/// PVH's list of modules: the initrd.
pub const PVH_MODULES: u64 = 0x7100;
/// PVH's memory map.
pub const PVH_MEMORY_MAP: u64 = 0x7200;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// MP table: the last KiB of conventional memory, one of the places where kernels look.
pub const MP_TABLE: u64 = 0x9_fc00;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// ACPI tables, where kernels look for the RSDP.
pub const ACPI: u64 = 0xe_0000;
/// First address for kernels.
pub const KERNEL: u64 = 0x10_0000;
/// First virtio-mmio device; the others follow.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Registers of the I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Registers of the local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
