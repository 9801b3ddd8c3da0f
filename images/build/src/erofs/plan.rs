//! Decides where everything goes before a byte is written: inodes with their small data first, then directories,
//! then everything else, each file in consecutive blocks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::tree::{Kind, Node, NodeId, Timestamp, Tree, absolute};

use super::ErofsError;
use super::directory;
use super::format::{
    BLOCK, FileType, Inode, Layout, SLOT, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, encode_device,
};
use super::xattrs;

/// Longest image that block numbers of 32 bits reach.
const MAX_BLOCKS: u64 = u32::MAX as u64;

/// One inode and its place.
pub(super) struct PlannedInode {
    pub(super) node: NodeId,
    /// The directory with the first entry of this inode, as an index into [`Plan::inodes`].
    pub(super) parent: usize,
    /// Offset in the image, in bytes.
    pub(super) offset: u64,
    pub(super) inode: Inode,
}

impl PlannedInode {
    /// The inode's number: its place in units of [`SLOT`].
    pub(super) fn nid(&self) -> u64 {
        self.offset / SLOT
    }

    /// Whether the data are in blocks of their own.
    pub(super) fn has_blocks(&self) -> bool {
        self.inode.layout == Layout::Plain && self.inode.size > 0
    }
}

/// The whole image.
pub(super) struct Plan {
    /// All inodes by their offset; the root is first.
    pub(super) inodes: Vec<PlannedInode>,
    /// Indexes of the inodes that have blocks, by their first block.
    pub(super) data: Vec<usize>,
    /// Where the inodes of the tree's nodes are in `inodes`.
    index: BTreeMap<NodeId, usize>,
    /// Length of the image.
    pub(super) blocks: u64,
}

impl Plan {
    pub(super) fn new(tree: &Tree, build_time: Timestamp) -> Result<Self, ErofsError> {
        let mut plan = Self { inodes: Vec::new(), data: Vec::new(), index: BTreeMap::new(), blocks: 0 };
        plan.collect(tree);
        plan.count_links(tree);
        plan.describe(tree, build_time)?;
        let metadata_end = plan.place_inodes();
        plan.place_data(tree, metadata_end)?;
        Ok(plan)
    }

    /// The inode of a node that is in the plan.
    pub(super) fn inode_of(&self, node: NodeId) -> &PlannedInode {
        &self.inodes[self.index[&node]]
    }

    /// The path by which an inode is first reached.
    pub(super) fn path(&self, tree: &Tree, index: usize) -> PathBuf {
        let mut names = Vec::new();
        let mut child = index;
        while child != 0 {
            let PlannedInode { node, parent, .. } = self.inodes[child];
            let entries = tree.node(self.inodes[parent].node).entries();
            names.extend(entries.filter(|&(_, id)| id == node).map(|(name, _)| name).next());
            child = parent;
        }
        names.reverse();
        absolute(&names)
    }

    /// Lists what is reachable from the root, directory by directory.
    fn collect(&mut self, tree: &Tree) {
        self.add(tree.root(), 0);
        let mut next = 0;
        while next < self.inodes.len() {
            for (_, child) in tree.node(self.inodes[next].node).entries() {
                if !self.index.contains_key(&child) {
                    self.add(child, next);
                }
            }
            next += 1;
        }
    }

    fn add(&mut self, node: NodeId, parent: usize) {
        self.index.insert(node, self.inodes.len());
        self.inodes.push(PlannedInode {
            node,
            parent,
            offset: 0,
            inode: Inode {
                extended: false,
                layout: Layout::Plain,
                xattr_size: 0,
                mode: 0,
                size: 0,
                block_or_device: 0,
                number: self.inodes.len() as u32 + 1,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                links: 0,
            },
        });
    }

