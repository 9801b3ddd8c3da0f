//! Writes EROFS images: read-only file systems that Linux mounts without unpacking anything.
//!
//! Images are uncompressed, in blocks of 4 KiB. The data of a file that does not fit beside its inode are
//! contiguous and aligned to pages, so that a guest can map them straight from the image (DAX). Equal trees give
//! equal images, byte for byte.
//!
//! Format: Linux, `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

mod directory;
mod format;
mod plan;
mod xattrs;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::sparse::SparseWriter;
use crate::tree::{Kind, Timestamp, Tree};

use directory::Entry;
use format::{BLOCK, CHECKSUM_OFFSET, FileType, Layout, SUPERBLOCK_OFFSET, Superblock, superblock_checksum};
use plan::{Plan, PlannedInode, file_type};

pub use xattrs::XattrError;

/// Longest label of a file system, in bytes.
const LABEL_MAX: usize = 16;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// A file's extended attributes cannot be stored.
    #[error("cannot store the attributes of {path:?}")]
    Xattrs {
        /// The file in the image.
        path: PathBuf,
        /// What is wrong with them.
        source: XattrError,
    },
    /// More blocks than 32 bits count.
    #[error("the image would be larger than 16 TiB")]
    TooLarge,
    /// The label does not fit.
    #[error("label {0:?} is longer than {LABEL_MAX} bytes")]
    Label(String),
    /// The content of a file could not be read.
    #[error("cannot read the content of {path:?}")]
    Read {
        /// The file in the image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content of a file became shorter while the image was being written.
    #[error("the content of {path:?} has {found} bytes where {expected} were announced")]
    ContentChanged {
        /// The file in the image.
        path: PathBuf,
        /// Bytes that could be read.
        found: u64,
        /// Bytes that the tree has for it.
        expected: u64,
    },
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

/// What an image says about itself.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// When the image was made. Files that date from this very time take half the metadata.
    pub build_time: Timestamp,
    /// Identifies the file system.
    pub uuid: [u8; 16],
    /// Names the file system, in 16 bytes at most.
    pub label: String,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image in bytes.
    pub size: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// Writes `tree` to `image`, replacing what the file holds. The file has to be open for reading and writing.
pub fn write(tree: &Tree, options: &Options, image: &File) -> Result<Summary, ErofsError> {
    let superblock_label = label(&options.label)?;
    let plan = Plan::new(tree, options.build_time)?;
    let inodes = plan.inodes.len() as u64;
    let superblock = Superblock {
        // The root comes first, so that its number is always small.
        root_nid: plan.inodes[0].nid() as u16,
        inodes,
        build_time: options.build_time,
        blocks: plan.blocks as u32,
        uuid: options.uuid,
        label: superblock_label,
    };

    let mut writer =
        ImageWriter { tree, plan: &plan, out: SparseWriter::new(image).map_err(ErofsError::Write)? };
    writer.pad_to(SUPERBLOCK_OFFSET)?;
    writer.append(&superblock.encode())?;
    for index in 0..plan.inodes.len() {
        writer.write_inode(index)?;
    }
    for &index in &plan.data {
        writer.write_blocks(index)?;
    }
    let size = plan.blocks * BLOCK;
    writer.pad_to(size)?;
    writer.out.finish().and_then(|()| sign(image)).map_err(ErofsError::Write)?;
    Ok(Summary { size, inodes })
}

fn label(text: &str) -> Result<[u8; LABEL_MAX], ErofsError> {
    let mut label = [0; LABEL_MAX];
    label
        .get_mut(..text.len())
        .ok_or_else(|| ErofsError::Label(text.to_owned()))?
        .copy_from_slice(text.as_bytes());
    Ok(label)
}

/// Puts in the checksum, which covers the inodes in the superblock's block too.
fn sign(image: &File) -> io::Result<()> {
    let mut bytes = [0; (BLOCK - SUPERBLOCK_OFFSET) as usize];
    image.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET)?;
    image.write_all_at(&superblock_checksum(&bytes).to_le_bytes(), SUPERBLOCK_OFFSET + CHECKSUM_OFFSET)
}

/// Writes what the plan says, in the order of the image.
struct ImageWriter<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    out: SparseWriter<'a>,
}

impl ImageWriter<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.out.append(bytes).map_err(ErofsError::Write)
    }

    fn pad_to(&mut self, position: u64) -> Result<(), ErofsError> {
        self.out.pad_to(position).map_err(ErofsError::Write)
    }

    fn write_inode(&mut self, index: usize) -> Result<(), ErofsError> {
        let planned = &self.plan.inodes[index];
        self.pad_to(planned.offset)?;
        self.append(&planned.inode.encode())?;
        let attributes = xattrs::encode(&self.tree.node(planned.node).metadata.xattrs)
            .map_err(|source| ErofsError::Xattrs { path: self.plan.path(self.tree, index), source })?;
        self.append(&attributes)?;
        if planned.inode.layout == Layout::Inline {
            self.write_data(index)?;
        }
        Ok(())
    }

    fn write_blocks(&mut self, index: usize) -> Result<(), ErofsError> {
        self.pad_to(u64::from(self.plan.inodes[index].inode.block_or_device) * BLOCK)?;
        self.write_data(index)
    }

    /// Writes the data of an inode at the current position.
    fn write_data(&mut self, index: usize) -> Result<(), ErofsError> {
        let tree = self.tree;
        let planned = &self.plan.inodes[index];
        match tree.node(planned.node).kind() {
            Kind::Directory => self.append(&directory::encode(&self.entries(planned))),
            Kind::Symlink(target) => self.append(target),
            Kind::File(content) => {
                let path = || self.plan.path(tree, index);
                let read_error = |source| ErofsError::Read { path: path(), source };
                let mut reader = content.open().map_err(read_error)?;
                let mut buffer = vec![0; 64 << 10];
                let mut found = 0;
                loop {
                    let length = match reader.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(source) => return Err(ErofsError::Read { path: path(), source }),
                    };
                    self.out.append(&buffer[..length]).map_err(ErofsError::Write)?;
                    found += length as u64;
                }
                let expected = content.len();
                if found != expected {
                    return Err(ErofsError::ContentChanged { path: path(), found, expected });
                }
                Ok(())
            }
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => Ok(()),
        }
    }

    /// All entries of a directory in their order.
    fn entries(&self, directory: &PlannedInode) -> Vec<Entry<'_>> {
        let parent = &self.plan.inodes[directory.parent];
        let own = [(&b"."[..], directory.nid()), (&b".."[..], parent.nid())].map(|(name, nid)| Entry {
            name,
            nid,
            file_type: FileType::Directory,
        });
        let children = self.tree.node(directory.node).entries().map(|(name, id)| Entry {
            name,
            nid: self.plan.inode_of(id).nid(),
            file_type: file_type(self.tree.node(id).kind()),
        });
        let mut entries: Vec<_> = own.into_iter().chain(children).collect();
        entries.sort_unstable_by_key(|entry| entry.name);
        entries
    }
}
