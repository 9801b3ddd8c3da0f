//! The busybox that the default root file system is made of: one static program with many names.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use vmm_images_archive::deb::{DebError, Package};
use vmm_images_archive::packages::{PackageError, PackageManager};

/// The package with a static busybox, and where packages have had the program.
const PACKAGE: &str = "busybox-static";
const PATHS_IN_PACKAGE: [&str; 2] = ["bin/busybox", "usr/bin/busybox"];

/// No busybox is near this size; what is larger is something else.
const MAX_SIZE: u64 = 64 << 20;

/// Why there is no busybox to use.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// The program cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The program.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The program cannot run without the libraries of this system.
    #[error("{path:?} {problem}")]
    Unusable {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The program does not tell its names.
    #[error("{path:?} does not list its applets as busybox does: {reason}")]
    NotBusybox {
        /// The program.
        path: PathBuf,
        /// What came of asking it.
        reason: String,
    },
    /// The package cannot be had.
    #[error("cannot fetch the package {PACKAGE}")]
    Fetch(#[source] PackageError),
    /// The package cannot be read.
    #[error("cannot open the package {PACKAGE}")]
    Open(#[source] DebError),
    /// The package holds no busybox where it should.
    #[error("the package {PACKAGE} has no bin/busybox")]
    NotInPackage,
    /// The program from the package cannot be kept.
    #[error("cannot write to {path:?}")]
    Keep {
        /// The cache directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl BusyboxError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch(error) => error.hint(),
            Self::Unusable { .. } | Self::NotBusybox { .. } | Self::NotInPackage => {
                Some(format!("name a static busybox for x86-64, such as the one in Debian's {PACKAGE}"))
            }
            Self::Read { .. } | Self::Open(_) | Self::Keep { .. } => None,
        }
    }
}

/// A static busybox and its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busybox {
    /// The program.
    pub program: Vec<u8>,
    /// The paths, relative to the root, under which it does different things.
    pub applets: Vec<PathBuf>,
}

impl Busybox {
    /// Takes the program at `path`, and asks it for its applets.
    pub fn open(path: &Path) -> Result<Self, BusyboxError> {
        let read_error = |source| BusyboxError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(read_error)?.len() > MAX_SIZE {
            return Err(BusyboxError::Unusable {
                path: path.to_owned(),
                problem: "is too large for a busybox",
            });
        }
        let program = fs::read(path).map_err(read_error)?;
        check_static(&program)
            .map_err(|problem| BusyboxError::Unusable { path: path.to_owned(), problem })?;
        let applets = list_applets(path)
            .map_err(|reason| BusyboxError::NotBusybox { path: path.to_owned(), reason })?;
        Ok(Self { program, applets })
    }

    /// Finds a busybox: the one in `search_path` (as `$PATH` has it) if it is static, else one that was fetched
    /// before, else the one that the system's package manager has. `cache` keeps what is fetched.
    pub fn find(search_path: &OsStr, cache: &Path, is_root: bool) -> Result<Self, BusyboxError> {
        let installed = std::env::split_paths(search_path)
            .map(|directory| directory.join("busybox"))
            .find_map(|path| Self::open(&path).ok());
        if let Some(busybox) = installed {
            return Ok(busybox);
        }
        let kept = cache.join("busybox");
        if let Ok(busybox) = Self::open(&kept) {
            return Ok(busybox);
        }
        keep(&fetch(cache, is_root)?, &kept)?;
        Self::open(&kept)
    }
}

/// Fetches the package and takes the program from it.
fn fetch(cache: &Path, is_root: bool) -> Result<Vec<u8>, BusyboxError> {
    let keep_error = |source| BusyboxError::Keep { path: cache.to_owned(), source };
    fs::create_dir_all(cache).map_err(keep_error)?;
    let scratch = tempfile::tempdir_in(cache).map_err(keep_error)?;
    let manager = PackageManager::find(is_root).map_err(BusyboxError::Fetch)?;
    let package = manager.download(PACKAGE, scratch.path()).map_err(BusyboxError::Fetch)?;
    let package = Package::open(&package).map_err(BusyboxError::Open)?;
    for path in PATHS_IN_PACKAGE {
        if let Some(program) = package.read(Path::new(path), MAX_SIZE).map_err(BusyboxError::Open)? {
            return Ok(program);
        }
    }
    Err(BusyboxError::NotInPackage)
}

