//! What the emulated machine consists of: the emulator, a kernel with its modules, and a small real Debian system.
//!
//! It is made once and kept in the user's cache, in a directory named by the recipe.

pub(crate) mod initramfs;
mod qemu;
mod root;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use etcetera::BaseStrategy;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use vmm_images_archive::packages::PackageManager;

/// See the module.
pub(crate) struct Image {
    /// The emulator.
    pub(crate) qemu: PathBuf,
    /// A stock Debian kernel.
    pub(crate) kernel: PathBuf,
    /// Its modules.
    pub(crate) modules: PathBuf,
    /// The root file system (ext4).
    pub(crate) root: PathBuf,
}

/// Finds everything, and makes or installs what is missing; `say` hears what takes long.
pub(crate) fn ensure(say: &dyn Fn(&str)) -> anyhow::Result<Image> {
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // Others wait until it is there.
    let lock = File::create(cache.join("lock")).context("cannot make a lock in the cache")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock the cache")?;
    let qemu = qemu::ensure(say)?;
    let directory = cache.join(format!("host-{}", root::recipe()));
    if !directory.exists() {
        say("making the emulated host's Debian system (once)");
        remove_leftovers(&cache);
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&cache)
            .context("cannot make a directory in the cache")?;
        root::make(&manager()?, unfinished.path())?;
        fs::rename(unfinished.path(), &directory).context("cannot keep what was made")?;
    }
    Ok(Image {
        qemu,
        kernel: directory.join(root::KERNEL),
        modules: directory.join(root::MODULES),
        root: directory.join(root::ROOT),
    })
}

/// What a directory is called until it is complete.
const UNFINISHED: &str = "unfinished-";

/// Where the harness keeps what takes long to make.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let base = etcetera::choose_base_strategy().context("cannot find a place for the cache: set HOME")?;
    Ok(base.cache_dir().join("vmm-harness"))
}

/// Removes what an interrupted run or an older recipe left. The lock is held: nobody else is making anything, and
/// a running machine has its files open.
fn remove_leftovers(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED) || name.starts_with("host-") {
            // What stays only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The package manager of a system that has one, for a user who may use it.
fn manager() -> anyhow::Result<PackageManager> {
    Ok(PackageManager::find(geteuid().is_root())?)
}

/// Finds a program where the shell would.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0))
}

/// A value of `/etc/os-release`.
fn os_release(key: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot find out which system this is")?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match value {
        Some(value) => Ok(value.trim_matches('"').to_owned()),
        None => bail!("/etc/os-release has no {key}"),
    }
}

/// Debian's sources on this machine: the file that names the mirror it uses.
fn debian_sources() -> anyhow::Result<PathBuf> {
    let candidates = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let found = candidates.iter().map(Path::new).find(|path| path.exists());
    found.map(Path::to_owned).context("cannot find this machine's Debian mirror: it has no debian.sources")
}
