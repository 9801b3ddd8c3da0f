//! The kernels kept on this machine: one directory each, and a link to the default one.
//!
//! ```text
//! kernels/6.12.117-vmm/{kernel.json, vmlinux, bzImage, config}       built
//! kernels/6.12.95-cloud-amd64/{kernel.json, vmlinuz, config, modules/}  fetched
//! kernels/default -> 6.12.117-vmm
//! ```
//! A directory appears under its name whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::open::write_atomically;

const RECORD_FILE: &str = "kernel.json";
const DEFAULT_LINK: &str = "default";
const MODULES_DIRECTORY: &str = "modules";
/// Where kernels are put together; names of kernels cannot start with a dot.
const STAGING_PREFIX: &str = ".new-";
/// No kernel takes this long to put together.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such kernel.
    #[error("no kernel is named {name:?}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// No kernel was asked for by name, and none is the default.
    #[error("there is no default kernel")]
    NoDefault,
    /// A name that cannot be a directory's.
    #[error("{name:?} cannot name a kernel: use letters, digits, and . _ + - after the first")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The file system.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } if !known.is_empty() => {
                Some(format!("there are: {}", known.join(", ")))
            }
            Self::Unknown { .. } | Self::NoDefault => Some(
                "get one: `vmm kernel fetch` (seconds) or `vmm kernel build` (minutes, starts faster)"
                    .to_owned(),
            ),
            Self::BadName { .. } | Self::Io { .. } => None,
        }
    }
}

/// Where a kernel came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Origin {
    /// Built here.
    Built {
        /// Name and version of the source.
        source: String,
        /// Hash of source, configuration and compiler.
        recipe: String,
    },
    /// Taken from a distribution's package.
    Fetched {
        /// The package's name.
        package: String,
        /// The package's version.
        version: String,
    },
}

/// What is known of a kernel: the content of `kernel.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As `uname -r` prints it.
    pub release: String,
    /// Where it came from.
    pub origin: Origin,
    /// The file to boot, within the kernel's directory.
    pub image: String,
    /// When it was stored, in seconds since 1970.
    pub created_s: u64,
}

impl Record {
    /// A record of this moment.
    pub fn new(release: String, origin: Origin, image: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { release, origin, image: image.to_owned(), created_s: now.as_secs() }
    }
}

/// A kernel in the store.
#[derive(Clone, Debug)]
pub struct StoredKernel {
    /// Its name there.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What is known of it.
    pub record: Record,
}

impl StoredKernel {
    /// The file to boot.
    pub fn image(&self) -> PathBuf {
        self.directory.join(&self.record.image)
    }

    /// Its modules' directory, the content of `/lib/modules/RELEASE`, if it has modules.
    pub fn modules(&self) -> Option<PathBuf> {
        Some(self.directory.join(MODULES_DIRECTORY)).filter(|path| path.is_dir())
    }

    /// What it takes on disk.
    pub fn bytes(&self) -> u64 {
        tree_bytes(&self.directory)
    }
}

/// A kernel being put together; dropping it leaves nothing.
#[derive(Debug)]
pub struct Staging {
    directory: TempDir,
}

impl Staging {
    /// Where its files go.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where its modules go.
    pub fn modules(&self) -> PathBuf {
        self.path().join(MODULES_DIRECTORY)
    }
}

