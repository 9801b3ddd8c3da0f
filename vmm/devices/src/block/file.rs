//! The file behind a disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::SECTOR;

/// The file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened.
    #[error("cannot open disk {} for {}", path.display(), access(*.read_only))]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether it was to be read only.
        read_only: bool,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("disk {} is {what}, not a file or a block device", path.display())]
    NotADisk {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It has no whole sector.
    #[error("disk {} is empty: it has {bytes} bytes, and a sector has {SECTOR}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process writes to it, or reads it where this one was to write.
    #[error("disk {} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be locked or measured.
    #[error("cannot use disk {}", path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The serial number has no room in the device.
    #[error("serial number {serial:?} is longer than 20 bytes")]
    Serial {
        /// The serial number.
        serial: String,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open { read_only: false, source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Some("add \":ro\" to the path to use it read-only".to_owned())
            }
            Self::Locked { .. } => {
                Some("stop the VM that uses it, or let every VM use it read-only (\":ro\")".to_owned())
            }
            _ => None,
        }
    }
}

fn access(read_only: bool) -> &'static str {
    if read_only { "reading" } else { "reading and writing" }
}

/// Opens a disk and locks it: one writer, or any number of readers. Returns the file and its size in sectors; what
/// does not fill a sector at its end is left out.
pub(super) fn open(path: &Path, read_only: bool) -> Result<(File, u64), OpenError> {
    let here = || path.to_owned();
    let open_error = |source| OpenError::Open { path: here(), read_only, source };
    // Before opening: a pipe would block.
    let kind = std::fs::metadata(path).map_err(open_error)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = if kind.is_dir() { "a directory" } else { "a device or pipe" };
        return Err(OpenError::NotADisk { path: here(), what });
    }
    let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(open_error)?;
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: here() }),
        Err(TryLockError::Error(source)) => return Err(OpenError::Use { path: here(), source }),
    }
    // Tells the size of block devices too.
    let bytes = file.seek(SeekFrom::End(0)).map_err(|source| OpenError::Use { path: here(), source })?;
    if bytes < SECTOR {
        return Err(OpenError::Empty { path: here(), bytes });
    }
    Ok((file, bytes / SECTOR))
}
