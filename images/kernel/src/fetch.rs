//! Takes the distribution's own kernel out of its package.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vmm_images_archive::deb::{DebError, Kind, Package};
use vmm_images_archive::packages::{PackageError, PackageManager};

use crate::image::{HEAD_BYTES, Image, NotAKernel};
use crate::initramfs::all_modules;
use crate::modules::{ModuleError, ModuleTree, module_name};
use crate::store::{Origin, Record, Store, StoreError, StoredKernel, check_name};

/// The package fetched unless another is named: it depends on the newest kernel made for virtual machines.
pub const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";

/// What kernel packages are called.
const IMAGE_PREFIX: &str = "linux-image-";

/// What to fetch.
#[derive(Clone, Debug, Default)]
pub struct FetchOptions {
    /// A package file that is here already.
    pub from: Option<PathBuf>,
    /// The package's name in place of [`DEFAULT_PACKAGE`].
    pub package: Option<String>,
    /// The kernel's name in the store; its release by default.
    pub name: Option<String>,
    /// Whether the package manager may update its lists (this process is root's).
    pub root: bool,
}

/// How far a fetch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The package manager downloads the package of this name.
    Download(String),
    /// Files are taken out of the package.
    Unpack,
}

/// Why no kernel was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The package manager.
    #[error("cannot fetch a kernel package")]
    Package(#[from] PackageError),
    /// The package file.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// A package of something else.
    #[error("{} holds no kernel (/boot/vmlinuz-*)", path.display())]
    NoKernel {
        /// The package file.
        path: PathBuf,
    },
    /// A kernel for other machines, or a damaged one.
    #[error("the kernel in {} cannot be booted", path.display())]
    NotAKernel {
        /// The package file.
        path: PathBuf,
        /// Why.
        source: NotAKernel,
    },
    /// Its modules.
    #[error("cannot make out the kernel's modules")]
    Modules(#[from] ModuleError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system.
    #[error("cannot write to {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Package(PackageError::NoManager) => Some(
                "give a kernel package that you downloaded yourself: `vmm kernel fetch --from FILE.deb`"
                    .to_owned(),
            ),
            Self::Package(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::NoKernel { .. } => {
                Some(format!("kernels are in packages called {IMAGE_PREFIX}VERSION-cloud-amd64 and the like"))
            }
            Self::Deb(_) | Self::NotAKernel { .. } | Self::Modules(_) | Self::Io { .. } => None,
        }
    }
}

