//! Images checked by ext4's own tools; where these are not installed, the tests say so and pass.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm_images_build::ext4::{self, Ext4Error, GRANULARITY, Options};
use vmm_images_build::tree::{Content, Kind, Metadata, Timestamp, Tree};

const MTIME: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };

fn metadata(permissions: u16) -> Metadata {
    Metadata::new(permissions, MTIME)
}

fn file(bytes: impl Into<Vec<u8>>) -> Kind {
    Kind::File(Content::Bytes(bytes.into()))
}

/// What a tool prints; `None`, and a line that says so, where it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    // The tools are where ordinary users do not look.
    let path = std::env::var("PATH").unwrap_or_default() + ":/sbin:/usr/sbin";
    match Command::new(tool).args(arguments).env("PATH", path).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("cannot run {tool}: {error}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{tool}: {text}{}", String::from_utf8_lossy(&output.stderr));
            Some(text)
        }
    }
}

struct Image {
    _directory: tempfile::TempDir,
    path: PathBuf,
    size: u64,
}

fn write(tree: &Tree, size: u64) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let size = ext4::write(tree, &Options { size, label: "test".to_owned() }, &path).unwrap();
    run("e2fsck", &["-fn", path.to_str().unwrap()]);
    Image { _directory: directory, path, size }
}

fn stat(image: &Image, path: &str) -> Option<String> {
    run("debugfs", &["-R", &format!("stat {path}"), image.path.to_str().unwrap()])
}

#[test]
fn an_empty_disk_is_sound_and_sparse() {
    let image = write(&Tree::new(metadata(0o755)), 20 << 30);
    let metadata = std::fs::metadata(&image.path).unwrap();
    assert_eq!((image.size, metadata.len()), (20 << 30, 20 << 30));
    assert!(metadata.blocks() * 512 < 64 << 20, "{} blocks of 512 bytes", metadata.blocks());
}

#[test]
fn sizes_are_rounded_up_to_block_groups() {
    let tree = Tree::new(metadata(0o755));
    assert_eq!(write(&tree, 0).size, GRANULARITY);
    assert_eq!(write(&tree, GRANULARITY + 1).size, 2 * GRANULARITY);
}

#[test]
fn files_and_attributes_survive() {
    let mut tree = Tree::new(metadata(0o755));
    let mut owned = metadata(0o4750);
    (owned.uid, owned.gid) = (1000, 70_000);
    owned.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 0, 2]);
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    tree.insert("/bin/program", owned, file(bytes.clone())).unwrap();
    tree.link("/bin/other", "/bin/program").unwrap();
    tree.insert("/short", metadata(0o777), Kind::Symlink(b"bin".to_vec())).unwrap();
    tree.insert("/long", metadata(0o777), Kind::Symlink(vec![b'x'; 200])).unwrap();
    tree.insert("/tmp", metadata(0o1777), Kind::Directory).unwrap();
    for number in 0..300 {
        tree.insert(format!("/many/file-{number}"), metadata(0o600), file("")).unwrap();
    }
    let image = write(&tree, 0);

    let Some(program) = stat(&image, "/bin/program") else { return };
    for part in ["Mode:  04750", "User:  1000", "Group: 70000", "Links: 2", "Size: 100000", "capability"] {
        assert!(program.contains(part), "{part} is not in {program}");
    }
    assert!(program.contains("mtime: 0x6553f100:1d6f3454"), "{program}");
    assert!(stat(&image, "/tmp").unwrap().contains("Mode:  01777"));
    assert!(stat(&image, "/short").unwrap().contains("\"bin\""));

    let copy = image.path.with_extension("copy");
    run("debugfs", &["-R", &format!("dump /bin/other {}", copy.display()), image.path.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == bytes);
}

#[test]
fn what_ext4_images_cannot_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let refused = |name: &str, kind| {
        let mut tree = Tree::new(metadata(0o755));
        tree.insert(name, metadata(0o644), kind).unwrap();
        ext4::write(&tree, &Options::default(), &path).unwrap_err()
    };
    assert!(matches!(refused("/dev/null", Kind::CharacterDevice { major: 1, minor: 3 }), Ext4Error::Type(p)
        if p == Path::new("/dev/null")));
    let content = Content::File { path: "/nonexistent".into(), offset: 0, length: 1 };
    assert!(matches!(refused("/a", Kind::File(content)), Ext4Error::Read { .. }));
    let options = Options { label: "seventeen letters".to_owned(), ..Options::default() };
    let error = ext4::write(&Tree::new(metadata(0o755)), &options, &path).unwrap_err();
    assert!(matches!(error, Ext4Error::Label(_)));
}
