//! The default root file system: busybox, our init and the few files that programs expect.

use std::path::Path;

use crate::busybox::Busybox;
use crate::tree::{Content, Kind, Metadata, Timestamp, Tree, TreeError};

const INIT: &str = "/sbin/vmm-init";

/// Names of our init; busybox has the same, which do not work with another init.
const INIT_NAMES: [&str; 4] = ["/sbin/init", "/sbin/poweroff", "/sbin/reboot", "/sbin/halt"];

/// Applets that are left out: they are ways to start a system, which is init's part.
const LEFT_OUT: [&str; 2] = ["/linuxrc", "/sbin/run-init"];

/// Directories beyond those of the programs, with their permissions.
const DIRECTORIES: [(&str, u16); 11] = [
    ("/dev", 0o755),
    ("/etc/vmm", 0o755),
    ("/home", 0o755),
    ("/lib/modules", 0o755),
    ("/mnt", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var/log", 0o755),
];

const LINKS: [(&str, &str); 3] =
    [("/etc/mtab", "/proc/self/mounts"), ("/var/run", "/run"), ("/var/tmp", "/tmp")];

const FILES: [(&str, &str); 6] = [
    ("/etc/group", include_str!("etc/group")),
    ("/etc/hostname", include_str!("etc/hostname")),
    ("/etc/hosts", include_str!("etc/hosts")),
    ("/etc/passwd", include_str!("etc/passwd")),
    ("/etc/profile", include_str!("etc/profile")),
    ("/etc/shells", include_str!("etc/shells")),
];

/// The tree of a system with `init` as its PID 1. All files date from `time`.
pub fn tree(busybox: &Busybox, init: &[u8], time: Timestamp) -> Result<Tree, TreeError> {
    let metadata = |permissions| Metadata::new(permissions, time);
    let program = |bytes: &[u8]| Kind::File(Content::Bytes(bytes.to_vec()));

    let mut tree = Tree::new(metadata(0o755));
    for (path, permissions) in DIRECTORIES {
        tree.insert(path, metadata(permissions), Kind::Directory)?;
    }
    for (path, text) in FILES {
        tree.insert(path, metadata(0o644), program(text.as_bytes()))?;
    }
    for (path, target) in LINKS {
        tree.insert(path, metadata(0o777), Kind::Symlink(target.as_bytes().to_vec()))?;
    }
    tree.insert("/bin/busybox", metadata(0o755), program(&busybox.program))?;
    for applet in &busybox.applets {
        let path = Path::new("/").join(applet);
        if !LEFT_OUT.iter().any(|left_out| Path::new(left_out) == path) {
            tree.link(&path, "/bin/busybox")?;
        }
    }
    tree.insert(INIT, metadata(0o755), program(init))?;
    for name in INIT_NAMES {
        tree.link(name, INIT)?;
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_has_what_a_boot_needs() {
        let busybox = Busybox {
            program: b"busybox".to_vec(),
            applets: ["bin/sh", "bin/ls", "sbin/init", "sbin/poweroff", "linuxrc"].map(Into::into).to_vec(),
        };
        let tree = tree(&busybox, b"init", Timestamp::default()).unwrap();
        let program = |path: &str| match tree.node(tree.find(path).unwrap()).kind() {
            Kind::File(Content::Bytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{path} is {other:?}"),
        };
        for path in ["/bin/sh", "/bin/ls", "/bin/busybox"] {
            assert_eq!(program(path), "busybox");
        }
        for path in ["/sbin/init", "/sbin/poweroff", "/sbin/reboot", "/sbin/halt", "/sbin/vmm-init"] {
            assert_eq!(program(path), "init");
        }
        assert_eq!(tree.find("/linuxrc"), None);
        assert_eq!(program("/etc/hostname"), "vmm\n");
        for directory in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
            assert_eq!(tree.node(tree.find(directory).unwrap()).kind(), &Kind::Directory);
        }
    }
}
