//! What the kernel's build needs on this machine (Documentation/process/changes.rst).

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use vmm_images_archive::packages::PackageManager;

use super::BuildError;

/// A program or header, and the Debian package that has it.
const NEEDED: [(&str, &str); 12] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("lz4", "lz4"),
    ("/usr/include/stdlib.h", "libc6-dev"),
    // objtool reads and writes the objects it checks.
    ("/usr/include/gelf.h", "libelf-dev"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// Checks for everything, and installs what is missing where that is possible.
pub(super) fn ensure(root: bool) -> Result<(), BuildError> {
    let missing: Vec<_> = NEEDED.iter().filter(|(what, _)| !present(what)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    PackageManager::find(root).and_then(|manager| manager.ensure_installed(&packages)).map_err(|source| {
        BuildError::Tools { missing: missing.iter().map(|(what, _)| (*what).to_owned()).collect(), source }
    })
}

/// The compiler's version: another compiler makes another kernel.
pub(super) fn compiler_version() -> Result<String, BuildError> {
    let output = Command::new("gcc")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(BuildError::io("run", Path::new("gcc")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Whether a file exists, or a program of that name is in the path.
pub(super) fn present(what: &str) -> bool {
    if what.starts_with('/') {
        return Path::new(what).exists();
    }
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(what).is_file()))
}