/// Fetches a kernel into `store`.
pub fn fetch(
    store: &Store,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<StoredKernel, FetchError> {
    if let Some(name) = &options.name {
        check_name(name)?;
    }
    let staging = store.stage()?;
    // The package is of no use once it is unpacked.
    let downloads =
        tempfile::tempdir().map_err(|source| FetchError::Io { path: std::env::temp_dir(), source })?;
    let package_file = match &options.from {
        Some(path) => path.clone(),
        None => download(options, downloads.path(), progress)?,
    };
    progress(Progress::Unpack);
    let package = Package::open(&package_file)?;
    let mut control = package.control()?;

    let everything = staging.path().join("all-modules");
    let release = unpack(&package, staging.path(), &everything)?
        .ok_or_else(|| FetchError::NoKernel { path: package_file.clone() })?;
    check_image(&staging.path().join("vmlinuz"), &package_file)?;
    keep_needed(&everything, &staging.modules())?;

    let origin = Origin::Fetched {
        package: control.remove("Package").unwrap_or_default(),
        version: control.remove("Version").unwrap_or_default(),
    };
    let record = Record::new(release.clone(), origin, "vmlinuz");
    Ok(store.install(staging, options.name.as_deref().unwrap_or(&release), &record)?)
}

fn download(
    options: &FetchOptions,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, FetchError> {
    let manager = PackageManager::find(options.root)?;
    let asked = options.package.as_deref().unwrap_or(DEFAULT_PACKAGE);
    manager.ensure_known(asked)?;
    // The package that always names the newest kernel is empty itself.
    let newest = manager.dependencies(asked)?.into_iter().find(|name| name.starts_with(IMAGE_PREFIX));
    let package = newest.unwrap_or_else(|| asked.to_owned());
    progress(Progress::Download(package.clone()));
    Ok(manager.download(&package, directory)?)
}

/// Takes the kernel, its configuration and its modules out of the package; returns the kernel's release.
fn unpack(package: &Package, directory: &Path, modules: &Path) -> Result<Option<String>, FetchError> {
    let mut release = None;
    package.visit(|mut member| {
        if member.kind != Kind::File {
            return Ok(());
        }
        let path = member.path.strip_prefix("usr").unwrap_or(&member.path).to_owned();
        let target = if let Some(version) = name_after(&path, "boot/vmlinuz-") {
            release = Some(version);
            directory.join("vmlinuz")
        } else if name_after(&path, "boot/config-").is_some() {
            directory.join("config")
        } else if let Some(below) = below_release(&path) {
            if module_name(&below).is_none() && below != Path::new("modules.builtin") {
                return Ok(());
            }
            modules.join(below)
        } else {
            return Ok(());
        };
        // Only regular files are ever made below the fresh directory, so that no path leads out of it.
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        io::copy(&mut member, &mut File::create(&target)?)?;
        Ok(())
    })?;
    Ok(release)
}

/// The rest of a path that starts with `prefix`, if it names a file right there.
fn name_after(path: &Path, prefix: &str) -> Option<String> {
    let rest = path.to_str()?.strip_prefix(prefix)?;
    (!rest.is_empty() && !rest.contains('/')).then(|| rest.to_owned())
}

/// The part of `lib/modules/RELEASE/…` after the release.
fn below_release(path: &Path) -> Option<PathBuf> {
    let mut components = path.strip_prefix("lib/modules").ok()?.components();
    components.next()?;
    let below = components.as_path();
    (!below.as_os_str().is_empty()).then(|| below.to_owned())
}

fn check_image(image: &Path, package: &Path) -> Result<(), FetchError> {
    use std::io::Read;
    let io_error = |source| FetchError::Io { path: image.to_owned(), source };
    let file = File::open(image).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(io_error)?;
    Image::parse(&head, length)
        .map(|_| ())
        .map_err(|source| FetchError::NotAKernel { path: package.to_owned(), source })
}

/// Moves the modules that a guest may need, and theirs, from `all` to `kept`, and removes the rest.
fn keep_needed(all: &Path, kept: &Path) -> Result<(), FetchError> {
    if !all.exists() {
        return Ok(());
    }
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| FetchError::Io { path, source }
    };
    let tree = ModuleTree::scan(all)?;
    let mut files: Vec<PathBuf> =
        tree.in_load_order(&all_modules())?.into_iter().map(|module| module.path).collect();
    if all.join("modules.builtin").exists() {
        files.push(PathBuf::from("modules.builtin"));
    }
    fs::create_dir_all(kept).map_err(io_error(kept))?;
    for file in files {
        let target = kept.join(&file);
        let parent = target.parent().unwrap_or(kept);
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        fs::rename(all.join(&file), &target).map_err(io_error(&target))?;
    }
    fs::remove_dir_all(all).map_err(io_error(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::{bzimage, elf, gzip};
    use crate::modules::tests::module;

    /// A package with the given files.
    fn deb(directory: &Path, files: &[(&str, Vec<u8>)]) -> PathBuf {
        let tar = |files: &[(&str, Vec<u8>)]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (path, content) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                builder.append_data(&mut header, path, content.as_slice()).unwrap();
            }
            builder.into_inner().unwrap()
        };
        let control = b"Package: linux-image-6.12.1-cloud-amd64\nVersion: 6.12.1-1\n".to_vec();
        let mut archive = b"!<arch>\n".to_vec();
        for (name, content) in [
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar", tar(&[("control", control)])),
            ("data.tar", tar(files)),
        ] {
            archive.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", content.len()).bytes(),
            );
            archive.extend(content);
        }
        let path = directory.join("package.deb");
        fs::write(&path, archive).unwrap();
        path
    }

    fn fetch_from(directory: &Path, files: &[(&str, Vec<u8>)]) -> Result<StoredKernel, FetchError> {
        let options = FetchOptions { from: Some(deb(directory, files)), ..FetchOptions::default() };
        fetch(&Store::new(directory.join("kernels")), &options, &mut |_| {})
    }

    #[test]
    fn a_package_becomes_a_kernel_with_the_modules_that_matter() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = fetch_from(
            directory.path(),
            &[
                ("boot/vmlinuz-6.12.1-cloud-amd64", bzimage(&gzip(&elf(b"", true)))),
                ("boot/config-6.12.1-cloud-amd64", b"CONFIG_X=y\n".to_vec()),
                ("usr/lib/modules/6.12.1-cloud-amd64/kernel/virtio_blk.ko", module(&["depends=virtio"])),
                ("usr/lib/modules/6.12.1-cloud-amd64/kernel/virtio.ko", module(&["depends="])),
                ("usr/lib/modules/6.12.1-cloud-amd64/kernel/gpu.ko", module(&["depends="])),
                ("usr/share/doc/readme", b"text".to_vec()),
            ],
        )
        .unwrap();
        assert_eq!(kernel.name, "6.12.1-cloud-amd64");
        let Origin::Fetched { version, .. } = &kernel.record.origin else { panic!("built") };
        assert_eq!(version, "6.12.1-1");
        let modules = ModuleTree::scan(&kernel.modules().unwrap()).unwrap();
        assert!(modules.has("virtio_blk") && modules.has("virtio") && !modules.has("gpu"));
        assert!(!kernel.directory.join("all-modules").exists());
    }

    #[test]
    fn packages_of_other_things_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let error = fetch_from(directory.path(), &[("usr/bin/tool", b"x".to_vec())]).unwrap_err();
        assert!(matches!(error, FetchError::NoKernel { .. }));
        let error = fetch_from(directory.path(), &[("boot/vmlinuz-1", b"x".to_vec())]).unwrap_err();
        assert!(matches!(error, FetchError::NotAKernel { .. }));
        assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 0);
    }
}
