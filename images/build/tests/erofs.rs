//! Images read back by an independent reader, and checked by EROFS' own tools where they are installed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_rs::EroFS;
use erofs_rs::backend::MmapImage;
use erofs_rs::types::Layout;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use vmm_images_build::erofs::{self, ErofsError, Options};
use vmm_images_build::tree::{Content, Kind, Metadata, NodeId, Timestamp, Tree};

const BUILD_TIME: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };

fn options() -> Options {
    Options { build_time: BUILD_TIME, uuid: *b"0123456789abcdef", label: "test".to_owned() }
}

fn metadata(permissions: u16) -> Metadata {
    Metadata::new(permissions, BUILD_TIME)
}

fn file(bytes: impl Into<Vec<u8>>) -> Kind {
    Kind::File(Content::Bytes(bytes.into()))
}

fn write(tree: &Tree) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    let summary = erofs::write(tree, &options(), image.as_file()).unwrap();
    assert_eq!(summary.size, image.as_file().metadata().unwrap().len());
    image
}

fn open(image: &Path) -> EroFS<MmapImage> {
    // SAFETY: nobody else knows the file, and it is not written to any more.
    EroFS::new(unsafe { MmapImage::new_from_path(image) }.unwrap()).unwrap()
}

/// Everything that a reader can see of one file, in comparable form. Two paths of one inode have one `inode`.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    kind: String,
    permissions: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Vec<u8>,
}

/// What a reader should see of `tree`, by path. Inodes are counted in the order of their first path.
fn expected(tree: &Tree) -> BTreeMap<PathBuf, Seen> {
    fn visit(tree: &Tree, id: NodeId, path: &Path, found: &mut Vec<(PathBuf, NodeId)>) {
        found.push((path.to_owned(), id));
        for (name, child) in tree.node(id).entries() {
            visit(tree, child, &path.join(std::ffi::OsStr::from_bytes(name)), found);
        }
    }
    let mut found = Vec::new();
    visit(tree, tree.root(), Path::new("/"), &mut found);
    let ids: Vec<NodeId> = found.iter().map(|&(_, id)| id).collect();
    found
        .into_iter()
        .map(|(path, id)| {
            let node = tree.node(id);
            let directories =
                node.entries().filter(|&(_, child)| *tree.node(child).kind() == Kind::Directory).count();
            let names = ids.iter().filter(|&&other| other == id).count();
            let (kind, data, links) = match node.kind() {
                Kind::Directory => ("directory".to_owned(), Vec::new(), 2 + directories),
                Kind::File(Content::Bytes(bytes)) => ("file".to_owned(), bytes.clone(), names),
                Kind::File(Content::File { .. }) => unreachable!("these trees hold their bytes"),
                Kind::Symlink(target) => ("symlink".to_owned(), target.clone(), names),
                Kind::CharacterDevice { major, minor } => {
                    (format!("char {major}:{minor}"), Vec::new(), names)
                }
                Kind::BlockDevice { major, minor } => (format!("block {major}:{minor}"), Vec::new(), names),
                Kind::Fifo => ("fifo".to_owned(), Vec::new(), names),
                Kind::Socket => ("socket".to_owned(), Vec::new(), names),
            };
            let seen = Seen {
                inode: ids.iter().position(|&other| other == id).unwrap() as u64,
                kind,
                permissions: u32::from(node.metadata.permissions),
                uid: node.metadata.uid,
                gid: node.metadata.gid,
                links: links as u32,
                mtime: (node.metadata.mtime.seconds, node.metadata.mtime.nanoseconds),
                xattrs: node.metadata.xattrs.clone(),
                data,
            };
            (path, seen)
        })
        .collect()
}

