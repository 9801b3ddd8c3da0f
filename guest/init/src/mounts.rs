//! The kernel's own file systems and where they belong.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::report::complain;

/// A file system without a device.
struct Mount {
    target: &'static str,
    file_system: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;

/// What the initramfs needs, and hands on to the system.
const EARLY: [Mount; 3] = [
    Mount { target: "/dev", file_system: "devtmpfs", flags: NOSUID, options: Some("mode=0755") },
    Mount { target: "/proc", file_system: "proc", flags: NOSUID.union(NODEV).union(NOEXEC), options: None },
    Mount { target: "/sys", file_system: "sysfs", flags: NOSUID.union(NODEV).union(NOEXEC), options: None },
];

/// The rest of a system's mounts, parents before children.
const LATE: [Mount; 6] = [
    Mount {
        target: "/dev/pts",
        file_system: "devpts",
        flags: NOSUID.union(NOEXEC),
        options: Some("mode=0620,gid=5,ptmxmode=0666"),
    },
    Mount {
        target: "/dev/shm",
        file_system: "tmpfs",
        flags: NOSUID.union(NODEV),
        options: Some("mode=1777"),
    },
    Mount {
        target: "/dev/mqueue",
        file_system: "mqueue",
        flags: NOSUID.union(NODEV).union(NOEXEC),
        options: None,
    },
    Mount { target: "/run", file_system: "tmpfs", flags: NOSUID.union(NODEV), options: Some("mode=0755") },
    Mount { target: "/tmp", file_system: "tmpfs", flags: NOSUID.union(NODEV), options: Some("mode=1777") },
    Mount {
        target: "/sys/fs/cgroup",
        file_system: "cgroup2",
        flags: NOSUID.union(NODEV).union(NOEXEC),
        options: Some("nsdelegate"),
    },
];

/// Links that programs expect in `/dev` and devtmpfs does not make.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// The targets of [`mount_early`], which an initramfs moves to the new root.
pub(crate) fn early_targets() -> impl Iterator<Item = &'static str> {
    EARLY.iter().map(|mount| mount.target)
}

/// Mounts `/dev`, `/proc` and `/sys` unless they are mounted.
pub(crate) fn mount_early() {
    EARLY.iter().for_each(Mount::ensure);
}

/// Mounts what else a system expects, and completes `/dev`.
pub(crate) fn mount_late() {
    LATE.iter().for_each(Mount::ensure);
    for (target, link) in DEVICE_LINKS {
        // There already, or /dev is not ours to complete; programs that need the link say so.
        let _ = symlink(target, link);
    }
}

impl Mount {
    /// Mounts the file system. A system can do without any one of them, so failures are only said; a file system
    /// that the kernel was built without is not even that.
    fn ensure(&self) {
        match self.try_mount() {
            Ok(()) | Err(Errno::EBUSY | Errno::ENODEV) => {}
            Err(errno) => complain(&format_args!(
                "cannot mount {} on {}: {}",
                self.file_system,
                self.target,
                errno.desc()
            )),
        }
    }

    fn try_mount(&self) -> nix::Result<()> {
        if is_mount_point(Path::new(self.target)) {
            return Ok(());
        }
        // There already, or on a read-only root: then mounting says what is wrong.
        let _ = fs::create_dir(self.target);
        mount(Some(self.file_system), self.target, Some(self.file_system), self.flags, self.options)
    }
}

/// Whether another file system than its parent's is mounted on `path`.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let Some(parent) = path.parent() else { return true };
    device(path).is_some_and(|own| device(parent).is_some_and(|above| own != above))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_told_from_a_directory() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
        assert!(!is_mount_point(Path::new("/nonexistent")));
    }

    #[test]
    fn parents_come_before_children() {
        let targets: Vec<_> = EARLY.iter().chain(&LATE).map(|mount| mount.target).collect();
        for (index, target) in targets.iter().enumerate() {
            let above = Path::new(target).parent().unwrap();
            assert!(!targets[index..].iter().any(|later| Path::new(later) == above), "{target}");
        }
    }
}
