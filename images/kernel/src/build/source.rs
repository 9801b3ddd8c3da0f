//! Where the kernel's source comes from, and its unpacking.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use vmm_images_archive::compression;
use vmm_images_archive::deb::{Kind, Package};
use vmm_images_archive::packages::PackageManager;

use super::{BuildError, Progress, SOURCE_PACKAGE};

/// A source tree takes a gigabyte and a half.
const TREE_BYTES_MAX: u64 = 8 << 30;
/// Tell of progress this often.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A kernel's source.
#[derive(Debug)]
pub(super) struct Source {
    /// What is known of its content, for the recipe.
    pub(super) identity: String,
    /// What it is, for people.
    pub(super) description: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Tree(PathBuf),
    Tarball(PathBuf),
}

impl Source {
    /// The source that the user named, or that of the distribution.
    pub(super) fn find(named: Option<&Path>, cache: &Path, root: bool) -> Result<Self, BuildError> {
        let Some(path) = named else { return Self::from_package(cache, root) };
        let path = fs::canonicalize(path).map_err(BuildError::io("read", path))?;
        let metadata = fs::metadata(&path).map_err(BuildError::io("read", &path))?;
        let description = path.display().to_string();
        if metadata.is_dir() {
            check_tree(&path)?;
            // A tree may change at any time, and make knows best what that means: never found again by recipe.
            let identity = format!("tree {description} {:?}", newest_change(&path));
            return Ok(Self { identity, description, form: Form::Tree(path) });
        }
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let identity = format!("tarball {description} {} {modified:?}", metadata.len());
        Ok(Self { identity, description, form: Form::Tarball(path) })
    }

    /// The tarball in the distribution's source package: installed, or downloaded and taken out.
    fn from_package(cache: &Path, root: bool) -> Result<Self, BuildError> {
        let manager = PackageManager::find(root).map_err(BuildError::Package)?;
        let tarball_name = format!("{SOURCE_PACKAGE}.tar.xz");
        let downloads = cache.join("sources");
        fs::create_dir_all(&downloads).map_err(BuildError::io("create", &downloads))?;

        let installed = Path::new("/usr/src").join(&tarball_name);
        if let Some(version) = manager.installed_version(SOURCE_PACKAGE).filter(|_| installed.exists()) {
            return Ok(Self::packaged(version, installed));
        }
        let candidate = manager.candidate(SOURCE_PACKAGE).map_err(BuildError::Package)?;
        if let Some(version) = candidate {
            let kept = downloads.join(format!("{SOURCE_PACKAGE}_{}.tar.xz", escape(&version)));
            if kept.exists() {
                return Ok(Self::packaged(version, kept));
            }
        }
        let package_file = manager.download(SOURCE_PACKAGE, &downloads).map_err(BuildError::Package)?;
        let package = Package::open(&package_file)?;
        let version = package.control()?.remove("Version").unwrap_or_default();
        let kept = downloads.join(format!("{SOURCE_PACKAGE}_{}.tar.xz", escape(&version)));
        let mut found = false;
        package.visit(|mut member| {
            if member.kind == Kind::File && member.path.file_name() == Some(tarball_name.as_ref()) {
                let mut file = tempfile::NamedTempFile::new_in(&downloads)?;
                io::copy(&mut member, &mut file)?;
                file.flush()?;
                file.persist(&kept)?;
                found = true;
            }
            Ok(())
        })?;
        fs::remove_file(&package_file).map_err(BuildError::io("remove", &package_file))?;
        if found {
            Ok(Self::packaged(version, kept))
        } else {
            Err(BuildError::NotSource { path: package_file, reason: format!("it has no {tarball_name}") })
        }
    }

    fn packaged(version: String, tarball: PathBuf) -> Self {
        let description = format!("{SOURCE_PACKAGE} {version}");
        Self { identity: description.clone(), description, form: Form::Tarball(tarball) }
    }

