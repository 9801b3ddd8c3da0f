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
