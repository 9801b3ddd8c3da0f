//! What a kernel can do: asked of its embedded configuration, else guessed from what is in its image.
//!
//! A driver that is built in leaves its name or its parameters' names in the image as C strings; a module
//! leaves nothing there.

use std::io::Read;

use flate2::bufread::GzDecoder;
use serde::{Deserialize, Serialize};

use crate::image::{PT_NOTE, program_headers, u32_at};

/// What `IKCONFIG` may unpack to; a distribution's configuration has a third of a megabyte.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// Where the facts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The configuration embedded in the kernel (`CONFIG_IKCONFIG`): certain.
    Config,
    /// Strings in the image: a good guess.
    #[default]
    Strings,
}

/// What matters of a kernel when a machine for it is put together. Each driver counts only if it is built in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Where the rest comes from.
    pub evidence: Evidence,
    /// As `uname -r` prints it.
    pub release: Option<String>,
    /// The address of the PVH entry point.
    pub pvh_entry: Option<u32>,
    /// Takes modules, so that drivers missing here may come from an initramfs.
    pub modules: bool,
    /// Speaks KVM's paravirtual interfaces, kvmclock among them.
    pub kvm_guest: bool,
    /// Finds processors and devices through ACPI.
    pub acpi: bool,
    /// Finds processors through an MP table.
    pub mptable: bool,
    /// The virtio-mmio transport.
    pub virtio_mmio: bool,
    /// Takes `virtio_mmio.device=` words.
    pub virtio_mmio_cmdline: bool,
    /// Block devices.
    pub virtio_blk: bool,
    /// `hvc0`.
    pub virtio_console: bool,
    /// `ttyS0`.
    pub serial_console: bool,
    /// Probes a keyboard controller.
    pub i8042: bool,
    /// The ext4 file system.
    pub ext4: bool,
    /// The EROFS file system.
    pub erofs: bool,
    /// The squashfs file system.
    pub squashfs: bool,
}

impl Facts {
    /// Looks into an uncompressed kernel. Damage shows as absence, never as an error.
    pub fn of_vmlinux(vmlinux: &[u8]) -> Self {
        let mut facts = match embedded_config(vmlinux) {
            Some(config) => Self::of_config(&config),
            None => Self::of_strings(vmlinux),
        };
        facts.release = release(vmlinux);
        facts.pvh_entry = pvh_entry(vmlinux);
        facts
    }

    /// What a kernel configuration says.
    pub fn of_config(config: &str) -> Self {
        let built_in = |name: &str| {
            config.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim_end() == "=y"))
        };
        Self {
            evidence: Evidence::Config,
            release: None,
            pvh_entry: None,
            modules: built_in("CONFIG_MODULES"),
            kvm_guest: built_in("CONFIG_KVM_GUEST"),
            acpi: built_in("CONFIG_ACPI"),
            mptable: built_in("CONFIG_X86_MPPARSE"),
            virtio_mmio: built_in("CONFIG_VIRTIO_MMIO"),
            virtio_mmio_cmdline: built_in("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"),
            virtio_blk: built_in("CONFIG_VIRTIO_BLK"),
            virtio_console: built_in("CONFIG_VIRTIO_CONSOLE"),
            serial_console: built_in("CONFIG_SERIAL_8250_CONSOLE"),
            i8042: built_in("CONFIG_SERIO_I8042"),
            ext4: built_in("CONFIG_EXT4_FS"),
            erofs: built_in("CONFIG_EROFS_FS"),
            squashfs: built_in("CONFIG_SQUASHFS"),
        }
    }

    fn of_strings(vmlinux: &[u8]) -> Self {
        // One pass per name over tens of megabytes, so only where there is no configuration to ask.
        let has = |string: &str| {
            let mut needle = string.as_bytes().to_vec();
            needle.push(0);
            find(vmlinux, &needle).is_some()
        };
        Self {
            evidence: Evidence::Strings,
            release: None,
            pvh_entry: None,
            modules: has("module_blacklist"),
            kvm_guest: has("KVMKVMKVM"),
            acpi: has("acpi_osi="),
            mptable: has("update_mptable"),
            virtio_mmio: has("virtio-mmio"),
            virtio_mmio_cmdline: has("virtio_mmio.device"),
            virtio_blk: has("virtio_blk.queue_depth") || has("virtio_blk.num_request_queues"),
            virtio_console: has("virtio_console"),
            serial_console: has("8250.nr_uarts"),
            i8042: has("i8042.noaux"),
            ext4: has("ext4_inode_cache"),
            erofs: has("erofs_inode"),
            squashfs: has("squashfs_inode_cache"),
        }
    }

    /// Whether its root disk can be reached with what is built in.
    pub fn reaches_disks(&self) -> bool {
        self.virtio_mmio && self.virtio_blk && (self.virtio_mmio_cmdline || self.acpi)
    }
}

