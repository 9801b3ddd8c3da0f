//! Kernel and initrd images in guest memory.

use std::fs::File;
use std::io::{self, Read, Seek};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader, bzimage};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_devices::Memory;

use super::mapped::Mapped;
use crate::layout;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Kernels are loaded above the first MiB, which has the tables of the machine.
const LOWEST: GuestAddress = GuestAddress(1 << 20);
/// The entry point of the 64-bit protocol lies this far into a bzImage's protected-mode code (boot.rst).
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// The highest address an initrd may end at, so that every kernel reaches it (`initrd_addr_max`).
const INITRD_LIMIT: u64 = 0x8000_0000;

/// An image cannot be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The loader refused it.
    #[error("it is not a kernel this machine can start")]
    Format(#[source] loader::Error),
    /// It would be entered where it is not.
    #[error("its entry point {entry:#x} lies outside of it")]
    Entry {
        /// The address.
        entry: u64,
    },
    /// It does not fit.
    #[error("it needs {needed} bytes of guest memory where {available} are free")]
    Memory {
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Image {
    /// Entry point of the 64-bit protocol.
    pub entry: u64,
    /// Entry point of PVH.
    pub pvh_entry: Option<u64>,
    /// First address behind the kernel.
    pub end: u64,
    /// What a bzImage says of itself.
    pub setup_header: Option<setup_header>,
}

/// Puts a kernel where its own headers say.
pub(super) fn load_kernel(memory: &Memory, file: &File) -> Result<Image, ImageError> {
    let mut file = file;
    let mut magic = [0; 4];
    file.rewind().and_then(|()| file.read_exact(&mut magic)).map_err(ImageError::Read)?;
    let size = file.metadata().map_err(ImageError::Read)?.len();
    let available = low_memory(memory).saturating_sub(LOWEST.0);
    if size > available {
        return Err(ImageError::Memory { needed: size, available });
    }
    let mut file = file.try_clone().map_err(ImageError::Read)?;
    if magic == ELF_MAGIC {
        // Pages of 4 KiB cannot replace parts of huge ones.
        let loaded = if memory.iter().any(|region| region.is_hugetlbfs() == Some(true)) {
            Elf::load(&**memory, None, &mut file, Some(LOWEST))
        } else {
            let mut mapped = Mapped::new(&file).map_err(ImageError::Read)?;
            Elf::load(&**memory, None, &mut mapped, Some(LOWEST))
        }
        .map_err(ImageError::Format)?;
        let pvh_entry = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(address) => Some(address.0),
            _ => None,
        };
        // A file need not have anything to load, and may name any address.
        for entry in [Some(loaded.kernel_load.0), pvh_entry].into_iter().flatten() {
            if !(LOWEST.0..loaded.kernel_end).contains(&entry) {
                return Err(ImageError::Entry { entry });
            }
        }
        return Ok(Image {
            entry: loaded.kernel_load.0,
            pvh_entry,
            end: loaded.kernel_end,
            setup_header: None,
        });
    }
    let loaded =
        bzimage::BzImage::load(&**memory, None, &mut file, Some(LOWEST)).map_err(ImageError::Format)?;
    // The kernel unpacks itself in place and needs `init_size` bytes from where it is loaded.
    let init_size = loaded.setup_header.map_or(0, |header| u64::from(header.init_size));
    Ok(Image {
        entry: loaded.kernel_load.0 + BZIMAGE_ENTRY_64,
        pvh_entry: None,
        end: loaded.kernel_end.max(loaded.kernel_load.0 + init_size),
        setup_header: loaded.setup_header,
    })
}

/// Puts an initrd as high as kernels can reach, clear of the kernel that ends at `kernel_end`. Returns its
/// address and size.
pub(super) fn load_initrd(memory: &Memory, file: &File, kernel_end: u64) -> Result<(u64, u64), ImageError> {
    let size = file.metadata().map_err(ImageError::Read)?.len();
    let top = low_memory(memory).min(INITRD_LIMIT);
    let no_room = ImageError::Memory { needed: size, available: top.saturating_sub(kernel_end) };
    let Some(address) = top.checked_sub(size).map(|address| address & !(layout::PAGE - 1)) else {
        return Err(no_room);
    };
    if address < kernel_end {
        return Err(no_room);
    }
    let mut file = file.try_clone().map_err(ImageError::Read)?;
    file.rewind().map_err(ImageError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| ImageError::Read(io::Error::other(error)))?;
    Ok((address, size))
}

/// Bytes of memory from address 0 up to the first hole.
fn low_memory(memory: &Memory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, create};
    use std::io::Write;

    #[test]
    fn a_kernel_that_would_be_entered_where_it_is_not_is_refused() {
        // An ELF header for x86-64, entry point and all, with nothing to load.
        let mut header = [0; 64];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
        header[32] = 64;
        header[54] = 56;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&header).unwrap();
        let loaded = load_kernel(&create(64 << 20, Backing::Pages).unwrap(), &file);
        assert!(matches!(loaded, Err(ImageError::Entry { entry: 0x20_0000 })), "{loaded:?}");
    }
}
