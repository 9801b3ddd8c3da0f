//! Makes a kernel file ready to boot, once: later calls find the outcome in a cache.
//!
//! The cache's key is the file's identity (device, inode, size, times of change), so that a hit takes one
//! `stat` and one read of a few hundred bytes. An entry is a sidecar `<identity>.json`, and for a bzImage the
//! unpacked `<identity>.vmlinux` beside it, which is written first.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::image::{HEAD_BYTES, Image, NotAKernel, VMLINUX_BYTES_MAX};

/// Counts up whenever [`Facts`] or the way they are found changes.
const CACHE_VERSION: u32 = 2;

/// No entry takes this long to write.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);

/// A kernel ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootKernel {
    /// The file to boot: the one asked for, or its unpacked payload.
    pub path: PathBuf,
    /// What that file is.
    pub format: Format,
    /// What the kernel can do; unknown where it cannot be unpacked.
    pub facts: Option<Facts>,
    /// Why a bzImage has to be booted as it is, unpacking itself in the guest.
    pub as_is: Option<String>,
}

/// The format of a file to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An uncompressed ELF kernel.
    Elf,
    /// Setup code and a compressed kernel.
    BzImage,
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read.
    #[error("cannot read kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, or some other thing that is no file.
    #[error("kernel {} is {what}, not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file, but no kernel for this machine.
    #[error("cannot boot kernel {}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NotAKernel,
    },
    /// The cache cannot be written.
    #[error("cannot keep the unpacked kernel in {}", path.display())]
    Cache {
        /// The cache's directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotAFile { path, what: "a directory" } => {
                let inside = ["vmlinux", "vmlinuz", "bzImage", "arch/x86/boot/bzImage"];
                let found = inside.iter().map(|name| path.join(name)).find(|path| path.is_file())?;
                Some(format!("did you mean {}?", found.display()))
            }
            Self::NotAKernel { .. } => Some(
                "give a bzImage (/boot/vmlinuz-*) or an ELF vmlinux; `vmm kernel fetch` gets one".to_owned(),
            ),
            Self::Cache { .. } => {
                Some("free some space there, or choose another place with VMM_HOME".to_owned())
            }
            Self::Read { .. } | Self::NotAFile { .. } => None,
        }
    }
}

/// The sidecar of a cache entry.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// The file that was opened, by which stale entries are known.
    source: PathBuf,
    format: Format,
    /// Whether the unpacked kernel lies beside the sidecar.
    unpacked: bool,
    facts: Option<Facts>,
    as_is: Option<String>,
}

impl BootKernel {
    /// Opens the kernel at `path`, unpacking it into `cache` unless that has been done before.
    pub fn open(path: &Path, cache: &Path) -> Result<Self, OpenError> {
        let read_error = |source| OpenError::Read { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(read_error)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "a device or pipe" };
            return Err(OpenError::NotAFile { path: path.to_owned(), what });
        }
        let identity = identity(&metadata);
        let hit = read_entry(&sidecar(cache, &identity));
        if let Some(entry) = hit.filter(|entry| !entry.unpacked || unpacked(cache, &identity).exists()) {
            return Ok(entry.into_kernel(path, cache, &identity));
        }

        let source = fs::canonicalize(path).map_err(read_error)?;
        let content = read_kernel(path, metadata.len()).map_err(|error| match error {
            ReadError::Io(source) => read_error(source),
            ReadError::NotAKernel(source) => OpenError::NotAKernel { path: path.to_owned(), source },
        })?;
        let cache_error = |source| OpenError::Cache { path: cache.to_owned(), source };
        fs::create_dir_all(cache).map_err(cache_error)?;
        prune(cache);
        let mut entry = Entry {
            version: CACHE_VERSION,
            source,
            format: Format::Elf,
            unpacked: false,
            facts: None,
            as_is: None,
        };
        match content {
            Content::Elf(vmlinux) => entry.facts = Some(Facts::of_vmlinux(&vmlinux)),
            Content::Unpacked(vmlinux) => {
                entry.facts = Some(Facts::of_vmlinux(&vmlinux));
                entry.unpacked = true;
                write_atomically(&unpacked(cache, &identity), &vmlinux).map_err(cache_error)?;
            }
            Content::AsIs(reason) => {
                entry.format = Format::BzImage;
                entry.as_is = Some(reason);
            }
        }
        let json = serde_json::to_vec(&entry).map_err(io::Error::from).map_err(cache_error)?;
        write_atomically(&sidecar(cache, &identity), &json).map_err(cache_error)?;
        Ok(entry.into_kernel(path, cache, &identity))
    }
}

impl Entry {
    fn into_kernel(self, path: &Path, cache: &Path, identity: &str) -> BootKernel {
        let path = if self.unpacked { unpacked(cache, identity) } else { path.to_owned() };
        BootKernel { path, format: self.format, facts: self.facts, as_is: self.as_is }
    }
}

/// A kernel file's content, as far as it matters.
enum Content {
    Elf(Vec<u8>),
    Unpacked(Vec<u8>),
    AsIs(String),
}

enum ReadError {
    Io(io::Error),
    NotAKernel(NotAKernel),
}

fn read_kernel(path: &Path, length: u64) -> Result<Content, ReadError> {
    let mut file = File::open(path).map_err(ReadError::Io)?;
    let mut content = Vec::new();
    (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut content).map_err(ReadError::Io)?;
    // The head decides before the rest of what may be a huge file of another kind is read.
    let image = Image::parse(&content, length).map_err(ReadError::NotAKernel)?;
    file.take(VMLINUX_BYTES_MAX).read_to_end(&mut content).map_err(ReadError::Io)?;
    Ok(match image {
        Image::Elf => Content::Elf(content),
        Image::BzImage(image) => match image.unpack(&content) {
            Ok(vmlinux) => Content::Unpacked(vmlinux),
            Err(error) => Content::AsIs(chain(&error)),
        },
    })
}

