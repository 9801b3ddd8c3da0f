//! The on-disk structures of EROFS (Linux, `fs/erofs/erofs_fs.h`), as far as uncompressed images need them.
//! All numbers are little-endian.

use crate::tree::Timestamp;

/// Bytes of a block, and of a page of the guest.
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
const BLOCK_BITS: u8 = 12;

/// Inodes are numbered by their place, in units of this many bytes.
pub(super) const SLOT: u64 = 32;

pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
pub(super) const SUPERBLOCK_SIZE: u64 = 128;

/// Where the checksum is within the superblock.
pub(super) const CHECKSUM_OFFSET: u64 = 4;

pub(super) const COMPACT_INODE_SIZE: u64 = 32;
pub(super) const EXTENDED_INODE_SIZE: u64 = 64;

pub(super) const DIRENT_SIZE: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;

/// The superblock has a CRC-32C over the rest of its block.
const COMPAT_CHECKSUM: u32 = 1 << 0;
/// Times are those of the last modification rather than of the last change.
const COMPAT_MTIME: u32 = 1 << 1;

/// What the superblock says.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: Timestamp,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
}

impl Superblock {
    /// The superblock with a checksum of zero.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_SIZE as usize);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        bytes.extend([BLOCK_BITS, 0]);
        bytes.extend(self.root_nid.to_le_bytes());
        bytes.extend(self.inodes.to_le_bytes());
        bytes.extend(self.build_time.seconds.to_le_bytes());
        bytes.extend(self.build_time.nanoseconds.to_le_bytes());
        bytes.extend(self.blocks.to_le_bytes());
        // Metadata and shared attributes are counted from block 0.
        bytes.extend([0; 8]);
        bytes.extend(self.uuid);
        bytes.extend(self.label);
        // No incompatible features, nor anything that comes with one.
        bytes.resize(SUPERBLOCK_SIZE as usize, 0);
        bytes
    }
}

/// CRC-32C as EROFS wants it: over the first block from the superblock on, with the checksum as zero, and
/// without the final inversion.
pub(super) fn superblock_checksum(rest_of_block: &[u8]) -> u32 {
    !crc32c::crc32c(rest_of_block)
}

/// Where the data of an inode are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In whole blocks of their own.
    Plain,
    /// Behind the inode, within its block.
    Inline,
}

/// What an inode says. It is encoded compactly where the values allow it.
pub(super) struct Inode {
    pub(super) extended: bool,
    pub(super) layout: Layout,
    /// Bytes of the extended attributes behind the inode.
    pub(super) xattr_size: u64,
    /// File type and permissions as in `st_mode`.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First data block, or the encoded device number.
    pub(super) block_or_device: u32,
    /// A small number for programs that know 32-bit inode numbers only.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) links: u32,
}

impl Inode {
    /// Whether values do not fit a compact inode, which has no time of its own but that of the superblock.
    pub(super) fn needs_extension(&self, build_time: Timestamp) -> bool {
        self.mtime != build_time
            || self.size > u64::from(u32::MAX)
            || [self.uid, self.gid, self.links].iter().any(|&value| value > u32::from(u16::MAX))
    }

    pub(super) fn encoded_size(&self) -> u64 {
        if self.extended { EXTENDED_INODE_SIZE } else { COMPACT_INODE_SIZE }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let layout = match self.layout {
            Layout::Plain => 0_u16,
            Layout::Inline => 2,
        };
        let xattr_count = xattr_count(self.xattr_size);
        let mut bytes = Vec::with_capacity(EXTENDED_INODE_SIZE as usize);
        bytes.extend((u16::from(self.extended) | layout << 1).to_le_bytes());
        bytes.extend(xattr_count.to_le_bytes());
        bytes.extend(self.mode.to_le_bytes());
        if self.extended {
            bytes.extend([0; 2]);
            bytes.extend(self.size.to_le_bytes());
            bytes.extend(self.block_or_device.to_le_bytes());
            bytes.extend(self.number.to_le_bytes());
            bytes.extend(self.uid.to_le_bytes());
            bytes.extend(self.gid.to_le_bytes());
            bytes.extend(self.mtime.seconds.to_le_bytes());
            bytes.extend(self.mtime.nanoseconds.to_le_bytes());
            bytes.extend(self.links.to_le_bytes());
            bytes.extend([0; 16]);
        } else {
            bytes.extend((self.links as u16).to_le_bytes());
            bytes.extend((self.size as u32).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(self.block_or_device.to_le_bytes());
            bytes.extend(self.number.to_le_bytes());
            bytes.extend((self.uid as u16).to_le_bytes());
            bytes.extend((self.gid as u16).to_le_bytes());
            bytes.extend([0; 4]);
        }
        bytes
    }
}

/// `i_xattr_icount`: one for the header of 12 bytes and one for every 4 bytes after it.
fn xattr_count(size: u64) -> u16 {
    match size {
        0 => 0,
        size => ((size - 12) / 4 + 1) as u16,
    }
}

/// A device number as Linux encodes it (`new_encode_dev`).
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// File types in directory entries (`FT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharacterDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    /// The type's bits in `st_mode`.
    pub(super) fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o01_0000,
            Self::CharacterDevice => 0o02_0000,
            Self::Directory => 0o04_0000,
            Self::BlockDevice => 0o06_0000,
            Self::Regular => 0o10_0000,
            Self::Symlink => 0o12_0000,
            Self::Socket => 0o14_0000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> Inode {
        Inode {
            extended: false,
            layout: Layout::Plain,
            xattr_size: 0,
            mode: 0o10_0644,
            size: 5,
            block_or_device: 7,
            number: 1,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            links: 1,
        }
    }

    #[test]
    fn structures_have_their_sizes() {
        assert_eq!(inode().encode().len() as u64, COMPACT_INODE_SIZE);
        assert_eq!(Inode { extended: true, ..inode() }.encode().len() as u64, EXTENDED_INODE_SIZE);
        let superblock = Superblock {
            root_nid: 36,
            inodes: 1,
            build_time: Timestamp::default(),
            blocks: 1,
            uuid: [0; 16],
            label: [0; 16],
        };
        assert_eq!(superblock.encode().len() as u64, SUPERBLOCK_SIZE);
    }

    #[test]
    fn each_wide_value_needs_an_extended_inode() {
        let build_time = Timestamp::default();
        assert!(!inode().needs_extension(build_time));
        assert!(!Inode { uid: 65535, ..inode() }.needs_extension(build_time));
        assert!(Inode { uid: 65536, ..inode() }.needs_extension(build_time));
        assert!(Inode { gid: 65536, ..inode() }.needs_extension(build_time));
        assert!(Inode { links: 65536, ..inode() }.needs_extension(build_time));
        assert!(Inode { size: 1 << 32, ..inode() }.needs_extension(build_time));
        assert!(inode().needs_extension(Timestamp { seconds: 0, nanoseconds: 1 }));
    }

    #[test]
    fn the_attribute_count_includes_the_header() {
        assert_eq!(xattr_count(0), 0);
        assert_eq!(xattr_count(12), 1);
        assert_eq!(xattr_count(20), 3);
    }

    #[test]
    fn device_numbers_are_split_around_the_major() {
        assert_eq!(encode_device(8, 1), 0x801);
        assert_eq!(encode_device(0xabc, 0x12345), 0x123a_bc45);
    }
}
