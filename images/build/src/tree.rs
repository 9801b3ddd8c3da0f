//! A file system in memory: what an image writer puts into an image.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Longest name of a directory entry, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes (`PATH_MAX` less the terminator).
const SYMLINK_MAX: usize = 4095;

/// Device numbers that Linux can represent: 12 bits major, 20 bits minor.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Why an entry cannot be in a [`Tree`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// The path is empty, or goes up with `..`.
    #[error("{0:?} is no path inside a file system")]
    Path(PathBuf),
    /// A component is longer than a directory entry can be.
    #[error("a name in {0:?} is longer than {NAME_MAX} bytes")]
    NameTooLong(PathBuf),
    /// Something on the way to the entry is not a directory.
    #[error("{0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// The entry to link to is not there.
    #[error("{0:?} does not exist")]
    NotFound(PathBuf),
    /// A hard link to a directory.
    #[error("{0:?} is a directory: only other files can have hard links")]
    LinkToDirectory(PathBuf),
    /// The root can only be a directory.
    #[error("the root of a file system is a directory")]
    RootNotADirectory,
    /// The target of a symbolic link is empty, too long or has a zero byte.
    #[error("{0:?} has no valid target for a symbolic link (1 to {SYMLINK_MAX} bytes, none of them zero)")]
    SymlinkTarget(PathBuf),
    /// The device number does not fit Linux' device numbers.
    #[error("{path:?}: device {major}:{minor} is beyond {MAJOR_MAX}:{MINOR_MAX}")]
    DeviceNumber {
        /// Path of the device node.
        path: PathBuf,
        /// Major number asked for.
        major: u32,
        /// Minor number asked for.
        minor: u32,
    },
    /// More than a second of nanoseconds.
    #[error("{0:?}: a time has less than 1000000000 ns beyond its seconds")]
    Nanoseconds(PathBuf),
}

/// A point in time: seconds since the epoch, possibly negative, and the nanoseconds beyond them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds beyond the seconds, less than 1 000 000 000.
    pub nanoseconds: u32,
}

/// Everything about a file but its type and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky bit (`mode & 0o7777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes by their full name, such as `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Metadata {
    /// Metadata of a file that belongs to root, dates from `mtime` and has no extended attributes.
    pub fn new(permissions: u16, mtime: Timestamp) -> Self {
        Self { permissions: permissions & 0o7777, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }
}

/// Where the bytes of a regular file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// A part of a file, read only when the image is written.
    File {
        /// The file to read.
        path: PathBuf,
        /// Where in it the content starts, in bytes.
        offset: u64,
        /// Length of the content in bytes.
        length: u64,
    },
}

impl Content {
    /// The whole of the file at `path`, at the length that it has now.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let length = std::fs::metadata(path)?.len();
        Ok(Self::File { path: path.to_owned(), offset: 0, length })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens the content. The reader ends after [`Self::len`] bytes, or earlier if the source was cut since.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(bytes.as_slice())),
            Self::File { path, offset, length } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok(Box::new(file.take(*length)))
            }
        }
    }
}

/// The type of a file, with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory. Its entries are inserted by their own paths.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharacterDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Names a file of one tree; hard links are several entries with one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// One file of a [`Tree`].
#[derive(Debug, Clone)]
pub struct Node {
    /// Owner, permissions, times, attributes.
    pub metadata: Metadata,
    kind: Kind,
    entries: BTreeMap<Vec<u8>, NodeId>,
}

impl Node {
    /// The file's type and content.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The entries of a directory, sorted by name as bytes; of anything else there are none.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], NodeId)> {
        self.entries.iter().map(|(name, &id)| (name.as_slice(), id))
    }
}

/// A file system: directories, files and links, all below one root directory.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The root is first. A node that was replaced stays here, out of reach.
    nodes: Vec<Node>,
}

