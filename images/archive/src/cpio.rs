//! Writes cpio archives in the "newc" format, as the kernel unpacks them into its first root file system.
//!
//! The format is described in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. The
//! same calls always make the same bytes: times and owners are zero, inode numbers count up.

use std::io::{self, Write};

const TRAILER: &str = "TRAILER!!!";
/// The kernel takes archives up to any length, but pads and reads in blocks of this size as cpio(1) does.
const BLOCK_BYTES: u64 = 512;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive under construction. Parents must be written before what they contain.
pub struct Writer<W> {
    output: W,
    inode: u32,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `output`.
    pub fn new(output: W) -> Self {
        Self { output, inode: 0, written: 0 }
    }

    /// A directory with permission bits `mode`.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, S_IFDIR | mode, 2, (0, 0), &[])
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | mode, 1, (0, 0), content)
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, S_IFLNK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, S_IFCHR | mode, 1, (major, minor), &[])
    }

    /// Writes the trailer and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header(TRAILER, 0, 1, (0, 0), 0)?;
        let padding = self.written.next_multiple_of(BLOCK_BYTES) - self.written;
        self.zeros(padding)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).map_err(|_| refused(path, "is larger than 4 GiB"))?;
        if path.is_empty() || path == TRAILER || path.contains('\0') {
            return Err(refused(path, "is no name for an archive member"));
        }
        self.inode += 1;
        self.header(path, mode, links, device, size)?;
        self.write(content)?;
        self.align()
    }

    fn header(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), size: u32) -> io::Result<()> {
        let (major, minor) = device;
        let name_bytes = path.len() + 1;
        let inode = self.inode;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, dev (major, minor), rdev (major, minor),
        // namesize, check
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}\
             {minor:08x}{name_bytes:08x}{0:08x}",
            0
        );
        self.write(header.as_bytes())?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.align()
    }

    /// Headers and contents start at multiples of four.
    fn align(&mut self) -> io::Result<()> {
        self.zeros(self.written.next_multiple_of(4) - self.written)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.write(&[0; BLOCK_BYTES as usize][..count as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

fn refused(path: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, mode, content) of each member, by a reader written from the format's description.
    fn read_back(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut members = Vec::new();
        loop {
            let (header, rest) = archive.split_at(110);
            assert_eq!(&header[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&header[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_bytes) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(rest[..name_bytes - 1].to_vec()).unwrap();
            let start = (110 + name_bytes).next_multiple_of(4);
            if name == TRAILER {
                assert!(archive[start..].iter().all(|&byte| byte == 0));
                return members;
            }
            members.push((name, mode, archive[start..start + size].to_vec()));
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let write = || {
            let mut writer = Writer::new(Vec::new());
            writer.directory("lib", 0o755).unwrap();
            writer.file("/lib/odd", 0o644, b"12345").unwrap();
            writer.file("init", 0o755, b"").unwrap();
            writer.symlink("bin", "usr/bin").unwrap();
            writer.character_device("console", 0o600, 5, 1).unwrap();
            writer.finish().unwrap()
        };
        let archive = write();
        assert_eq!(archive.len() % 512, 0);
        assert_eq!(archive, write(), "the same calls make the same bytes");
        let expected: [(&str, u32, &[u8]); 5] = [
            ("lib", 0o040_755, b""),
            ("lib/odd", 0o100_644, b"12345"),
            ("init", 0o100_755, b""),
            ("bin", 0o120_777, b"usr/bin"),
            ("console", 0o020_600, b""),
        ];
        let members = read_back(&archive);
        assert_eq!(members.len(), expected.len());
        for ((name, mode, content), expected) in members.iter().zip(expected) {
            assert_eq!((name.as_str(), *mode, content.as_slice()), expected);
        }
    }

    #[test]
    fn names_that_would_end_or_break_the_archive_are_refused() {
        let mut writer = Writer::new(Vec::new());
        for name in ["", "/", "TRAILER!!!", "a\0b"] {
            assert!(writer.file(name, 0o644, b"").is_err(), "{name:?}");
        }
    }
}
