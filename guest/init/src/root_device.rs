//! Finding and mounting the root file system.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::cmdline::CommandLine;
use crate::inotify;

/// Why there is no root file system.
#[derive(Debug)]
pub(crate) enum RootError {
    /// The command line has no `root=`.
    NotGiven,
    /// `root=` is no path of a device.
    NotADevice(String),
    /// The device did not appear.
    Missing { device: PathBuf, waited: Duration },
    /// Looking for the device failed.
    Wait { device: PathBuf, cause: Errno },
    /// The device cannot be read.
    Read { device: PathBuf, cause: io::Error },
    /// The kernel lacks the file system that is on the device.
    Unsupported { device: PathBuf, file_system: &'static str },
    /// No file system that was tried is on the device.
    Unknown { device: PathBuf, tried: Vec<String> },
    /// The file system is known, and refused to be mounted.
    Mount { device: PathBuf, file_system: String, cause: Errno },
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGiven => f.write_str("no root file system: the kernel command line has no root="),
            Self::NotADevice(root) => {
                write!(f, "root={root}: only the path of a device is understood, such as root=/dev/vda")
            }
            Self::Missing { device, waited } => {
                write!(f, "no root device: {} did not appear in {} s", device.display(), waited.as_secs())
            }
            Self::Wait { device, cause } => {
                write!(f, "cannot wait for {}: {}", device.display(), cause.desc())
            }
            Self::Read { device, cause } => write!(f, "cannot read {}: {cause}", device.display()),
            Self::Unsupported { device, file_system } => {
                write!(f, "{} holds {file_system}, which this kernel cannot mount", device.display())
            }
            Self::Unknown { device, tried } => {
                write!(f, "no file system found on {} (tried {})", device.display(), tried.join(", "))
            }
            Self::Mount { device, file_system, cause } => {
                write!(f, "cannot mount {} as {file_system}: {}", device.display(), cause.desc())
            }
        }
    }
}

/// Waits for the device that `root=` names.
pub(crate) fn wait(command_line: &CommandLine) -> Result<PathBuf, RootError> {
    let root = command_line.root.as_deref().ok_or(RootError::NotGiven)?;
    if !root.starts_with("/dev/") {
        return Err(RootError::NotADevice(root.to_owned()));
    }
    let device = PathBuf::from(root);
    match inotify::wait_for(&device, command_line.root_wait) {
        Ok(true) => Ok(device),
        Ok(false) => Err(RootError::Missing { device, waited: command_line.root_wait }),
        Err(cause) => Err(RootError::Wait { device, cause }),
    }
}

/// Mounts `device` on `target` as the command line wants it.
pub(crate) fn mount_root(device: &Path, target: &Path, command_line: &CommandLine) -> Result<(), RootError> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let types = if command_line.root_types.is_empty() {
        let found = signature(device)?;
        if let Some(file_system) = found
            && !block_file_systems(&known).any(|name| name == file_system)
        {
            return Err(RootError::Unsupported { device: device.to_owned(), file_system });
        }
        match found {
            Some(file_system) => vec![file_system.to_owned()],
            None => block_file_systems(&known).map(str::to_owned).collect(),
        }
    } else {
        command_line.root_types.clone()
    };

    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, command_line.read_only);
    for file_system in &types {
        match try_mount(device, target, file_system, flags, command_line.root_flags.as_deref()) {
            Ok(()) => return Ok(()),
            // Not this file system, or not one that the kernel knows: the next may be. With one candidate, the
            // kernel's answer says more than a list of one.
            Err(Errno::EINVAL | Errno::ENODEV) if types.len() > 1 => {}
            Err(cause) => {
                let (device, file_system) = (device.to_owned(), file_system.clone());
                return Err(RootError::Mount { device, file_system, cause });
            }
        }
    }
    Err(RootError::Unknown { device: device.to_owned(), tried: types })
}

fn try_mount(
    device: &Path,
    target: &Path,
    file_system: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> nix::Result<()> {
    let options = options.and_then(|text| CString::new(text).ok());
    let attempt = |flags| mount(Some(device), target, Some(file_system), flags, options.as_deref());
    match attempt(flags) {
        // The device or the file system is read-only: the kernel's own mount of a root does the same.
        Err(Errno::EACCES | Errno::EROFS) if !flags.contains(MsFlags::MS_RDONLY) => {
            attempt(flags | MsFlags::MS_RDONLY)
        }
        result => result,
    }
}

/// The file systems in the text of `/proc/filesystems` that live on a block device.
fn block_file_systems(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix('\t')).map(str::trim)
}

/// Names the file system on `device` by its signature, if it is one of the usual ones. Knowing it saves failed
/// mounts, each of which costs a line on the console.
fn signature(device: &Path) -> Result<Option<&'static str>, RootError> {
    /// File system, offset of its signature in bytes, signature.
    const SIGNATURES: [(&str, u64, &[u8]); 5] = [
        ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        ("ext4", 1024 + 56, &[0x53, 0xef]),
        ("squashfs", 0, b"hsqs"),
        ("xfs", 0, b"XFSB"),
        ("btrfs", 0x10040, b"_BHRfS_M"),
    ];
    let read_error = |cause| RootError::Read { device: device.to_owned(), cause };
    let file = File::open(device).map_err(read_error)?;
    for (name, offset, signature) in SIGNATURES {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..signature.len()];
        match file.read_exact_at(bytes, offset) {
            Ok(()) if bytes == signature => return Ok(Some(name)),
            Ok(()) => {}
            // A device too small for this one.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(cause) => return Err(read_error(cause)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_on_block_devices_are_candidates() {
        let text = "nodev\tproc\nnodev\ttmpfs\n\text4\n\terofs\n";
        assert_eq!(block_file_systems(text).collect::<Vec<_>>(), ["ext4", "erofs"]);
    }

    #[test]
    fn signatures_name_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        for (offset, bytes, expected) in [
            (1024, &[0xe2, 0xe1, 0xf5, 0xe0][..], Some("erofs")),
            (1080, &[0x53, 0xef][..], Some("ext4")),
            (0, b"hsqs", Some("squashfs")),
            (0, b"what", None),
        ] {
            let file = File::create(&image).unwrap();
            file.set_len(1 << 17).unwrap();
            file.write_all_at(bytes, offset).unwrap();
            assert_eq!(signature(&image).unwrap(), expected);
        }
    }

    #[test]
    fn an_empty_device_has_no_signature() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(signature(file.path()).unwrap(), None);
    }

    #[test]
    fn a_root_that_is_no_device_path_is_refused() {
        let error = wait(&CommandLine::parse("root=UUID=1234")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "root=UUID=1234: only the path of a device is understood, such as root=/dev/vda"
        );
        assert!(matches!(wait(&CommandLine::parse("quiet")), Err(RootError::NotGiven)));
    }

    #[test]
    fn a_root_that_does_not_come_is_reported_with_the_time_waited() {
        let error = wait(&CommandLine::parse("root=/dev/nonexistent rootwait=0")).unwrap_err();
        assert_eq!(error.to_string(), "no root device: /dev/nonexistent did not appear in 0 s");
    }
}