impl Tree {
    /// A file system with nothing but a root directory.
    pub fn new(root: Metadata) -> Self {
        Self { nodes: vec![Node { metadata: root, kind: Kind::Directory, entries: BTreeMap::new() }] }
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// The file that `id`, which came from this tree, names.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Finds the file at `path`, without following symbolic links.
    pub fn find(&self, path: impl AsRef<Path>) -> Option<NodeId> {
        let names = components(path.as_ref()).ok()?;
        names.iter().try_fold(self.root(), |directory, &name| self.node(directory).entries.get(name).copied())
    }

    /// Puts a file at `path`, which is relative to the root whether or not it starts with a slash.
    ///
    /// Parents that are missing are made, owned by root with mode 0755 and the time of the file. What is at the
    /// path already is replaced, except that a directory put over a directory keeps its entries.
    pub fn insert(
        &mut self,
        path: impl AsRef<Path>,
        metadata: Metadata,
        kind: Kind,
    ) -> Result<NodeId, TreeError> {
        let path = path.as_ref();
        validate(path, &metadata, &kind)?;
        let mut names = components(path)?;
        let Some(name) = names.pop() else {
            if kind != Kind::Directory {
                return Err(TreeError::RootNotADirectory);
            }
            self.nodes[0].metadata = metadata;
            return Ok(self.root());
        };
        let parent = self.make_directories(&names, metadata.mtime)?;
        let existing = self.node(parent).entries.get(name).copied();
        if let Some(id) = existing
            && kind == Kind::Directory
            && self.node(id).kind == Kind::Directory
        {
            self.nodes[id.0].metadata = metadata;
            return Ok(id);
        }
        Ok(self.add(parent, name, metadata, kind))
    }

    /// Makes `path` a hard link to the file at `target`.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<NodeId, TreeError> {
        let (path, target) = (path.as_ref(), target.as_ref());
        let id = self.find(target).ok_or_else(|| TreeError::NotFound(target.to_owned()))?;
        if self.node(id).kind == Kind::Directory {
            return Err(TreeError::LinkToDirectory(target.to_owned()));
        }
        let mut names = components(path)?;
        let name = names.pop().ok_or(TreeError::RootNotADirectory)?;
        let parent = self.make_directories(&names, self.node(id).metadata.mtime)?;
        self.nodes[parent.0].entries.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Finds the directory with the given names from the root on, making what is missing.
    fn make_directories(&mut self, names: &[&[u8]], mtime: Timestamp) -> Result<NodeId, TreeError> {
        let mut directory = self.root();
        for (depth, &name) in names.iter().enumerate() {
            directory = match self.node(directory).entries.get(name).copied() {
                Some(id) if self.node(id).kind == Kind::Directory => id,
                Some(_) => return Err(TreeError::NotADirectory(absolute(&names[..=depth]))),
                None => self.add(directory, name, Metadata::new(0o755, mtime), Kind::Directory),
            };
        }
        Ok(directory)
    }

    fn add(&mut self, parent: NodeId, name: &[u8], metadata: Metadata, kind: Kind) -> NodeId {
        let id = NodeId(self.nodes.len());
        self.nodes.push(Node { metadata, kind, entries: BTreeMap::new() });
        self.nodes[parent.0].entries.insert(name.to_owned(), id);
        id
    }
}

/// The path of a file from its components.
pub(crate) fn absolute(names: &[&[u8]]) -> PathBuf {
    Path::new("/").join(names.iter().map(|name| OsStr::from_bytes(name)).collect::<PathBuf>())
}

fn components(path: &Path) -> Result<Vec<&[u8]>, TreeError> {
    if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return Err(TreeError::Path(path.to_owned()));
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if name.len() > NAME_MAX => {
                return Err(TreeError::NameTooLong(path.to_owned()));
            }
            Component::Normal(name) => names.push(name.as_bytes()),
            Component::ParentDir | Component::Prefix(_) => return Err(TreeError::Path(path.to_owned())),
        }
    }
    Ok(names)
}

