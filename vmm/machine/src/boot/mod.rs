//! Getting a kernel into guest memory and a processor to its entry point.

mod cmdline;
mod image;
mod mapped;
mod params;

use std::fs::File;

use kvm_bindings::{kvm_regs, kvm_sregs};
use linux_loader::cmdline::Cmdline;
use serde::Serialize;
use vm_memory::{GuestMemoryError, GuestMemoryMmap};
use vmm_devices::Memory;

pub use cmdline::{CmdlineError, command_line, insert_word};
pub use image::{Image, ImageError};
pub(crate) use params::{memory_map, memory_type};

use crate::description::Range;
use crate::layout;
use crate::x86::start;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// PVH: 32-bit protected mode, `ebx` points to the start info (Xen `docs/misc/pvh.pandoc`).
    Pvh,
    /// The 64-bit boot protocol: long mode, `rsi` points to the zero page
    /// (Linux `Documentation/arch/x86/boot.rst`).
    Linux64,
}

/// What to boot.
pub struct Source<'a> {
    /// An ELF vmlinux or a bzImage.
    pub kernel: &'a File,
    /// An initial file system, if any.
    pub initrd: Option<&'a File>,
    /// The command line.
    pub cmdline: &'a Cmdline,
    /// How to enter the kernel; by default PVH where the kernel has it.
    pub protocol: Option<Protocol>,
    /// Where the ACPI tables start (RSDP), if there are any.
    pub rsdp: Option<u64>,
}

/// The kernel cannot be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel itself.
    #[error("cannot load the kernel")]
    Kernel(#[source] ImageError),
    /// The initial file system.
    #[error("cannot load the initrd")]
    Initrd(#[source] ImageError),
    /// The kernel has no such entry.
    #[error("the kernel has no {0:?} entry point")]
    Protocol(Protocol),
    /// What the kernel is told about the machine.
    #[error("cannot write the boot parameters")]
    Params(#[source] params::ParamsError),
}

/// A kernel in memory, and all that it needs.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where to enter it.
    pub entry: Entry,
    /// What was put where.
    pub contents: Vec<Range>,
}

/// Where a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// In which way.
    pub protocol: Protocol,
    /// At which guest physical address.
    pub address: u64,
}

/// Loads kernel, initrd, command line and boot parameters.
pub fn load(memory: &Memory, source: &Source) -> Result<Loaded, BootError> {
    let image = image::load_kernel(memory, source.kernel).map_err(BootError::Kernel)?;
    let (protocol, address) = match (source.protocol, image.pvh_entry) {
        (None | Some(Protocol::Pvh), Some(entry)) => (Protocol::Pvh, entry),
        (Some(Protocol::Pvh), None) => return Err(BootError::Protocol(Protocol::Pvh)),
        (None | Some(Protocol::Linux64), _) => (Protocol::Linux64, image.entry),
    };
    let initrd = match source.initrd {
        Some(file) => Some(image::load_initrd(memory, file, image.end).map_err(BootError::Initrd)?),
        None => None,
    };
    match protocol {
        Protocol::Pvh => params::write_pvh(memory, source.cmdline, initrd, source.rsdp),
        Protocol::Linux64 => {
            params::write_linux(memory, source.cmdline, initrd, source.rsdp, image.setup_header)
        }
    }
    .map_err(BootError::Params)?;
    let mut contents = vec![
        Range::new("boot parameters", layout::BOOT_PARAMS, layout::PAGE),
        Range::new(
            "command line",
            layout::CMDLINE,
            source.cmdline.as_cstring().map_or(0, |line| line.count_bytes() as u64 + 1),
        ),
        Range { what: "kernel".into(), start: image.entry & !(layout::PAGE - 1), end: image.end },
    ];
    contents.extend(initrd.map(|(address, len)| Range::new("initrd", address, len)));
    Ok(Loaded { entry: Entry { protocol, address }, contents })
}

impl Entry {
    /// Sets the boot processor's registers so that it starts here.
    pub fn prepare(
        self,
        memory: &GuestMemoryMmap,
        sregs: &mut kvm_sregs,
    ) -> Result<kvm_regs, GuestMemoryError> {
        let mut regs = kvm_regs { rip: self.address, rflags: 2, ..Default::default() };
        match self.protocol {
            Protocol::Pvh => {
                start::protected_mode(memory, sregs)?;
                regs.rbx = layout::BOOT_PARAMS;
            }
            Protocol::Linux64 => {
                start::long_mode(memory, sregs)?;
                regs.rsi = layout::BOOT_PARAMS;
            }
        }
        Ok(regs)
    }
}