/// What the independent reader sees.
fn seen(image: &Path) -> BTreeMap<PathBuf, Seen> {
    let fs = open(image);
    let mut all = BTreeMap::new();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut entries = vec![(PathBuf::from("/"), root)];
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = Path::new("/").join(std::ffi::OsStr::from_bytes(entry.dir_entry.path().as_bytes()));
        if path != Path::new("/") {
            entries.push((path, entry.inode));
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    // Paths compare by component, which is the order of a walk through sorted directories.
    let ids: Vec<u64> = entries.iter().map(|(_, inode)| inode.id()).collect();
    for (path, inode) in entries {
        let file_type = inode.file_type();
        let (kind, data) = if file_type.is_dir() {
            ("directory".to_owned(), Vec::new())
        } else if file_type.is_file() {
            let mut data = Vec::new();
            fs.open_inode_file(inode).unwrap().read_to_end(&mut data).unwrap();
            ("file".to_owned(), data)
        } else if file_type.is_symlink() {
            ("symlink".to_owned(), fs.read_link_inode(inode).unwrap().as_bytes().to_vec())
        } else {
            let debug = format!("{file_type:?}").to_lowercase();
            let name = ["char", "block", "fifo", "socket"].into_iter().find(|name| debug.contains(name));
            let name = name.unwrap_or_else(|| panic!("unknown type {debug}"));
            let device = inode.device().map(|(major, minor)| format!(" {major}:{minor}"));
            (name.to_owned() + &device.unwrap_or_default(), Vec::new())
        };
        let seen = Seen {
            inode: ids.iter().position(|&other| other == inode.id()).unwrap() as u64,
            kind,
            permissions: inode.permissions().mode() & 0o7777,
            uid: inode.uid(),
            gid: inode.gid(),
            links: inode.nlink(),
            mtime: inode.modified_unix(),
            xattrs: fs.xattrs_inode(inode).unwrap(),
            data,
        };
        assert!(all.insert(path, seen).is_none());
    }
    all
}

/// What `fsck.erofs` complains of; `None`, and a line that says so, where it is not installed. Its exit status is
/// of no use: a wrong checksum leaves it at 0.
fn complaints(image: &Path) -> Option<String> {
    match Command::new("fsck.erofs").arg(image).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: fsck.erofs is not installed");
            None
        }
        Err(error) => panic!("cannot run fsck.erofs: {error}"),
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn fsck(image: &Path) {
    assert_eq!(complaints(image).unwrap_or_default(), "");
}

fn check(tree: &Tree) {
    let image = write(tree);
    assert_eq!(seen(image.path()), expected(tree));
    fsck(image.path());
}

#[test]
fn an_empty_root_is_a_file_system() {
    check(&Tree::new(metadata(0o755)));
}

#[test]
fn every_type_and_attribute_survives() {
    let mut tree = Tree::new(metadata(0o711));
    tree.insert("/bin/busybox", metadata(0o4755), file(vec![7; 10_000])).unwrap();
    tree.link("/bin/sh", "/bin/busybox").unwrap();
    tree.insert("/bin/ls", metadata(0o777), Kind::Symlink(b"busybox".to_vec())).unwrap();
    tree.insert("/dev/null", metadata(0o666), Kind::CharacterDevice { major: 1, minor: 3 }).unwrap();
    tree.insert("/dev/vda", metadata(0o660), Kind::BlockDevice { major: 254, minor: 70_000 }).unwrap();
    tree.insert("/run/pipe", metadata(0o600), Kind::Fifo).unwrap();
    tree.insert("/run/socket", metadata(0o600), Kind::Socket).unwrap();
    tree.insert("/tmp", metadata(0o1777), Kind::Directory).unwrap();
    tree.insert("/empty", metadata(0o644), file("")).unwrap();

    let mut owned = Metadata::new(0o640, Timestamp { seconds: -1, nanoseconds: 999_999_999 });
    (owned.uid, owned.gid) = (100_000, 4_000_000_000);
    tree.insert("/owned", owned, file("mine")).unwrap();

    let mut attributed = metadata(0o755);
    for (name, value) in [
        ("security.capability", &b"\x01\x00\x00\x02\x00\x20\x00\x00"[..]),
        ("system.posix_acl_access", b"\x02\x00\x00\x00"),
        ("trusted.overlay.opaque", b"y"),
        ("user.empty", b""),
        ("user.long", &[3; 5000]),
    ] {
        attributed.xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
    }
    tree.insert("/bin/ping", attributed, file("ping")).unwrap();
    check(&tree);
}

#[test]
fn sizes_around_the_block_survive() {
    let mut tree = Tree::new(metadata(0o755));
    for length in [1, 31, 32, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097, 8192, 1 << 20] {
        let bytes: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
        tree.insert(format!("/compact-{length}"), metadata(0o644), file(bytes.clone())).unwrap();
        tree.insert(format!("/extended-{length}"), Metadata::new(0o644, Timestamp::default()), file(bytes))
            .unwrap();
    }
    for length in [59, 60, 4000, 4064, 4095] {
        tree.insert(format!("/link-{length}"), metadata(0o777), Kind::Symlink(vec![b'x'; length])).unwrap();
    }
    check(&tree);
}

#[test]
fn a_large_directory_survives() {
    let mut tree = Tree::new(metadata(0o755));
    for number in 0..5000 {
        tree.insert(format!("/many/file-{number}"), metadata(0o644), file(number.to_string())).unwrap();
    }
    let image = write(&tree);
    let fs = open(image.path());
    for number in [0, 1, 2499, 4999] {
        let mut text = String::new();
        fs.open(format!("/many/file-{number}")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, number.to_string());
    }
    assert_eq!(fs.read_dir("/many").unwrap().count(), 5000);
    fsck(image.path());
}

#[test]
fn equal_trees_give_equal_images() {
    let tree = |names: [&str; 3]| {
        let mut tree = Tree::new(metadata(0o755));
        for name in names {
            tree.insert(name, metadata(0o644), file(vec![1; 5000])).unwrap();
        }
        tree
    };
    let one = std::fs::read(write(&tree(["/a", "/b", "/c/d"])).path()).unwrap();
    let other = std::fs::read(write(&tree(["/c/d", "/b", "/a"])).path()).unwrap();
    assert!(one == other);
}

#[test]
fn what_fills_a_block_can_be_mapped() {
    let mut tree = Tree::new(metadata(0o755));
    tree.insert("/program", metadata(0o755), file(vec![9; 4096])).unwrap();
    let image = write(&tree);
    let fs = open(image.path());
    let inode = fs.read_dir("/").unwrap().next().unwrap().unwrap().inode;
    assert_eq!(inode.layout(), Some(Layout::FlatPlain));
    let bytes = std::fs::read(image.path()).unwrap();
    assert!(bytes.chunks(4096).any(|page| page == [9; 4096]), "the file is not in a page of its own");
}

#[test]
fn content_is_read_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    std::fs::write(&source, "some text").unwrap();
    let mut tree = Tree::new(metadata(0o755));
    tree.insert("/text", metadata(0o644), Kind::File(Content::of_file(&source).unwrap())).unwrap();

    let image = write(&tree);
    let mut text = String::new();
    open(image.path()).open("/text").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "some text");

    std::fs::write(&source, "some").unwrap();
    let error = erofs::write(&tree, &options(), image.as_file()).unwrap_err();
    assert_eq!(error.to_string(), "the content of \"/text\" has 4 bytes where 9 were announced");

    std::fs::remove_file(&source).unwrap();
    let error = erofs::write(&tree, &options(), image.as_file()).unwrap_err();
    assert!(matches!(error, ErofsError::Read { path, .. } if path == Path::new("/text")));
}

