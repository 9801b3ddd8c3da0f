//! Disks as users name them, and the file systems on them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Once};

use vmm_devices::block::{Block, FaultSink, OpenError, Options};

/// The longest serial number (virtio 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID`).
const SERIAL_MAX: usize = 20;

/// `PATH[:ro][,serial=ID]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskSpec {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    pub(super) serial: Option<String>,
}

impl DiskSpec {
    /// Opens and locks the disk. The first request that fails on the host is told on the terminal.
    pub(super) fn open(&self) -> Result<Block, OpenError> {
        let (path, told) = (self.path.clone(), Once::new());
        let faults: FaultSink = Arc::new(move |fault| {
            told.call_once(|| {
                let (path, error) = (path.display(), &fault.error);
                eprintln!("vmm: disk {path}: {fault}: {error}; the guest is told of I/O errors\r");
            });
        });
        let options = Options {
            read_only: self.read_only,
            serial: self.serial.clone(),
            faults: Some(faults),
            ..Options::default()
        };
        Block::open(&self.path, options)
    }
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, serial) = match text.rsplit_once(",serial=") {
            Some((_, serial)) if serial.is_empty() || serial.len() > SERIAL_MAX => {
                return Err(format!("a serial number has 1 to {SERIAL_MAX} bytes"));
            }
            Some((place, serial)) => (place, Some(serial.to_owned())),
            None => (text, None),
        };
        let (path, read_only) = match place.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (place, false),
        };
        if path.is_empty() {
            return Err("a disk needs a path: PATH[:ro][,serial=ID]".to_owned());
        }
        Ok(Self { path: path.into(), read_only, serial })
    }
}

/// What is on a disk, as far as it matters to mount it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    Ext4,
    Erofs,
    Squashfs,
}

impl FileSystem {
    /// Looks at the superblock. `None` where it is unknown, or cannot be read: opening the disk will say why.
    pub(super) fn on(path: &Path) -> Option<Self> {
        let mut start = [0; 2048];
        File::open(path).and_then(|file| file.read_exact_at(&mut start, 0)).ok()?;
        Self::of(&start)
    }

    fn of(start: &[u8; 2048]) -> Option<Self> {
        match start {
            _ if start[1024..1028] == 0xe0f5_e1e2_u32.to_le_bytes() => Some(Self::Erofs),
            _ if start[1080..1082] == 0xef53_u16.to_le_bytes() => Some(Self::Ext4),
            _ if &start[..4] == b"hsqs" => Some(Self::Squashfs),
            _ => None,
        }
    }

    /// Its name in the kernel.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }

    /// The modules that mount it.
    pub(super) fn as_module(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["ext4"],
            Self::Erofs => &["erofs"],
            Self::Squashfs => &["squashfs"],
        }
    }

    /// Whether it can be written to at all.
    pub(super) fn is_writable(self) -> bool {
        self == Self::Ext4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, read_only: bool, serial: Option<&str>) -> DiskSpec {
        DiskSpec { path: path.into(), read_only, serial: serial.map(str::to_owned) }
    }

    #[test]
    fn options_follow_the_path() {
        for (text, expected) in [
            ("a.img", spec("a.img", false, None)),
            ("a.img:ro", spec("a.img", true, None)),
            ("/x:y/a.img:rw,serial=data", spec("/x:y/a.img", false, Some("data"))),
            ("a,b.img:ro,serial=1", spec("a,b.img", true, Some("1"))),
            ("a:b", spec("a:b", false, None)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", ":ro", ",serial=x", "a,serial=", "a,serial=123456789012345678901"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn superblocks_are_told_apart() {
        let with = |at: usize, magic: &[u8]| {
            let mut start = [0; 2048];
            start[at..at + magic.len()].copy_from_slice(magic);
            FileSystem::of(&start)
        };
        assert_eq!(with(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), Some(FileSystem::Erofs));
        assert_eq!(with(1080, &[0x53, 0xef]), Some(FileSystem::Ext4));
        assert_eq!(with(0, b"hsqs"), Some(FileSystem::Squashfs));
        assert_eq!(with(0, b"\x7fELF"), None);
    }
}