/// The directory of kernels.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in `root` (`$VMM_HOME/kernels`), which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All kernels, by name.
    pub fn list(&self) -> Result<Vec<StoredKernel>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { action: "list", path: self.root.clone(), source }),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut kernels: Vec<_> =
            names.filter(|name| check_name(name).is_ok()).filter_map(|name| self.read(&name)).collect();
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(kernels)
    }

    /// The kernel of that name; without one, the default.
    pub fn get(&self, name: Option<&str>) -> Result<StoredKernel, StoreError> {
        let name = match name {
            Some(name) if name != DEFAULT_LINK => name.to_owned(),
            _ => self.default_name().ok_or(StoreError::NoDefault)?,
        };
        match self.read(&name) {
            Some(kernel) => Ok(kernel),
            None => Err(StoreError::Unknown {
                name,
                known: self.list()?.into_iter().map(|kernel| kernel.name).collect(),
            }),
        }
    }

    /// The default kernel's name.
    pub fn default_name(&self) -> Option<String> {
        let target = fs::read_link(self.root.join(DEFAULT_LINK)).ok()?;
        target.into_os_string().into_string().ok().filter(|name| self.read(name).is_some())
    }

    /// Makes the kernel of that name the default.
    pub fn set_default(&self, name: &str) -> Result<(), StoreError> {
        self.get(Some(name))?;
        let link = self.root.join(DEFAULT_LINK);
        let io_error = |source| StoreError::Io { action: "link", path: link.clone(), source };
        // Renaming a new link over the old one leaves no moment without.
        let directory = self.temporary_directory()?;
        let fresh = directory.path().join(DEFAULT_LINK);
        std::os::unix::fs::symlink(name, &fresh).map_err(io_error)?;
        fs::rename(&fresh, &link).map_err(io_error)
    }

    /// Removes a kernel. A default that is gone is replaced by nothing: the next one stored becomes it.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let kernel = self.get(Some(name))?;
        // Out of sight first, so that nobody finds half of it.
        let trash = self.temporary_directory()?;
        let io_error = |source| StoreError::Io { action: "remove", path: kernel.directory.clone(), source };
        if self.default_name().as_deref() == Some(&kernel.name) {
            fs::remove_file(self.root.join(DEFAULT_LINK)).map_err(io_error)?;
        }
        fs::rename(&kernel.directory, trash.path().join("kernel")).map_err(io_error)?;
        trash.close().map_err(io_error)
    }

    /// A fresh directory to put a kernel together in.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        Ok(Staging { directory: self.temporary_directory()? })
    }

    /// Gives a kernel its name, replacing an older one of that name. The first becomes the default.
    pub fn install(&self, staging: Staging, name: &str, record: &Record) -> Result<StoredKernel, StoreError> {
        check_name(name)?;
        let directory = self.root.join(name);
        let io_error = |source| StoreError::Io { action: "store", path: directory.clone(), source };
        let json = serde_json::to_vec_pretty(record).map_err(io::Error::from).map_err(io_error)?;
        write_atomically(&staging.path().join(RECORD_FILE), &json).map_err(io_error)?;
        set_mode(staging.path(), 0o755).map_err(io_error)?;
        if directory.exists() {
            // The old one takes the new one's place, and goes when `staging` is dropped.
            renameat2(AT_FDCWD, staging.path(), AT_FDCWD, &directory, RenameFlags::RENAME_EXCHANGE)
                .map_err(|errno| io_error(errno.into()))?;
        } else {
            fs::rename(staging.directory.keep(), &directory).map_err(io_error)?;
        }
        if self.default_name().is_none() {
            self.set_default(name)?;
        }
        self.get(Some(name))
    }

    fn read(&self, name: &str) -> Option<StoredKernel> {
        check_name(name).ok()?;
        let directory = self.root.join(name);
        let record = serde_json::from_slice(&fs::read(directory.join(RECORD_FILE)).ok()?).ok()?;
        Some(StoredKernel { name: name.to_owned(), directory, record })
    }

    /// Removes what killed processes left behind.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(STAGING_PREFIX));
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            if ours && matches!(age, Ok(Ok(age)) if age > ABANDONED_AFTER) {
                // What cannot be removed now is tried again next time.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn temporary_directory(&self) -> Result<TempDir, StoreError> {
        let io_error = |source| StoreError::Io { action: "write to", path: self.root.clone(), source };
        fs::create_dir_all(&self.root).map_err(io_error)?;
        self.sweep();
        tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(&self.root).map_err(io_error)
    }
}

/// Names are directories', and words on command lines.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = characters.all(|c| c.is_ascii_alphanumeric() || "._+~-".contains(c));
    if first && rest && name.len() <= 128 && name != DEFAULT_LINK {
        Ok(())
    } else {
        Err(StoreError::BadName { name: name.to_owned() })
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn tree_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { tree_bytes(&path) } else { metadata.blocks() * 512 })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(release: &str) -> Record {
        let origin = Origin::Fetched { package: "linux-image".to_owned(), version: "1".to_owned() };
        Record::new(release.to_owned(), origin, "vmlinuz")
    }

    fn add(store: &Store, name: &str, content: &str) -> StoredKernel {
        let staging = store.stage().unwrap();
        fs::write(staging.path().join("vmlinuz"), content).unwrap();
        store.install(staging, name, &record(content)).unwrap()
    }

    fn names(store: &Store) -> Vec<String> {
        store.list().unwrap().into_iter().map(|kernel| kernel.name).collect()
    }

    #[test]
    fn kernels_come_go_and_default() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("kernels"));
        assert!(names(&store).is_empty());
        assert!(matches!(store.get(None), Err(StoreError::NoDefault)));

        add(&store, "b", "one");
        add(&store, "a", "two");
        assert_eq!(names(&store), ["a", "b"]);
        assert_eq!(store.get(None).unwrap().name, "b", "the first is the default");
        store.set_default("a").unwrap();
        assert_eq!(store.get(Some("default")).unwrap().record.release, "two");

        let replaced = add(&store, "a", "three");
        assert_eq!(fs::read_to_string(replaced.image()).unwrap(), "three");
        store.remove("a").unwrap();
        assert!(matches!(store.get(None), Err(StoreError::NoDefault)));
        assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 1, "only b is left");
    }

    #[test]
    fn unfinished_and_foreign_directories_are_not_kernels() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let staging = store.stage().unwrap();
        fs::create_dir(directory.path().join("stray")).unwrap();
        assert!(names(&store).is_empty());
        drop(staging);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        for name in ["", ".", "..", "a/b", "../x", "default", ".hidden", "a b"] {
            let staging = store.stage().unwrap();
            assert!(
                matches!(store.install(staging, name, &record("")), Err(StoreError::BadName { .. })),
                "{name:?}"
            );
        }
        let error = store.get(Some("../etc")).unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }));
    }
}
