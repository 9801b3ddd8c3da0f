//! From what the user asked for, and what the kernel can do, to what is booted how.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use vmm_images_kernel::facts::Facts;
use vmm_images_kernel::initramfs;
use vmm_images_kernel::open::BootKernel;
use vmm_images_kernel::store::Store;
use vmm_machine::boot::insert_word;

use super::disk::{DiskSpec, FileSystem};
use super::{Boot, ConsoleChoice};
use crate::guest_init::GUEST_INIT;
use crate::hint::Hinted;

/// What every guest is told: how to reboot so that the monitor sees it, to reboot when it panics, not to look for
/// what this machine does not have, and not to spend its time on talking. The log level leaves out errors: that there is
/// no PCI bus is one to Linux.
const DEFAULT_WORDS: [&str; 5] = ["reboot=k", "panic=-1", "pci=off", "quiet", "loglevel=3"];
/// What keeps a kernel that drives a keyboard controller from probing ours for seconds, where no table tells it that
/// there is no keyboard.
const NO_KEYBOARD: [&str; 4] = ["i8042.noaux", "i8042.nomux", "i8042.nopnp", "i8042.dumbkbd"];

/// The console that a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Console {
    Serial,
    Virtio,
    None,
}

/// What is booted how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) kernel: BootKernel,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: String,
    pub(super) console: Console,
    pub(super) acpi: bool,
    /// In the order in which the guest finds them; the root is the first.
    pub(super) disks: Vec<DiskSpec>,
}

/// A kernel, and where its modules are.
struct Chosen {
    image: PathBuf,
    modules: Option<PathBuf>,
}

impl Plan {
    pub(super) fn new(options: &Boot, home: &Path) -> anyhow::Result<Self> {
        let cache = home.join("cache");
        let chosen = choose_kernel(options, &Store::new(home.join("kernels")))?;
        let kernel =
            BootKernel::open(&chosen.image, &cache).map_err(|error| Hinted::new(error.hint(), error))?;
        // Of a kernel that cannot be looked into, the usual is expected.
        let facts = kernel.facts.clone().unwrap_or_else(usual);
        let root = options.rootfs.as_ref().map(|root| Root::new(root, &facts));

        let initrd = match (&options.initrd, &chosen.modules, &root) {
            (Some(initrd), ..) => Some(initrd.clone()),
            (None, Some(modules), Some(root)) if !root.is_reachable => {
                let file_systems =
                    root.file_system.map_or(&initramfs::FILE_SYSTEMS[..], FileSystem::as_module);
                let path = initramfs::ensure(modules, file_systems, GUEST_INIT, &cache)
                    .context("cannot make the initramfs that loads the kernel's modules")?;
                Some(path)
            }
            (None, None, Some(root)) if !root.is_reachable => {
                return Err(unreachable(&chosen.image, &facts, root));
            }
            (None, _, Some(_)) => None,
            (None, _, None) => {
                let error = anyhow!("there is nothing to boot into");
                let hint = "give --rootfs, --initrd or both; `vmm rootfs make` makes a small system";
                return Err(Hinted::new(Some(hint.to_owned()), error).into());
            }
        };

        let console = match options.console {
            ConsoleChoice::Auto if facts.virtio_console => Console::Virtio,
            ConsoleChoice::Auto | ConsoleChoice::Serial => Console::Serial,
            ConsoleChoice::Virtio => Console::Virtio,
            ConsoleChoice::None => Console::None,
        };
        let acpi = !options.no_acpi && (facts.acpi || !facts.mptable);
        let cmdline = match &options.cmdline_only {
            Some(whole) => whole.clone(),
            None => command_line(&facts, console, acpi, root.as_ref(), &options.cmdline),
        };
        let disks = root.map(|root| root.disk).into_iter().chain(options.disk.iter().cloned()).collect();
        Ok(Self { kernel, initrd, cmdline, console, acpi, disks })
    }
}

/// The root disk, and what is known of it.
struct Root {
    disk: DiskSpec,
    file_system: Option<FileSystem>,
    /// Whether the kernel can mount it without modules.
    is_reachable: bool,
}

impl Root {
    fn new(disk: &DiskSpec, facts: &Facts) -> Self {
        let file_system = FileSystem::on(&disk.path);
        let mut disk = disk.clone();
        disk.read_only |= file_system.is_some_and(|it| !it.is_writable());
        let is_built_in = match file_system {
            Some(FileSystem::Ext4) => facts.ext4,
            Some(FileSystem::Erofs) => facts.erofs,
            Some(FileSystem::Squashfs) => facts.squashfs,
            None => true,
        };
        Self { disk, file_system, is_reachable: facts.reaches_disks() && is_built_in }
    }
}

