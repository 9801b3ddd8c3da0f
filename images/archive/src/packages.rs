//! Packages from wherever this system gets its own: its package manager knows mirrors, keys and proxies, so
//! nothing here does.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Why a package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// This system has no package manager that is spoken here.
    #[error("this system has no apt: packages can be fetched on Debian, Ubuntu and their kin only")]
    NoManager,
    /// The lists of packages are missing or do not name it.
    #[error("no package {name} is known to this system's package manager")]
    Unknown {
        /// The package.
        name: String,
    },
    /// Installing takes root.
    #[error("missing packages: {}", names.join(" "))]
    NotRoot {
        /// What would have to be installed.
        names: Vec<String>,
    },
    /// A tool could not be started.
    #[error("cannot run {tool}")]
    Start {
        /// The program.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tool failed.
    #[error("{tool} {action} failed: {message}")]
    Failed {
        /// The program.
        tool: &'static str,
        /// What it was asked to do.
        action: String,
        /// The end of what it printed.
        message: String,
    },
    /// A directory of ours.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PackageError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("run `apt-get update` as root and try again".to_owned()),
            Self::NotRoot { names } => Some(format!(
                "install them: sudo apt-get install --no-install-recommends {}",
                names.join(" ")
            )),
            Self::Failed { .. } => Some("check that `apt-get update` works on this system".to_owned()),
            Self::NoManager | Self::Start { .. } | Self::Directory { .. } => None,
        }
    }
}

/// The system's package manager (apt).
#[derive(Debug)]
pub struct PackageManager {
    root: bool,
}

impl PackageManager {
    /// Finds it. `root` says whether this process may install packages.
    pub fn find(root: bool) -> Result<Self, PackageError> {
        match Command::new("apt-get").arg("--version").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => Ok(Self { root }),
            _ => Err(PackageError::NoManager),
        }
    }

    /// The version that would be installed, if the package is known.
    pub fn candidate(&self, name: &str) -> Result<Option<String>, PackageError> {
        let output = run("apt-cache", ["policy", name])?;
        Ok(field(&output, "Candidate:").filter(|version| version != "(none)"))
    }

    /// The names of the packages that `name` depends on, in the order given there.
    pub fn dependencies(&self, name: &str) -> Result<Vec<String>, PackageError> {
        let arguments = ["depends", "--important", "--no-recommends", name];
        let output = run("apt-cache", arguments).map_err(|error| unknown(error, name))?;
        Ok(output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends:"))
            .map(|name| name.trim().to_owned())
            .collect())
    }

    /// Downloads the package's file into `directory`; its path is returned.
    ///
    /// Where this system has never fetched its lists of packages, root fetches them first.
    pub fn download(&self, name: &str, directory: &Path) -> Result<PathBuf, PackageError> {
        self.ensure_known(name)?;
        let inside = |source| PackageError::Directory { path: directory.to_owned(), source };
        let fresh = tempfile::tempdir_in(directory).map_err(inside)?;
        // As root, apt would drop to a user of its own who cannot write here.
        let mut command = command("apt-get");
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "download", name]).current_dir(fresh.path());
        finish("apt-get", &format!("download {name}"), command)?;
        let file = std::fs::read_dir(fresh.path())
            .map_err(inside)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension() == Some(OsStr::new("deb")))
            .ok_or_else(|| PackageError::Unknown { name: name.to_owned() })?;
        let target = directory.join(file.file_name().unwrap_or(OsStr::new(name)));
        std::fs::rename(&file, &target).map_err(inside)?;
        Ok(target)
    }

    /// The version that is installed, if one is.
    pub fn installed_version(&self, name: &str) -> Option<String> {
        let output = run("dpkg-query", ["-W", "-f", "${Version} ${Status}", name]).ok()?;
        let (version, status) = output.split_once(' ')?;
        status.ends_with(" installed").then(|| version.to_owned())
    }

    /// Those of `names` that are not installed.
    pub fn missing(&self, names: &[&str]) -> Vec<String> {
        let missing = names.iter().filter(|name| self.installed_version(name).is_none());
        missing.map(|name| (*name).to_owned()).collect()
    }

    /// Installs those of `names` that are missing; without root, names them instead.
    pub fn ensure_installed(&self, names: &[&str]) -> Result<(), PackageError> {
        let missing = self.missing(names);
        if missing.is_empty() {
            return Ok(());
        }
        if !self.root {
            return Err(PackageError::NotRoot { names: missing });
        }
        for name in &missing {
            self.ensure_known(name)?;
        }
        let mut command = command("apt-get");
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
        finish("apt-get", &format!("install {}", missing.join(" ")), command)?;
        Ok(())
    }

    /// Installs `names` from a suite that is not the system's usual one, such as its backports.
    pub fn install_from(&self, suite: &str, names: &[&str]) -> Result<(), PackageError> {
        if !self.root {
            return Err(PackageError::NotRoot {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
            });
        }
        let mut command = command("apt-get");
        command.args(["install", "-y", "-qq", "--no-install-recommends", "-t", suite]).args(names);
        finish("apt-get", &format!("install {} from {suite}", names.join(" ")), command)?;
        Ok(())
    }

    /// Fetches the lists of packages.
    pub fn update(&self) -> Result<(), PackageError> {
        let mut command = command("apt-get");
        command.args(["update", "-qq"]);
        finish("apt-get", "update", command)?;
        Ok(())
    }

    /// Makes sure that the package can be had; root fetches the lists of packages if it is not in them.
    pub fn ensure_known(&self, name: &str) -> Result<(), PackageError> {
        if self.candidate(name)?.is_some() {
            return Ok(());
        }
        if self.root {
            self.update()?;
            if self.candidate(name)?.is_some() {
                return Ok(());
            }
        }
        Err(PackageError::Unknown { name: name.to_owned() })
    }
}

/// apt-cache fails for a package that it does not know.
fn unknown(error: PackageError, name: &str) -> PackageError {
    match error {
        PackageError::Failed { .. } => PackageError::Unknown { name: name.to_owned() },
        other => other,
    }
}

/// A command that asks nothing and speaks the language parsed here.
fn command(tool: &'static str) -> Command {
    let mut command = Command::new(tool);
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

fn run<const N: usize>(tool: &'static str, arguments: [&str; N]) -> Result<String, PackageError> {
    let mut command = command(tool);
    command.args(arguments);
    finish(tool, &arguments.join(" "), command)
}

fn finish(tool: &'static str, action: &str, mut command: Command) -> Result<String, PackageError> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|source| PackageError::Start { tool, source })?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    // apt's own prefix goes; the last error is the telling one.
    let message =
        stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
    let message = message.trim_start_matches("E: ").to_owned();
    Err(PackageError::Failed { tool, action: action.to_owned(), message })
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_a_policy() {
        let policy = "tool:\n  Installed: (none)\n  Candidate: 1:2.3-4\n  Version table:\n";
        assert_eq!(field(policy, "Candidate:").as_deref(), Some("1:2.3-4"));
        assert_eq!(field(policy, "Absent:"), None);
    }

    #[test]
    fn a_failure_keeps_the_last_line_without_its_prefix() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'E: first' >&2; echo 'E: the reason' >&2; exit 1"]);
        let error = finish("sh", "test", command).unwrap_err();
        assert_eq!(error.to_string(), "sh test failed: the reason");
        let error = finish("sh", "test", Command::new("/nonexistent/tool")).unwrap_err();
        assert!(matches!(error, PackageError::Start { .. }));
    }
}
