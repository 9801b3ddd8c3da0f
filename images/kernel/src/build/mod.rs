//! Builds the tuned guest kernel from its source.
//!
//! The source is the distribution's own source package, fetched by the package manager, or a tree or tarball
//! that the user names. A build directory is kept until the build succeeds, so that one that was interrupted
//! goes on where it stopped; a finished kernel is found again by the hash of all that went into it.

mod configure;
mod make;
mod source;
mod tools;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use vmm_images_archive::deb::DebError;
use vmm_images_archive::packages::PackageError;

use crate::hash::hash;
use crate::store::{Origin, Record, Store, StoreError, StoredKernel, check_name};

/// The configuration built unless the user gives another.
pub const GUEST_CONFIG: &str = include_str!("../../config/guest.config");

/// The package that the source comes from unless the user names another source.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// A source tree or tarball in place of the distribution's package.
    pub source: Option<PathBuf>,
    /// A configuration fragment in place of [`GUEST_CONFIG`].
    pub config: Option<PathBuf>,
    /// The kernel's name in the store; its release by default.
    pub name: Option<String>,
    /// How many compilers run at a time.
    pub jobs: usize,
    /// Build even if the same kernel is there.
    pub force: bool,
    /// Whether missing tools may be installed (this process is root's).
    pub root: bool,
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Looking for tools, installing what is missing.
    Tools,
    /// Fetching the source package.
    Source,
    /// Unpacking the source.
    Unpack {
        /// Bytes of the tarball read.
        done: u64,
        /// Bytes of the tarball.
        total: u64,
    },
    /// Making the configuration.
    Configure,
    /// Compiling.
    Compile {
        /// Objects made.
        done: u64,
        /// An estimate of all objects.
        total: u64,
    },
    /// Moving the result to the store.
    Install,
}

/// Why a kernel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Tools are missing and cannot be installed from here.
    #[error("building a kernel needs tools that are not here: {}", missing.join(", "))]
    Tools {
        /// What is missing.
        missing: Vec<String>,
        /// Why it was not installed.
        source: PackageError,
    },
    /// The source package.
    #[error("cannot get the kernel source")]
    Package(#[source] PackageError),
    /// The source package's content.
    #[error("cannot unpack the kernel source package")]
    Deb(#[from] DebError),
    /// What the user named as source is none.
    #[error("{} is no Linux source: {reason}", path.display())]
    NotSource {
        /// The tree or tarball.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The kernel's own configuration tool dropped requests.
    #[error("this source does not take the configuration as it is; lost: {}", lost.join(", "))]
    Config {
        /// The options that are not as asked for.
        lost: Vec<String>,
    },
    /// Compiling failed.
    #[error("the kernel's build failed: {message}")]
    Compile {
        /// The first error, or the last line.
        message: String,
        /// All of what was printed.
        log: PathBuf,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system, or a tool that cannot be started.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BuildError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tools { source, .. } | Self::Package(source) => source.hint(),
            Self::Config { .. } => {
                Some("the configuration is for Linux 6.12; give another with --config".to_owned())
            }
            Self::Compile { log, .. } => {
                Some(format!("all of its output is in {}; the next build goes on from here", log.display()))
            }
            Self::Store(error) => error.hint(),
            Self::Deb(_) | Self::NotSource { .. } | Self::Io { .. } => None,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Builds a kernel into `store`, or finds it there. Work is done below `cache`; `progress` is told of it.
pub fn build(
    store: &Store,
    cache: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<StoredKernel, BuildError> {
    if let Some(name) = &options.name {
        check_name(name)?;
    }
    let fragment = match &options.config {
        Some(path) => fs::read_to_string(path).map_err(BuildError::io("read", path))?,
        None => GUEST_CONFIG.to_owned(),
    };
    progress(Progress::Tools);
    tools::ensure(options.root)?;
    progress(Progress::Source);
    let source = source::Source::find(options.source.as_deref(), cache, options.root)?;
    // All that decides what comes out.
    let compiler = tools::compiler_version()?;
    let recipe = hash(&[source.identity.as_bytes(), fragment.as_bytes(), compiler.as_bytes()]);

    if let Some(kernel) = find_built(store, &recipe, options.name.as_deref())?.filter(|_| !options.force) {
        return Ok(kernel);
    }

    let work = cache.join("build").join(&recipe);
    fs::create_dir_all(&work).map_err(BuildError::io("create", &work))?;
    // A second build of the same kernel waits here, and then finds it in the store.
    let lock = lock(&work)?;
    if let Some(kernel) = find_built(store, &recipe, options.name.as_deref())?.filter(|_| !options.force) {
        return Ok(kernel);
    }
    let tree = source.unpack(&work.join("source"), progress)?;
    let output = work.join("output");
    progress(Progress::Configure);
    configure::configure(&tree, &output, &fragment)?;
    make::compile(&tree, &output, options.jobs, progress)?;

    progress(Progress::Install);
    let kernel = install(store, &output, &source, recipe, options.name.as_deref())?;
    fs::remove_dir_all(&work).map_err(BuildError::io("remove", &work))?;
    drop(lock);
    Ok(kernel)
}

/// A kernel of the same recipe (and name, if one is asked for).
fn find_built(store: &Store, recipe: &str, name: Option<&str>) -> Result<Option<StoredKernel>, StoreError> {
    let same = |kernel: &StoredKernel| {
        matches!(&kernel.record.origin, Origin::Built { recipe: built, .. } if built == recipe)
            && name.is_none_or(|name| kernel.name == name)
    };
    Ok(store.list()?.into_iter().find(same))
}

fn lock(work: &Path) -> Result<Flock<File>, BuildError> {
    let path = work.join("lock");
    let file = File::create(&path).map_err(BuildError::io("create", &path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| BuildError::Io {
        action: "lock",
        path,
        source: errno.into(),
    })
}

fn install(
    store: &Store,
    output: &Path,
    source: &source::Source,
    recipe: String,
    name: Option<&str>,
) -> Result<StoredKernel, BuildError> {
    let release_file = output.join("include/config/kernel.release");
    let release = fs::read_to_string(&release_file).map_err(BuildError::io("read", &release_file))?;
    let release = release.trim().to_owned();
    let staging = store.stage()?;
    make::strip(&output.join("vmlinux"), &staging.path().join("vmlinux"))?;
    for (from, to) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
        let from = output.join(from);
        fs::copy(&from, staging.path().join(to)).map_err(BuildError::io("copy", &from))?;
    }
    let origin = Origin::Built { source: source.description.clone(), recipe };
    let record = Record::new(release.clone(), origin, "vmlinux");
    Ok(store.install(staging, name.unwrap_or(&release), &record)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_kernel_is_found_by_recipe_and_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let origin = Origin::Built { source: "linux 1".to_owned(), recipe: "aa".to_owned() };
        store
            .install(store.stage().unwrap(), "one", &Record::new("1".to_owned(), origin, "vmlinux"))
            .unwrap();
        assert!(find_built(&store, "aa", None).unwrap().is_some());
        assert!(find_built(&store, "aa", Some("one")).unwrap().is_some());
        assert!(find_built(&store, "aa", Some("two")).unwrap().is_none());
        assert!(find_built(&store, "bb", None).unwrap().is_none());
    }
}