fn usual() -> Facts {
    Facts { acpi: true, virtio_mmio: true, virtio_blk: true, ext4: true, ..Facts::default() }
}

/// The kernel that was asked for by path, or by its name among the stored ones; or else the default.
fn choose_kernel(options: &Boot, store: &Store) -> anyhow::Result<Chosen> {
    let stored = match &options.kernel {
        Some(path) if path.exists() || path.components().count() > 1 => {
            let same = |image: PathBuf| image.canonicalize().ok() == path.canonicalize().ok();
            let kernel = store.list().unwrap_or_default().into_iter().find(|kernel| same(kernel.image()));
            let modules = kernel.and_then(|kernel| kernel.modules());
            return Ok(Chosen { image: path.clone(), modules: options.modules.clone().or(modules) });
        }
        Some(name) => store.get(name.to_str()),
        None => store.get(None),
    };
    let kernel = stored.map_err(|error| Hinted::new(error.hint(), error))?;
    Ok(Chosen { image: kernel.image(), modules: options.modules.clone().or_else(|| kernel.modules()) })
}

fn unreachable(kernel: &Path, facts: &Facts, root: &Root) -> anyhow::Error {
    let lacks = match root.file_system {
        Some(file_system) if facts.reaches_disks() => format!("the {} file system", file_system.name()),
        _ => "a driver for virtio-mmio disks".to_owned(),
    };
    let path = kernel.display();
    let error = anyhow!("kernel {path} cannot mount its root: it has not built in {lacks}");
    let hint = "give its modules with --modules, an --initrd that loads them, or take a kernel from \
                `vmm kernel fetch` or `vmm kernel build`";
    Hinted::new(Some(hint.to_owned()), error).into()
}

fn command_line(facts: &Facts, console: Console, acpi: bool, root: Option<&Root>, more: &str) -> String {
    let mut line = DEFAULT_WORDS.join(" ");
    match console {
        Console::Serial => insert_word(&mut line, "console=ttyS0"),
        Console::Virtio => insert_word(&mut line, "console=hvc0"),
        Console::None => {}
    }
    if console != Console::Serial && facts.serial_console {
        insert_word(&mut line, "8250.nr_uarts=0");
    }
    if !acpi {
        insert_word(&mut line, "acpi=off");
        if facts.i8042 {
            insert_word(&mut line, &NO_KEYBOARD.join(" "));
        }
    }
    if let Some(root) = root {
        let mode = if root.disk.read_only { "ro" } else { "rw" };
        insert_word(&mut line, &format!("root=/dev/vda {mode}"));
        if let Some(file_system) = root.file_system {
            insert_word(&mut line, &format!("rootfstype={}", file_system.name()));
        }
    }
    if more.is_empty() { line } else { format!("{line} {more}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(read_only: bool, file_system: Option<FileSystem>) -> Root {
        let disk = DiskSpec { path: "root.img".into(), read_only, serial: None };
        Root { disk, file_system, is_reachable: true }
    }

    #[test]
    fn the_command_line_says_what_there_is() {
        let facts = Facts { serial_console: true, i8042: true, ..usual() };
        let line = command_line(&facts, Console::Serial, true, Some(&root(false, None)), "-- ls");
        assert_eq!(line, "reboot=k panic=-1 pci=off quiet loglevel=3 console=ttyS0 root=/dev/vda rw -- ls");
        let erofs = root(true, Some(FileSystem::Erofs));
        let line = command_line(&facts, Console::Virtio, false, Some(&erofs), "");
        assert_eq!(
            line,
            "reboot=k panic=-1 pci=off quiet loglevel=3 console=hvc0 8250.nr_uarts=0 acpi=off i8042.noaux i8042.nomux \
             i8042.nopnp i8042.dumbkbd root=/dev/vda ro rootfstype=erofs"
        );
    }

    #[test]
    fn a_root_is_reachable_where_all_of_it_is_built_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        let mut image = vec![0; 4096];
        image[..4].copy_from_slice(b"hsqs");
        std::fs::write(&path, image).unwrap();
        let disk = DiskSpec { path, read_only: false, serial: None };
        let with = Root::new(&disk, &Facts { squashfs: true, ..usual() });
        assert!(with.is_reachable && with.disk.read_only);
        assert!(!Root::new(&disk, &usual()).is_reachable);
        assert!(!Root::new(&disk, &Facts { squashfs: true, ..Facts::default() }).is_reachable);
    }
}
