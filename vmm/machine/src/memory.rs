//! Guest memory: one memfd, mapped where the guest sees memory, populated only where it is touched.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_devices::Memory;

use crate::layout;

const NAME: &CStr = c"guest-memory";

/// Guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size makes no sense.
    #[error("guest memory of {bytes} bytes is not a multiple of {page} bytes")]
    Alignment {
        /// What was asked for.
        bytes: u64,
        /// What it has to be a multiple of.
        page: u64,
    },
    /// The host refused to make or map it.
    #[error("cannot create {bytes} bytes of guest memory")]
    Create {
        /// What was asked for.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The pieces do not fit together.
    #[error("cannot lay out guest memory")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
}

/// What backs guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Ordinary pages.
    #[default]
    Pages,
    /// 2 MiB pages from the host's pool (hugetlbfs); reserved when the machine is made.
    HugePages,
}

impl Backing {
    fn page_size(self) -> u64 {
        match self {
            Self::Pages => 4096,
            Self::HugePages => 2 << 20,
        }
    }
}

/// The pieces of guest memory of `bytes` in all: address and length, lowest first.
pub fn regions(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(layout::DEVICE_GAP_START);
    let mut regions = vec![(GuestAddress(0), low)];
    if bytes > low {
        regions.push((GuestAddress(layout::HIGH_MEMORY), bytes - low));
    }
    regions
}

/// Makes guest memory of `bytes` bytes. Nothing is touched: pages come into being when the guest uses them
/// (except that huge pages are reserved at once).
pub fn create(bytes: u64, backing: Backing) -> Result<Memory, MemoryError> {
    let page = backing.page_size();
    if bytes == 0 || !bytes.is_multiple_of(page) {
        return Err(MemoryError::Alignment { bytes, page });
    }
    let failed = |source: io::Error| MemoryError::Create { bytes, source };
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if backing == Backing::HugePages {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    let file = File::from(memfd_create(NAME, flags).map_err(|e| failed(e.into()))?);
    file.set_len(bytes).map_err(failed)?;
    let file = Arc::new(file);

    let mut mapped = Vec::new();
    let mut offset = 0;
    for (address, len) in regions(bytes) {
        let mapping = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_hugetlbfs(backing == Backing::HugePages)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build()
            .map_err(|e| failed(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(mapping, address)
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
        mapped.push(region);
        offset += len;
    }
    GuestMemoryMmap::from_regions(mapped).map(Arc::new).map_err(MemoryError::Layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn memory_beyond_the_gap_goes_above_4_gib() {
        assert_eq!(regions(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(regions(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(1 << 32), 2 << 30)]);
    }

    #[test]
    fn both_sides_of_the_gap_are_one_file() {
        let memory = create(5 << 30, Backing::Pages).unwrap();
        memory.write_obj(7u64, GuestAddress((1 << 32) + 8)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress((1 << 32) + 8)).unwrap(), 7);
        assert!(memory.write_obj(7u64, GuestAddress(layout::DEVICE_GAP_START)).is_err());
        let offset = memory.find_region(GuestAddress(1 << 32)).unwrap().file_offset().unwrap();
        assert_eq!(offset.start(), 3 << 30);
        assert_eq!(offset.file().metadata().unwrap().len(), 5 << 30);
    }

    #[test]
    fn odd_sizes_are_refused() {
        assert!(matches!(create(0, Backing::Pages), Err(MemoryError::Alignment { .. })));
        assert!(matches!(create(4097, Backing::Pages), Err(MemoryError::Alignment { page: 4096, .. })));
        assert!(matches!(create(4096, Backing::HugePages), Err(MemoryError::Alignment { .. })));
    }
}
