//! The first root file system of a kernel whose drivers are modules: the project's init, and the modules that
//! it loads to reach the real root.
//!
//! The archive holds `/init`, the modules at `/lib/modules/…`, and `/etc/modules.load` with their paths in the
//! order to load them. It is not compressed: unpacking costs a guest more than copying does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vmm_images_archive::cpio;

use crate::hash::hash;
use crate::modules::{Module, ModuleError, ModuleTree};
use crate::open::write_atomically;

/// What every guest needs before its root is mounted: without these there is no disk.
const ESSENTIAL: [&str; 2] = ["virtio_mmio", "virtio_blk"];

/// What every guest is given besides: a console, randomness, memory's way back, the power button and the path by
/// which it reaches user space, word of a panic, the host's sockets, and writable layers over a read-only root.
const USUAL: [&str; 8] = [
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "button",
    "evdev",
    "pvpanic_mmio",
    "vmw_vsock_virtio_transport",
    "overlay",
];

/// The file systems of a root or a volume.
pub const FILE_SYSTEMS: [&str; 4] = ["ext4", "erofs", "squashfs", "virtiofs"];

/// What a guest may ask for later.
const OTHER: [&str; 2] = ["virtio_net", "virtio_pmem"];

/// The modules worth keeping; [`crate::fetch`] keeps these and what they depend on.
pub(crate) fn all_modules() -> Vec<&'static str> {
    ESSENTIAL.into_iter().chain(USUAL).chain(FILE_SYSTEMS).chain(OTHER).collect()
}

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The kernel's modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The file system.
    #[error("cannot write the initramfs {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The initramfs for a kernel's `modules` (its `/lib/modules/RELEASE`), made in `cache` unless it is there.
///
/// `file_systems` are those of [`FILE_SYSTEMS`] that this boot mounts; `init` is the program.
pub fn ensure(
    modules: &Path,
    file_systems: &[&str],
    init: &[u8],
    cache: &Path,
) -> Result<PathBuf, InitramfsError> {
    let init_hash = hash(&[init]);
    let wish_hash =
        hash(&[&[modules.as_os_str().as_encoded_bytes()], wishes(file_systems).as_slice()].concat());
    let path = cache.join(format!("initramfs-{init_hash}-{wish_hash}.cpio"));
    if path.exists() {
        return Ok(path);
    }
    let tree = ModuleTree::scan(modules)?;
    if let Some(name) = ESSENTIAL.iter().find(|name| !tree.has(name)) {
        return Err(ModuleError::Missing { name: (*name).to_owned(), directory: modules.to_owned() }.into());
    }
    let names: Vec<&str> = ESSENTIAL.into_iter().chain(USUAL).chain(file_systems.iter().copied()).collect();
    let modules = tree.in_load_order(&names)?;
    let write_error = |source| InitramfsError::Write { path: path.clone(), source };
    fs::create_dir_all(cache).map_err(write_error)?;
    remove_outdated(cache, &init_hash);
    let archive = archive(&modules, init).map_err(write_error)?;
    write_atomically(&path, &archive).map_err(write_error)?;
    Ok(path)
}

fn wishes<'a>(file_systems: &'a [&str]) -> Vec<&'a [u8]> {
    file_systems.iter().map(|name| name.as_bytes()).collect()
}

/// Lays out the archive.
fn archive(modules: &[Module], init: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = cpio::Writer::new(Vec::new());
    for directory in ["dev", "proc", "sys", "etc", "lib", "lib/modules"] {
        writer.directory(directory, 0o755)?;
    }
    // The kernel opens it for init before anything is mounted.
    writer.character_device("dev/console", 0o600, 5, 1)?;
    writer.file("init", 0o755, init)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("/lib/modules/{}.ko", module.name);
        writer.file(&path, 0o644, &module.content)?;
        list += &path;
        list.push('\n');
    }
    writer.file("etc/modules.load", 0o644, list.as_bytes())?;
    writer.finish()
}

/// Removes what was made for another init. What cannot be removed only takes space.
fn remove_outdated(cache: &Path, init_hash: &str) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let other = name
            .to_str()
            .and_then(|name| name.strip_prefix("initramfs-"))
            .is_some_and(|rest| !rest.starts_with(init_hash));
        if other {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::tests::{module, write};

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, depends) in
            [("virtio", ""), ("virtio_mmio", "virtio"), ("virtio_blk", "virtio"), ("ext4", "")]
        {
            let content = module(&[&format!("depends={depends}")]);
            write(directory.path(), &format!("kernel/{path}.ko"), &content);
        }
        directory
    }

    #[test]
    fn it_is_made_once_for_each_init_and_root() {
        let modules = tree();
        let cache = tempfile::tempdir().unwrap();
        let make = |file_systems: &[&str], init: &[u8]| {
            ensure(modules.path(), file_systems, init, cache.path()).unwrap()
        };
        let first = make(&["ext4"], b"init one");
        let content = fs::read(&first).unwrap();
        let text = String::from_utf8_lossy(&content);
        assert!(text.contains("init one"));
        let list = "/lib/modules/virtio.ko\n/lib/modules/virtio_mmio.ko\n/lib/modules/virtio_blk.ko\n/lib/modules/ext4.ko\n";
        assert!(text.contains(list));

        fs::write(&first, b"mark").unwrap();
        assert_eq!(make(&["ext4"], b"init one"), first);
        assert_eq!(fs::read(&first).unwrap(), b"mark", "not made a second time");
        let other_root = make(&["erofs"], b"init one");
        assert_ne!(first, other_root);
        make(&["ext4"], b"init two");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "those for the old init are gone");
    }

    #[test]
    fn without_a_disk_driver_there_is_no_point() {
        let modules = tree();
        fs::remove_file(modules.path().join("kernel/virtio_blk.ko")).unwrap();
        let error = ensure(modules.path(), &[], b"", modules.path()).unwrap_err();
        assert!(error.to_string().contains("kernel module virtio_blk is missing"), "{error}");
    }
}