/// An error and its causes on one line, for the sidecar.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Distinguishes a file from any other and from itself after a change.
fn identity(metadata: &Metadata) -> String {
    format!(
        "{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    )
}

fn sidecar(cache: &Path, identity: &str) -> PathBuf {
    cache.join(format!("{identity}.json"))
}

fn unpacked(cache: &Path, identity: &str) -> PathBuf {
    cache.join(format!("{identity}.vmlinux"))
}

fn read_entry(sidecar: &Path) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(sidecar).ok()?).ok()?;
    (entry.version == CACHE_VERSION).then_some(entry)
}

/// Removes entries whose kernel is gone or has changed, and what a killed process left of one. What cannot be
/// removed only takes space.
fn prune(cache: &Path) {
    let Ok(files) = fs::read_dir(cache) else { return };
    for file in files.flatten().map(|file| file.path()) {
        let stale = if file.extension() == Some("json".as_ref()) {
            read_entry(&file)
                .and_then(|entry| fs::metadata(entry.source).ok())
                .is_none_or(|metadata| sidecar(cache, &identity(&metadata)) != file)
        } else {
            // Without a sidecar: of an entry that is being written just now, or never will be.
            !file.with_extension("json").exists() && age(&file).is_some_and(|age| age > ABANDONED_AFTER)
        };
        if stale {
            let _ = fs::remove_file(&file);
            let _ = fs::remove_file(file.with_extension("vmlinux"));
        }
    }
}

fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let readable = fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::{bzimage, elf, gzip};

    struct Fixture {
        directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.directory.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }

        fn cache(&self) -> PathBuf {
            self.directory.path().join("cache/kernels")
        }

        fn open(&self, path: &Path) -> Result<BootKernel, OpenError> {
            BootKernel::open(path, &self.cache())
        }

        fn cached(&self) -> usize {
            fs::read_dir(self.cache()).unwrap().count()
        }
    }

    #[test]
    fn a_bzimage_is_unpacked_once() {
        let fixture = Fixture::new();
        let kernel = elf(b"Linux version 6.12.1 (x)", true);
        let path = fixture.write("vmlinuz", &bzimage(&gzip(&kernel)));
        let opened = fixture.open(&path).unwrap();
        assert_eq!(opened.format, Format::Elf);
        assert_eq!(fs::read(&opened.path).unwrap(), kernel);
        let facts = opened.facts.as_ref().unwrap();
        assert_eq!((facts.release.as_deref(), facts.pvh_entry), (Some("6.12.1"), Some(0x100_0000)));

        let before = fs::metadata(&opened.path).unwrap().ino();
        assert_eq!(fixture.open(&path).unwrap(), opened);
        assert_eq!(fs::metadata(&opened.path).unwrap().ino(), before, "not unpacked a second time");
    }

    #[test]
    fn a_changed_kernel_is_unpacked_anew_and_the_old_one_goes() {
        let fixture = Fixture::new();
        let path = fixture.write("vmlinuz", &bzimage(&gzip(&elf(b"Linux version 6.1 (x)", true))));
        fixture.open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fixture.write("vmlinuz", &bzimage(&gzip(&elf(b"Linux version 6.20 (x)", true))));
        assert_eq!(fixture.open(&path).unwrap().facts.unwrap().release.unwrap(), "6.20");
        assert_eq!(fixture.cached(), 2, "one sidecar and one kernel");
    }

    #[test]
    fn what_cannot_be_unpacked_is_booted_as_it_is() {
        let fixture = Fixture::new();
        let path = fixture.write("vmlinuz", &bzimage(b"\x89LZO\0\r\n\x1a\n"));
        for _ in 0..2 {
            let opened = fixture.open(&path).unwrap();
            assert_eq!(
                (opened.path.as_path(), opened.format, &opened.facts),
                (path.as_path(), Format::BzImage, &None)
            );
            assert!(opened.as_is.unwrap().contains("compression is not known"));
        }
    }

    #[test]
    fn an_elf_kernel_stays_where_it_is() {
        let fixture = Fixture::new();
        let path = fixture.write("vmlinux", &elf(b"", true));
        let opened = fixture.open(&path).unwrap();
        assert_eq!((opened.path.as_path(), opened.format), (path.as_path(), Format::Elf));
        assert_eq!(fixture.cached(), 1);
    }

    #[test]
    fn a_damaged_cache_heals() {
        let fixture = Fixture::new();
        let path = fixture.write("vmlinuz", &bzimage(&gzip(&elf(b"", true))));
        let opened = fixture.open(&path).unwrap();
        fs::write(opened.path.with_extension("json"), b"{").unwrap();
        assert_eq!(fixture.open(&path).unwrap(), opened);
        fs::remove_file(&opened.path).unwrap();
        assert_eq!(fixture.open(&path).unwrap(), opened);
        assert!(opened.path.exists());
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_a_hint() {
        let fixture = Fixture::new();
        let error = fixture.open(&fixture.directory.path().join("missing")).unwrap_err();
        assert!(matches!(error, OpenError::Read { .. }));
        fixture.write("vmlinuz", b"");
        let error = fixture.open(fixture.directory.path()).unwrap_err();
        assert!(error.to_string().ends_with("is a directory, not a file"));
        assert!(error.hint().unwrap().ends_with("vmlinuz?"));
        let error = fixture.open(&fixture.directory.path().join("vmlinuz")).unwrap_err();
        assert!(matches!(error, OpenError::NotAKernel { source: NotAKernel::Empty, .. }));
        assert!(!fixture.cache().exists(), "a failure leaves nothing behind");
    }
}