    /// The source tree: the user's own, or what the tarball holds, unpacked to `target` unless it is there.
    pub(super) fn unpack(
        &self,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, BuildError> {
        let tarball = match &self.form {
            Form::Tree(path) => return Ok(path.clone()),
            Form::Tarball(path) => path,
        };
        if target.exists() {
            return Ok(target.to_owned());
        }
        let parent = target.parent().unwrap_or(Path::new("."));
        let fresh = tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(parent)
            .map_err(BuildError::io("write to", parent))?;
        unpack_tarball(tarball, fresh.path(), progress).map_err(BuildError::io("unpack", tarball))?;
        let tree = top_directory(fresh.path()).ok_or_else(|| BuildError::NotSource {
            path: tarball.clone(),
            reason: "it does not hold exactly one directory".to_owned(),
        })?;
        check_tree(&tree).map_err(|_| BuildError::NotSource {
            path: tarball.clone(),
            reason: "it holds no kernel".to_owned(),
        })?;
        fs::rename(&tree, target).map_err(BuildError::io("create", target))?;
        Ok(target.to_owned())
    }
}

fn unpack_tarball(tarball: &Path, target: &Path, progress: &mut dyn FnMut(Progress)) -> io::Result<()> {
    let file = File::open(tarball)?;
    let total = file.metadata()?.len();
    let counted = Counted { inner: file, done: 0, told: 0, total, progress };
    let stream = compression::open(BufReader::with_capacity(1 << 16, counted), TREE_BYTES_MAX)?;
    // Refuses members that would land outside of `target`.
    let mut archive = tar::Archive::new(stream);
    archive.set_preserve_mtime(true);
    archive.unpack(target)
}

/// The only thing in `directory`, if that is a directory.
fn top_directory(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    let only = entries.next()?.path();
    (only.is_dir() && entries.next().is_none()).then_some(only)
}

fn check_tree(path: &Path) -> Result<(), BuildError> {
    for file in ["Makefile", "Kconfig", "arch/x86/Kconfig"] {
        if !path.join(file).is_file() {
            return Err(BuildError::NotSource { path: path.to_owned(), reason: format!("it has no {file}") });
        }
    }
    Ok(())
}

/// When the top of a tree last changed; good enough to notice that another version was checked out.
fn newest_change(tree: &Path) -> Option<std::time::SystemTime> {
    let entries = fs::read_dir(tree).ok()?.flatten();
    entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

/// A version as part of a file's name.
fn escape(version: &str) -> String {
    version.chars().map(|c| if c.is_ascii_alphanumeric() || "._+~-".contains(c) { c } else { '%' }).collect()
}

/// A reader that tells how far it is.
struct Counted<'a, R> {
    inner: R,
    done: u64,
    told: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        if self.done >= self.told + PROGRESS_BYTES {
            self.told = self.done;
            (self.progress)(Progress::Unpack { done: self.done, total: self.total });
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tarball(directory: &Path, files: &[&str]) -> PathBuf {
        let path = directory.join("linux.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for file in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(0o644);
            builder.append_data(&mut header, file, &b"x\n"[..]).unwrap();
        }
        builder.finish().unwrap();
        path
    }

    #[test]
    fn a_tarball_is_unpacked_once_and_without_its_top() {
        let directory = tempfile::tempdir().unwrap();
        let path = tarball(directory.path(), &["linux/Makefile", "linux/Kconfig", "linux/arch/x86/Kconfig"]);
        let source = Source::find(Some(&path), directory.path(), false).unwrap();
        let target = directory.path().join("tree");
        assert_eq!(source.unpack(&target, &mut |_| {}).unwrap(), target);
        assert!(target.join("arch/x86/Kconfig").is_file());
        fs::remove_file(&path).unwrap();
        assert_eq!(source.unpack(&target, &mut |_| {}).unwrap(), target);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no half-unpacked tree is left");
    }

    #[test]
    fn other_trees_and_tarballs_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = Source::find(Some(directory.path()), directory.path(), false).unwrap_err();
        assert!(error.to_string().ends_with("is no Linux source: it has no Makefile"), "{error}");
        for files in [&["one/a", "two/b"][..], &["one/a"], &[]] {
            let path = tarball(directory.path(), files);
            let source = Source::find(Some(&path), directory.path(), false).unwrap();
            assert!(source.unpack(&directory.path().join("tree"), &mut |_| {}).is_err(), "{files:?}");
        }
        assert!(!directory.path().join("tree").exists());
    }
}