/// The configuration that `CONFIG_IKCONFIG` embeds: gzip between two markers (kernel/configs.c).
pub fn embedded_config(vmlinux: &[u8]) -> Option<String> {
    const START: &[u8] = b"IKCFG_ST";
    let start = find(vmlinux, START)? + START.len();
    let mut config = String::new();
    GzDecoder::new(&vmlinux[start..]).take(CONFIG_BYTES_MAX).read_to_string(&mut config).ok()?;
    Some(config)
}

/// The word after "Linux version " in the banner (init/version-timestamp.c).
fn release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    const RELEASE_BYTES_MAX: usize = 64;
    let mut rest = vmlinux;
    // The format string of the same banner comes with %s in place of the release.
    loop {
        rest = &rest[find(rest, BANNER)? + BANNER.len()..];
        let window = &rest[..rest.len().min(RELEASE_BYTES_MAX + 1)];
        let word = window.split(|&byte| byte == b' ').next().unwrap_or_default();
        if word.len() < window.len() && word.first().is_some_and(u8::is_ascii_digit) {
            return std::str::from_utf8(word).ok().map(str::to_owned);
        }
    }
}

/// The Xen note of type 18 holds the 32-bit entry point (include/xen/interface/elfnote.h).
fn pvh_entry(vmlinux: &[u8]) -> Option<u32> {
    const PHYS32_ENTRY: u32 = 18;
    for segment in program_headers(vmlinux)?.filter(|segment| segment.kind == PT_NOTE) {
        let start = usize::try_from(segment.offset).ok()?;
        let end = start.checked_add(usize::try_from(segment.file_bytes).ok()?)?;
        let mut notes = vmlinux.get(start..end)?;
        // Each note: name length, content length, type, then both padded to four bytes.
        while let (Some(name_bytes), Some(content_bytes), Some(kind)) =
            (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
        {
            let content = 12 + (name_bytes as usize).next_multiple_of(4);
            if kind == PHYS32_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
                return u32_at(notes, content);
            }
            match notes.get(content + (content_bytes as usize).next_multiple_of(4)..) {
                Some(rest) => notes = rest,
                None => break,
            }
        }
    }
    None
}

/// The first place of `needle`: a scan for its rarest byte would gain little over one for its first.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    loop {
        from += haystack.get(from..)?.iter().position(|&byte| byte == first)?;
        if haystack[from + 1..].starts_with(rest) {
            return Some(from);
        }
        from += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::{elf, gzip};

    #[test]
    fn an_embedded_configuration_is_believed() {
        let mut content =
            b"Linux version %s (%s)\0Linux version 6.12.1-vmm (root@host)\0virtio_console\0IKCFG_ST".to_vec();
        content.extend(gzip(
            b"CONFIG_ACPI=y\nCONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_BLK=m\n# CONFIG_MODULES is not set\nCONFIG_EXT4_FS=y\n",
        ));
        content.extend(b"IKCFG_ED");
        let facts = Facts::of_vmlinux(&elf(&content, true));
        assert_eq!(facts.evidence, Evidence::Config);
        assert_eq!(facts.release.as_deref(), Some("6.12.1-vmm"));
        assert_eq!(facts.pvh_entry, Some(0x100_0000));
        assert!(facts.acpi && facts.virtio_mmio && facts.ext4);
        assert!(!facts.virtio_blk && !facts.modules && !facts.virtio_console);
        assert!(!facts.reaches_disks());
    }

    #[test]
    fn without_one_strings_speak() {
        let content =
            b"\0Linux version 6.1.0-1-amd64 (x)\0virtio-mmio\0virtio_mmio.device\0module_blacklist\0";
        let facts = Facts::of_vmlinux(&elf(content, false));
        assert_eq!(facts.evidence, Evidence::Strings);
        assert_eq!(facts.release.as_deref(), Some("6.1.0-1-amd64"));
        assert_eq!(facts.pvh_entry, None);
        assert!(facts.virtio_mmio && facts.virtio_mmio_cmdline && facts.modules);
        assert!(!facts.virtio_blk && !facts.acpi);
    }

    #[test]
    fn damage_is_absence() {
        for content in
            [&b"IKCFG_ST\x1f\x8b\x08 broken"[..], b"Linux version ", b"Linux version 6", b"IKCFG_S"]
        {
            assert_eq!(Facts::of_vmlinux(&elf(content, false)), Facts::default());
        }
        // A note whose length leads beyond the file.
        let mut file = elf(b"", true);
        let note = file.len() - 20;
        file[note..note + 8].fill(0xff);
        assert_eq!(Facts::of_vmlinux(&file).pvh_entry, None);
    }
}