/// Writes the program to `path`, whole or not at all.
fn keep(program: &[u8], path: &Path) -> Result<(), BusyboxError> {
    use std::os::unix::fs::PermissionsExt;

    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let permissions = fs::Permissions::from_mode(0o755);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(directory)?;
        file.write_all(program)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| BusyboxError::Keep { path: directory.to_owned(), source })
}

/// Checks that `program` is an x86-64 executable that needs no loader (ELF-64, `elf(5)`). The error says what it is
/// instead.
fn check_static(program: &[u8]) -> Result<(), &'static str> {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    /// Class 64 bits, little-endian.
    const IDENT: &[u8] = b"\x7fELF\x02\x01";

    let short = "is cut short";
    let u16_at = |at: usize| {
        let bytes = at.checked_add(2).and_then(|end| program.get(at..end)).ok_or(short)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    if !program.starts_with(IDENT) || u16_at(18)? != EM_X86_64 {
        return Err("is no program for x86-64");
    }
    let table = program.get(32..40).ok_or(short)?.try_into().map_or(0, u64::from_le_bytes) as usize;
    let (entry_size, entries) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..entries {
        let entry =
            index.checked_mul(entry_size).and_then(|offset| table.checked_add(offset)).ok_or(short)?;
        let kind = entry.checked_add(4).and_then(|end| program.get(entry..end)).ok_or(short)?;
        if kind == PT_INTERP.to_le_bytes() {
            return Err("needs shared libraries, which a guest does not have");
        }
    }
    Ok(())
}

/// Asks the program at `path` for the paths of its applets.
fn list_applets(path: &Path) -> Result<Vec<PathBuf>, String> {
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    let output = Command::new(path)
        .arg("--list-full")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    let applets = parse_applets(&String::from_utf8_lossy(&output.stdout));
    if applets.is_empty() { Err("the list is empty".to_owned()) } else { Ok(applets) }
}

/// Takes the lines that are relative paths inside a root; other lines are not applets.
fn parse_applets(list: &str) -> Vec<PathBuf> {
    list.lines()
        .filter(|line| !line.is_empty() && !line.contains(char::is_whitespace))
        .map(PathBuf::from)
        .filter(|path| path.components().all(|component| matches!(component, Component::Normal(_))))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An ELF header with one program header of the given type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes.extend(kind.to_le_bytes());
        bytes.resize(64 + 56, 0);
        bytes
    }

    #[test]
    fn a_program_with_a_loader_is_refused() {
        assert_eq!(check_static(&elf(1)), Ok(()));
        assert_eq!(check_static(&elf(3)), Err("needs shared libraries, which a guest does not have"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(check_static(b"").is_err());
        assert!(check_static(b"#!/bin/sh").is_err());
        assert!(check_static(&elf(1)[..20]).is_err());
        assert!(check_static(&elf(1)[..66]).is_err());
        let mut far = elf(1);
        far[32..40].fill(0xff);
        assert!(check_static(&far).is_err());
    }

    #[test]
    fn only_paths_inside_the_root_are_applets() {
        let list = "usr/bin/[\nbin/ls\n/etc/passwd\n../escape\nerror: no\n\n";
        assert_eq!(parse_applets(list), [PathBuf::from("usr/bin/["), PathBuf::from("bin/ls")]);
    }

    #[test]
    fn a_script_is_no_busybox() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("busybox");
        fs::write(&path, "#!/bin/sh\necho bin/ls\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Busybox::open(&path), Err(BusyboxError::Unusable { .. })));
        let missing = directory.path().join("missing");
        assert!(matches!(Busybox::open(&missing), Err(BusyboxError::Read { .. })));
    }

    #[test]
    fn a_kept_program_is_whole_and_executable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("busybox");
        keep(b"program", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"program");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
