//! Leaving the initramfs: its memory is given back, and another file system becomes the root.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

use crate::mounts;

/// `RAMFS_MAGIC` of `linux/magic.h`, which nix lacks.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

const NO_SOURCE: Option<&str> = None;

/// The step of the switch that failed.
#[derive(Debug)]
pub(crate) struct SwitchError {
    step: &'static str,
    cause: Errno,
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot switch to the root file system: {}: {}", self.step, self.cause.desc())
    }
}

/// Makes the file system mounted on `new_root` the root, taking `/dev`, `/proc` and `/sys` along and deleting
/// everything that the initramfs held.
pub(crate) fn switch(new_root: &Path) -> Result<(), SwitchError> {
    let at = |step| move |cause| SwitchError { step, cause };
    for target in mounts::early_targets() {
        let moved = new_root.join(&target[1..]);
        if mount(Some(target), &moved, NO_SOURCE, MsFlags::MS_MOVE, NO_SOURCE).is_err() {
            // A root without the directory: its init may know why.
            umount2(target, MntFlags::MNT_DETACH).map_err(at("unmount"))?;
        }
    }
    chdir(new_root).map_err(at("chdir"))?;
    if is_in_memory(Path::new("/")) {
        free_contents(Path::new("/"));
    }
    mount(Some("."), "/", NO_SOURCE, MsFlags::MS_MOVE, NO_SOURCE).map_err(at("move"))?;
    chroot(".").map_err(at("chroot"))?;
    chdir("/").map_err(at("chdir"))
}

/// Whether the file system at `path` lives in memory, so that deleting its files frees it. Anything else is not
/// ours to delete from.
fn is_in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| [RAMFS_MAGIC, TMPFS_MAGIC].contains(&found.filesystem_type()))
}

/// Deletes what is below `root`, staying on its file system. What resists is left: it only costs memory.
fn free_contents(root: &Path) {
    if let Ok(metadata) = fs::symlink_metadata(root) {
        let _ = free_directory(root, metadata.dev());
    }
}

fn free_directory(directory: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Without following links: what they point to is not ours.
        let metadata = entry.metadata()?;
        if metadata.dev() != device {
            continue;
        }
        let _ = if metadata.is_dir() {
            free_directory(&entry.path(), device).and_then(|()| fs::remove_dir(entry.path()))
        } else {
            fs::remove_file(entry.path())
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_go_and_the_directory_stays() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        fs::create_dir_all(root.path().join("lib/modules")).unwrap();
        fs::write(root.path().join("lib/modules/a.ko"), "a").unwrap();
        fs::write(root.path().join("init"), "i").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();

        free_contents(root.path());

        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_disk_is_no_memory() {
        assert!(!is_in_memory(Path::new("/proc")));
    }
}
