//! The emulated machine's first file system: the agent, and the modules that it loads.

use std::path::Path;

use anyhow::Context;
use vmm_images_archive::cpio;
use vmm_images_kernel::modules::ModuleTree;

use crate::agent::init::MODULES_LIST;

/// The machine's own disks and port, KVM, then what a host of guests and containers needs.
const MODULES: [&str; 22] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "kvm_amd",
    "tun",
    "tap",
    "macvtap",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "fuse",
    "overlay",
    "veth",
    "bridge",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "loop",
    "erofs",
    "squashfs",
    "dummy",
];

/// Lays it out as a cpio archive.
pub(crate) fn archive(modules: &Path, agent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let modules = ModuleTree::scan(modules).and_then(|tree| tree.in_load_order(&MODULES))?;
    let write = || {
        let mut writer = cpio::Writer::new(Vec::new());
        for directory in ["dev", "etc", "lib", "lib/modules", "proc", "root", "sys"] {
            writer.directory(directory, 0o755)?;
        }
        // The kernel opens it for its first program before anything is mounted.
        writer.character_device("dev/console", 0o600, 5, 1)?;
        writer.file("init", 0o755, agent)?;
        let mut list = String::new();
        for module in &modules {
            let path = format!("/lib/modules/{}.ko", module.name);
            writer.file(&path, 0o644, &module.content)?;
            list += &path;
            list.push('\n');
        }
        writer.file(MODULES_LIST, 0o644, list.as_bytes())?;
        writer.finish()
    };
    write().context("cannot lay out the initramfs")
}