    /// Counts entries: a file has one link for each, a directory one for its entry, its `.` and each `..` below.
    fn count_links(&mut self, tree: &Tree) {
        self.inodes[0].inode.links = 2;
        for parent in 0..self.inodes.len() {
            for (_, child) in tree.node(self.inodes[parent].node).entries() {
                let is_directory = *tree.node(child).kind() == Kind::Directory;
                self.inodes[self.index[&child]].inode.links += if is_directory { 2 } else { 1 };
                self.inodes[parent].inode.links += u32::from(is_directory);
            }
        }
    }

    /// Fills in everything about the inodes but places.
    fn describe(&mut self, tree: &Tree, build_time: Timestamp) -> Result<(), ErofsError> {
        for index in 0..self.inodes.len() {
            let node = tree.node(self.inodes[index].node);
            let metadata = &node.metadata;
            let xattr_size = xattrs::encode(&metadata.xattrs)
                .map_err(|source| ErofsError::Xattrs { path: self.path(tree, index), source })?
                .len() as u64;
            let inode = &mut self.inodes[index].inode;
            inode.mode = file_type(node.kind()).mode_bits() | metadata.permissions;
            inode.xattr_size = xattr_size;
            inode.uid = metadata.uid;
            inode.gid = metadata.gid;
            inode.mtime = metadata.mtime;
            match node.kind() {
                Kind::Directory => inode.size = directory::encoded_size(directory_names(node).into_iter()),
                Kind::File(content) => inode.size = content.len(),
                Kind::Symlink(target) => inode.size = target.len() as u64,
                &Kind::CharacterDevice { major, minor } | &Kind::BlockDevice { major, minor } => {
                    inode.block_or_device = encode_device(major, minor);
                }
                Kind::Fifo | Kind::Socket => {}
            }
            inode.extended = inode.needs_extension(build_time);
            // Data share the block of their inode if all of it fits there. Whole files stay mappable otherwise.
            let together = inode.encoded_size() + inode.xattr_size + inode.size;
            if inode.size > 0 && together <= BLOCK {
                inode.layout = Layout::Inline;
            }
        }
        Ok(())
    }

    /// Gives each inode its place. Returns where the last one ends.
    fn place_inodes(&mut self) -> u64 {
        let mut end = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE;
        for PlannedInode { offset, inode, .. } in &mut self.inodes {
            let in_one_block = match inode.layout {
                Layout::Inline => inode.encoded_size() + inode.xattr_size + inode.size,
                Layout::Plain => inode.encoded_size(),
            };
            *offset = end.next_multiple_of(SLOT);
            if *offset % BLOCK + in_one_block > BLOCK {
                *offset = end.next_multiple_of(BLOCK);
            }
            let inline = if inode.layout == Layout::Inline { inode.size } else { 0 };
            end = *offset + inode.encoded_size() + inode.xattr_size + inline;
        }
        end
    }

    /// Gives all other data their blocks: directories, which are searched, before what is read.
    fn place_data(&mut self, tree: &Tree, metadata_end: u64) -> Result<(), ErofsError> {
        let is_directory = |planned: &PlannedInode| *tree.node(planned.node).kind() == Kind::Directory;
        let (directories, others): (Vec<_>, Vec<_>) = (0..self.inodes.len())
            .filter(|&index| self.inodes[index].has_blocks())
            .partition(|&index| is_directory(&self.inodes[index]));
        self.data = [directories, others].concat();

        let mut next = metadata_end.div_ceil(BLOCK);
        for &index in &self.data {
            let inode = &mut self.inodes[index].inode;
            let end = next.saturating_add(inode.size.div_ceil(BLOCK));
            if end > MAX_BLOCKS {
                return Err(ErofsError::TooLarge);
            }
            inode.block_or_device = next as u32;
            next = end;
        }
        self.blocks = next;
        Ok(())
    }
}

/// The type of a node as directory entries have it.
pub(super) fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharacterDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// All names in a directory, its own and its parent's included, sorted as bytes.
fn directory_names(node: &Node) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = node.entries().map(|(name, _)| name).chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    names
}