fn validate(path: &Path, metadata: &Metadata, kind: &Kind) -> Result<(), TreeError> {
    if metadata.mtime.nanoseconds >= 1_000_000_000 {
        return Err(TreeError::Nanoseconds(path.to_owned()));
    }
    match *kind {
        Kind::Symlink(ref target)
            if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) =>
        {
            Err(TreeError::SymlinkTarget(path.to_owned()))
        }
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor }
            if major > MAJOR_MAX || minor > MINOR_MAX =>
        {
            Err(TreeError::DeviceNumber { path: path.to_owned(), major, minor })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(permissions: u16) -> Metadata {
        Metadata::new(permissions, Timestamp::default())
    }

    fn empty() -> Tree {
        Tree::new(metadata(0o755))
    }

    fn file(bytes: &[u8]) -> Kind {
        Kind::File(Content::Bytes(bytes.to_vec()))
    }

    #[test]
    fn parents_are_made_on_the_way() {
        let mut tree = empty();
        let id = tree.insert("/usr/bin/true", metadata(0o755), file(b"")).unwrap();
        assert_eq!(tree.find("usr/./bin/true"), Some(id));
        assert_eq!(tree.node(tree.find("/usr").unwrap()).kind(), &Kind::Directory);
    }

    #[test]
    fn a_directory_over_a_directory_keeps_its_entries() {
        let mut tree = empty();
        tree.insert("/etc/passwd", metadata(0o644), file(b"root")).unwrap();
        let etc = tree.insert("/etc", metadata(0o700), Kind::Directory).unwrap();
        assert_eq!(tree.node(etc).metadata.permissions, 0o700);
        assert!(tree.find("/etc/passwd").is_some());
        tree.insert("/etc", metadata(0o777), Kind::Symlink(b"usr/etc".to_vec())).unwrap();
        assert!(tree.find("/etc/passwd").is_none());
    }

    #[test]
    fn links_share_a_node_and_outlive_the_first_name() {
        let mut tree = empty();
        let id = tree.insert("/a", metadata(0o644), file(b"one")).unwrap();
        assert_eq!(tree.link("/b", "/a"), Ok(id));
        tree.insert("/a", metadata(0o644), file(b"two")).unwrap();
        assert_eq!(tree.node(tree.find("/b").unwrap()).kind(), &file(b"one"));
        assert_eq!(tree.link("/c", "/missing"), Err(TreeError::NotFound("/missing".into())));
        assert_eq!(tree.link("/c", "/"), Err(TreeError::LinkToDirectory("/".into())));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut tree = empty();
        let mut insert = |path: &str, kind| tree.insert(path, metadata(0o644), kind).map(drop);
        assert_eq!(insert("", Kind::Fifo), Err(TreeError::Path("".into())));
        assert_eq!(insert("a/../b", Kind::Fifo), Err(TreeError::Path("a/../b".into())));
        assert_eq!(insert("/", Kind::Fifo), Err(TreeError::RootNotADirectory));
        assert_eq!(insert(&"n".repeat(256), Kind::Fifo), Err(TreeError::NameTooLong("n".repeat(256).into())));
        assert_eq!(insert("/l", Kind::Symlink(Vec::new())), Err(TreeError::SymlinkTarget("/l".into())));
        let device = Kind::BlockDevice { major: 4096, minor: 0 };
        assert!(matches!(insert("/d", device), Err(TreeError::DeviceNumber { major: 4096, .. })));
        insert("/file", file(b"")).unwrap();
        assert_eq!(insert("/file/below", Kind::Fifo), Err(TreeError::NotADirectory("/file".into())));
    }

    #[test]
    fn content_of_a_file_is_a_window() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        std::fs::write(&path, b"0123456789").unwrap();
        let mut bytes = Vec::new();
        Content::File { path, offset: 2, length: 3 }.open().unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"234");
    }
}
