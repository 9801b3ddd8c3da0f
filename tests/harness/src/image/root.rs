//! The emulated machine's Debian system: a kernel, its modules, and a disk with ordinary tools.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use vmm_images_archive::packages::PackageManager;

use super::{debian_sources, os_release};

/// Names in the directory that [`make`] fills.
pub(super) const KERNEL: &str = "vmlinuz";
/// See [`KERNEL`].
pub(super) const MODULES: &str = "modules";
/// See [`KERNEL`].
pub(super) const ROOT: &str = "root.ext4";

/// The package that depends on the newest kernel made for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What the machine's users want there besides what every Debian has.
const PACKAGES: [&str; 14] = [
    "busybox-static",
    "e2fsprogs",
    "erofs-utils",
    "fio",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "procps",
    "socat",
    "squashfs-tools",
    "strace",
    "uidmap",
    "util-linux",
];
/// What makes it.
const TOOLS: [&str; 3] = ["mmdebstrap", "e2fsprogs", "kmod"];
/// Length of the disk; it takes as much room as there is on it.
const DISK_SIZE: &str = "32G";

/// Runs in the new system's directory, as its root. Only there do owners mean what they will mean on the disk.
const FINISH: &str = r#"
set -e
root=$1
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
# /lib is a link, which has to stay one.
dpkg --fsys-tarfile "$KERNEL_DEB" | tar -x --keep-directory-symlink -C "$root"
release=$(basename "$root"/lib/modules/*)
depmod -b "$root" "$release"
mv "$root/boot/vmlinuz-$release" "$OUTPUT/vmlinuz"
rm -f "$root"/boot/*
cp -r "$root/lib/modules/$release" "$OUTPUT/modules"
# Without what is mounted in it.
unshare --mount sh -e -c '
  mkdir "$1/tmp/.root"
  mount --bind "$1" "$1/tmp/.root"
  exec mke2fs -q -t ext4 -O ^has_journal,^resize_inode -m 0 -E lazy_itable_init=1,root_owner=0:0 \
    -d "$1/tmp/.root" "$OUTPUT/root.ext4" "$DISK_SIZE"' sh "$root"
"#;

/// A name for what [`make`] would make here. The kernel's version is not in it: an older one is as good.
pub(super) fn recipe() -> String {
    let mut hash = Sha256::new();
    let release = os_release("VERSION_CODENAME").unwrap_or_default();
    for part in [release.as_str(), KERNEL_PACKAGE, FINISH, DISK_SIZE].into_iter().chain(PACKAGES) {
        hash.update(part);
        hash.update([0]);
    }
    let head = hash.finalize()[..8].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    format!("{head:016x}")
}

/// Makes all of it in the directory `output`.
pub(super) fn make(manager: &PackageManager, output: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!("only root can make the emulated host's Debian system: run this once as root, with your HOME");
    }
    manager.ensure_installed(&TOOLS)?;
    let newest = manager.dependencies(KERNEL_PACKAGE).or_else(|_| {
        manager.ensure_known(KERNEL_PACKAGE)?;
        manager.dependencies(KERNEL_PACKAGE)
    })?;
    let newest = newest.into_iter().find(|name| name.starts_with("linux-image-"));
    let newest = newest.with_context(|| format!("{KERNEL_PACKAGE} depends on no kernel"))?;
    let downloads = tempfile::tempdir().context("cannot make a directory")?;
    let kernel = manager.download(&newest, downloads.path())?;
    let finish = downloads.path().join("finish");
    fs::write(&finish, FINISH).context("cannot write the last step's script")?;

    let made = Command::new("mmdebstrap")
        .args(["--variant=apt", "--mode=root", "--quiet", "--format=null"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--customize-hook=sh {} \"$1\"", finish.display()))
        .args([&os_release("VERSION_CODENAME")?, "/dev/null"])
        .arg(debian_sources()?)
        .env("KERNEL_DEB", &kernel)
        .env("OUTPUT", output)
        .env("DISK_SIZE", DISK_SIZE)
        .stdin(Stdio::null())
        .output()
        .context("cannot run mmdebstrap")?;
    if !made.status.success() {
        bail!("mmdebstrap failed: {}", String::from_utf8_lossy(&made.stderr).trim_end());
    }
    Ok(())
}
