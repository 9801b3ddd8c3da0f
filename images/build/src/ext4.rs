//! Writes ext4 images: file systems that a guest can write to.
//!
//! They have no journal and no checksums, which suits disks that are made, used and thrown away. Their length is a
//! multiple of [`GRANULARITY`]; what holds no data is a hole in the image file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use arcbox_ext4::error::FormatError;
use arcbox_ext4::{FileTimestamps, FormatOptions, Formatter};

use crate::tree::{Kind, Metadata, NodeId, Timestamp, Tree};

/// Images are as long as a number of whole block groups, of 32768 blocks of 4 KiB each.
pub const GRANULARITY: u64 = 128 << 20;

/// Longest label of a file system, in bytes.
const LABEL_MAX: usize = 16;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The label does not fit.
    #[error("label {0:?} is longer than {LABEL_MAX} bytes or has a zero byte")]
    Label(String),
    /// The writer takes UTF-8 only.
    #[error("{0:?} is not UTF-8, which ext4 images need")]
    NotUtf8(PathBuf),
    /// The writer knows directories, regular files and symbolic links only.
    #[error("{0:?} is a device, pipe or socket, which ext4 images cannot hold")]
    Type(PathBuf),
    /// A time before 1901 or after 2446.
    #[error("{path:?} dates from {seconds} s since the epoch, beyond what ext4 can represent")]
    Time {
        /// The file in the image.
        path: PathBuf,
        /// Its time of modification.
        seconds: i64,
    },
    /// The content of a file could not be read.
    #[error("cannot read the content of {path:?}")]
    Read {
        /// The file in the image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The writer refused a file.
    #[error("cannot write {path:?}")]
    Entry {
        /// The file in the image.
        path: PathBuf,
        /// The cause.
        source: FormatError,
    },
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] FormatError),
    /// The image could not be written.
    #[error("cannot write the image")]
    Io(#[source] io::Error),
}

/// What an image is like besides its tree.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Least length of the image in bytes. It grows to hold the tree and to a multiple of [`GRANULARITY`].
    pub size: u64,
    /// Names the file system, in 16 bytes at most.
    pub label: String,
}

/// Writes `tree` to a new file at `image`. Returns its length in bytes.
pub fn write(tree: &Tree, options: &Options, image: &Path) -> Result<u64, Ext4Error> {
    if options.label.len() > LABEL_MAX || options.label.contains('\0') {
        return Err(Ext4Error::Label(options.label.clone()));
    }
    let settings = FormatOptions {
        block_size: 4096,
        size: options.size.max(1).next_multiple_of(GRANULARITY),
        uuid: None,
        label: (!options.label.is_empty()).then(|| options.label.clone()),
    };
    let formatter = Formatter::with_options(image, settings).map_err(Ext4Error::Write)?;
    let mut writer = Writer { tree, formatter, paths: BTreeMap::new() };
    writer.write(tree.root(), Path::new("/"))?;
    writer.formatter.close().map_err(Ext4Error::Write)?;
    let file = File::open(image).map_err(Ext4Error::Io)?;
    file.metadata().map(|metadata| metadata.len()).map_err(Ext4Error::Io)
}

struct Writer<'a> {
    tree: &'a Tree,
    formatter: Formatter,
    /// The first path of each file that is written.
    paths: BTreeMap<NodeId, String>,
}

impl Writer<'_> {
    /// Writes a file and what is below it.
    fn write(&mut self, id: NodeId, path: &Path) -> Result<(), Ext4Error> {
        let name = path.to_str().ok_or_else(|| Ext4Error::NotUtf8(path.to_owned()))?;
        let entry_error = |source| Ext4Error::Entry { path: path.to_owned(), source };
        if let Some(first) = self.paths.get(&id) {
            return self.formatter.link(name, first).map_err(entry_error);
        }
        self.paths.insert(id, name.to_owned());

        let tree = self.tree;
        let node = tree.node(id);
        match node.kind() {
            Kind::Directory => self.create(name, 0o04_0000, &node.metadata, None, None)?,
            Kind::File(content) => {
                let mut reader =
                    content.open().map_err(|source| Ext4Error::Read { path: path.to_owned(), source })?;
                self.create(name, 0o10_0000, &node.metadata, None, Some(&mut reader))?;
            }
            Kind::Symlink(target) => {
                let target = std::str::from_utf8(target).map_err(|_| Ext4Error::NotUtf8(path.to_owned()))?;
                self.create(name, 0o12_0000, &node.metadata, Some(target), None)?;
            }
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => {
                return Err(Ext4Error::Type(path.to_owned()));
            }
        }
        for (name, child) in node.entries() {
            let name = std::str::from_utf8(name).map_err(|_| Ext4Error::NotUtf8(path.to_owned()))?;
            self.write(child, &path.join(name))?;
        }
        Ok(())
    }

    fn create(
        &mut self,
        path: &str,
        file_type: u16,
        metadata: &Metadata,
        target: Option<&str>,
        data: Option<&mut dyn io::Read>,
    ) -> Result<(), Ext4Error> {
        let xattrs: HashMap<String, Vec<u8>> = metadata
            .xattrs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone()))
            .collect();
        self.formatter
            .create(
                path,
                file_type | metadata.permissions,
                target,
                Some(timestamps(path, metadata.mtime)?),
                data,
                Some(metadata.uid),
                Some(metadata.gid),
                Some(&xattrs),
            )
            .map_err(|source| Ext4Error::Entry { path: path.into(), source })
    }
}

/// All times of a file, as ext4 has them: 32 bits of seconds, then 2 more of them under 30 of nanoseconds.
fn timestamps(path: &str, mtime: Timestamp) -> Result<FileTimestamps, Ext4Error> {
    // A signed number of 32 bits, plus 0 to 3 times 2^32.
    const RANGE: std::ops::Range<i64> = -(1 << 31)..(1 << 31) + (3 << 32);
    if !RANGE.contains(&mtime.seconds) {
        return Err(Ext4Error::Time { path: path.into(), seconds: mtime.seconds });
    }
    let low = mtime.seconds as u32;
    let epoch = ((mtime.seconds - i64::from(low as i32)) >> 32) as u32;
    let high = mtime.nanoseconds << 2 | epoch;
    Ok(FileTimestamps {
        access_lo: low,
        access_hi: high,
        modification_lo: low,
        modification_hi: high,
        creation_lo: low,
        creation_hi: high,
        now_lo: low,
        now_hi: high,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_split_as_ext4_splits_them() {
        for (seconds, low, epoch) in [
            (0, 0, 0),
            (-1, u32::MAX, 0),
            (i64::from(i32::MAX), 0x7fff_ffff, 0),
            (1 << 31, 0x8000_0000, 1),
            (1 << 32, 0, 1),
            ((1 << 31) + (3 << 32) - 1, 0x7fff_ffff, 3),
        ] {
            let times = timestamps("/a", Timestamp { seconds, nanoseconds: 3 }).unwrap();
            assert_eq!((times.modification_lo, times.modification_hi), (low, 3 << 2 | epoch), "{seconds}");
        }
        for seconds in [-(1_i64 << 31) - 1, (1 << 31) + (3 << 32), i64::MAX, i64::MIN] {
            let error = timestamps("/a", Timestamp { seconds, nanoseconds: 0 }).err().unwrap();
            assert!(matches!(error, Ext4Error::Time { .. }));
        }
    }
}
