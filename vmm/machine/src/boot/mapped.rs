//! A kernel file that is mapped into guest memory where a loader believes it reads.
//!
//! Copying a kernel takes most of the time a monitor spends before the guest runs, and gives every guest a copy of
//! the same text. Mapped privately, pages come from the host's page cache when the guest first touches them,
//! once for all guests; what the guest writes stays its own.
//!
//! The file must not be changed in place while guests run it, as with any program that is being executed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const PAGE: usize = 4096;

/// Reads like the file, except that whole pages of guest memory are replaced by pages of the file.
pub(super) struct Mapped<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> Mapped<'a> {
    /// A reader of `file` that is only ever asked to fill guest memory, each region of which is a mapping of its
    /// own in pages of 4 KiB.
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, len: file.metadata()?.len() })
    }
}

impl Read for Mapped<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        (&mut &*self.file).read(data)
    }
}

impl Seek for Mapped<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        (&mut &*self.file).seek(position)
    }
}

impl ReadVolatile for Mapped<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = self.stream_position().map_err(VolatileMemoryError::IOError)?;
        let start = buffer.ptr_guard_mut().as_ptr();
        let head = (start.addr().next_multiple_of(PAGE) - start.addr()).min(buffer.len());
        let pages = (buffer.len() - head) & !(PAGE - 1);
        let first_page = offset + head as u64;
        let in_file = first_page.checked_add(pages as u64).is_some_and(|end| end <= self.len);
        if pages == 0 || !in_file || !first_page.is_multiple_of(PAGE as u64) {
            return self.file.read_volatile(buffer);
        }
        // A caller that asked for everything takes less for an error: the ends are read around the pages.
        self.file.read_exact_volatile(&mut buffer.subslice(0, head)?)?;
        map(self.file, first_page, start.wrapping_add(head), pages).map_err(VolatileMemoryError::IOError)?;
        self.seek(SeekFrom::Start(first_page + pages as u64)).map_err(VolatileMemoryError::IOError)?;
        let mut tail = buffer.offset(head + pages)?;
        Ok(head + pages + self.file.read_volatile(&mut tail)?)
    }
}

fn map(file: &File, offset: u64, at: *mut u8, len: usize) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: `at..at + len` are whole pages of guest memory (the contract of `Mapped::new`), which Rust code only
    // reaches through volatile accesses, so that no reference sees its bytes change.
    let mapped = unsafe {
        libc::mmap(
            at.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, create};
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    fn file(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let content: Vec<u8> = (0..len).map(|i| (i / 3) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    fn load(address: u64, offset: usize, len: usize) -> (Vec<u8>, bool) {
        let (file, content) = file(64 << 10);
        let memory = create(1 << 20, Backing::Pages).unwrap();
        let mut source = Mapped::new(file.as_file()).unwrap();
        source.seek(SeekFrom::Start(offset as u64)).unwrap();
        memory.read_exact_volatile_from(GuestAddress(address), &mut source, len).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mapped = maps.contains(file.path().to_str().unwrap());
        let mut read = vec![0; len];
        memory.read_slice(&mut read, GuestAddress(address)).unwrap();
        assert_eq!(read, content[offset..offset + len]);
        // The guest writes all over it.
        memory.write_slice(&vec![0xee; len], GuestAddress(address)).unwrap();
        (std::fs::read(file.path()).unwrap(), mapped)
    }

    #[test]
    fn whole_pages_are_mapped_and_the_rest_is_read() {
        let (_, original) = file(64 << 10);
        for (address, offset, len) in
            [(0x8000, 0x1000, 0x3000), (0x8000, 0x1000, 0x3123), (0x8123, 0x1123, 0x4000)]
        {
            let (after, mapped) = load(address, offset, len);
            assert!(mapped, "{address:#x}");
            assert_eq!(after, original, "the guest's writes reached the file");
        }
    }

    #[test]
    fn what_is_not_aligned_alike_or_too_short_is_read() {
        for (address, offset, len) in
            [(0x8000, 0x1001, 0x3000), (0x8000, 0x1000, 0x123), (0x8ff0, 0xff0, 0x8)]
        {
            let (_, mapped) = load(address, offset, len);
            assert!(!mapped, "{address:#x}");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let (file, _) = file(0x1800);
        let memory = create(1 << 20, Backing::Pages).unwrap();
        let mut source = Mapped::new(file.as_file()).unwrap();
        source.rewind().unwrap();
        assert!(memory.read_exact_volatile_from(GuestAddress(0x8000), &mut source, 0x3000).is_err());
    }
}