#[test]
fn an_image_is_as_sparse_as_its_files() {
    let mut tree = Tree::new(metadata(0o755));
    tree.insert("/zeros", metadata(0o644), file(vec![0; 1 << 20])).unwrap();
    let image = write(&tree);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&image.as_file().metadata().unwrap());
    assert!(blocks * 512 <= 64 << 10, "{blocks} blocks of 512 bytes");
    assert_eq!(seen(image.path()), expected(&tree));
}

#[test]
fn a_checker_notices_a_damaged_superblock() {
    let image = write(&Tree::new(metadata(0o755)));
    image.as_file().write_all_at(b"X", 1024 + 0x40).unwrap();
    if let Some(complaints) = complaints(image.path()) {
        assert!(complaints.contains("checksum"), "{complaints}");
    }
}

#[test]
fn options_and_attributes_that_do_not_fit_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let write = |tree: &Tree, options: &Options, file: &File| erofs::write(tree, options, file).unwrap_err();
    let mut tree = Tree::new(metadata(0o755));
    let long = Options { label: "seventeen letters".to_owned(), ..options() };
    assert!(matches!(write(&tree, &long, &file), ErofsError::Label(_)));
    let mut odd = metadata(0o644);
    odd.xattrs.insert(b"odd.name".to_vec(), Vec::new());
    tree.insert("/a/b", odd, Kind::Fifo).unwrap();
    let error = write(&tree, &options(), &file);
    assert_eq!(error.to_string(), "cannot store the attributes of \"/a/b\"");
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let id = prop_oneof![3 => Just(0), 1 => 0..70_000_u32, 1 => any::<u32>()];
    let mtime = prop_oneof![
        2 => Just(BUILD_TIME),
        1 => (-5_000_000_000..5_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }),
    ];
    let name = prop_oneof![
        "user\\.[a-z]{1,20}",
        "trusted\\.[a-z.]{1,20}",
        Just("security.capability".to_owned()),
        Just("system.posix_acl_access".to_owned()),
    ];
    let xattrs = btree_map(name.prop_map(String::into_bytes), vec(any::<u8>(), 0..300), 0..4);
    (0..0o10000_u16, id.clone(), id, mtime, xattrs)
        .prop_map(|(permissions, uid, gid, mtime, xattrs)| Metadata { permissions, uid, gid, mtime, xattrs })
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Directory),
        4 => vec(any::<u8>(), 0..9000).prop_map(file),
        2 => vec(1..=255_u8, 1..4096).prop_map(Kind::Symlink),
        1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
        1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    // Few short names make paths meet; long ones fill directory blocks.
    let name = prop_oneof![4 => "[a-d!~.]x?", 1 => "[a-zA-Z0-9 .é-]{1,120}"]
        .prop_filter("names of their own", |name| name != "." && name != "..");
    let path = vec(name, 1..4).prop_map(|names| names.join("/"));
    let entries = vec((path, any_metadata(), any_kind(), any::<Option<u8>>()), 0..60);
    (any_metadata(), entries).prop_map(|(root, entries)| {
        let mut tree = Tree::new(root);
        let mut paths: Vec<String> = Vec::new();
        for (path, metadata, kind, link) in entries {
            // Paths below files and links to directories are refused, which leaves the tree as it was.
            let inserted = match link.and_then(|n| paths.get(usize::from(n) % paths.len().max(1)).cloned()) {
                Some(target) => tree.link(&path, target),
                None => tree.insert(&path, metadata, kind),
            };
            if inserted.is_ok() {
                paths.push(path);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives(tree in any_tree()) {
        check(&tree);
    }
}
