//! The emulator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{debian_sources, find_program, manager, os_release};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Older ones hang now and then: with both processors in a jump label that the kernel had patched back.
const LEAST_MAJOR: u32 = 9;
/// Debian 12 has a newer one among its backports, which this makes known.
const BACKPORTS: &str = "/etc/apt/sources.list.d/vmm-backports.list";

/// Finds one that is new enough, or installs it.
pub(super) fn ensure(say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    if let Some(path) = find_program(PROGRAM).filter(|path| is_new_enough(path)) {
        return Ok(path);
    }
    say("installing QEMU");
    let manager = manager()?;
    manager.ensure_known(PACKAGE)?;
    if manager.candidate(PACKAGE)?.is_some_and(|version| is_new(&version)) {
        manager.ensure_installed(&[PACKAGE])?;
    } else {
        let suite = format!("{}-backports", os_release("VERSION_CODENAME")?);
        if !Path::new(BACKPORTS).exists() {
            let sources = fs::read_to_string(debian_sources()?).context("cannot read the Debian sources")?;
            let mirror = mirror(&sources).context("cannot find the mirror in the Debian sources")?;
            let line = format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n"
            );
            fs::write(BACKPORTS, line)
                .with_context(|| format!("cannot write {BACKPORTS}: run this as root once"))?;
            manager.update()?;
        }
        manager.install_from(&suite, &[PACKAGE])?;
    }
    match find_program(PROGRAM).filter(|path| is_new_enough(path)) {
        Some(path) => Ok(path),
        None => {
            bail!("{PACKAGE} was installed, but {PROGRAM} of version {LEAST_MAJOR} or later is not there")
        }
    }
}

fn is_new_enough(path: &Path) -> bool {
    let output = Command::new(path).arg("--version").output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_once("version ").is_some_and(|(_, version)| is_new(version))
    })
}

/// Whether a version, maybe with the package's epoch, is one that works.
fn is_new(version: &str) -> bool {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().is_ok_and(|major: u32| major >= LEAST_MAJOR)
}

/// The first mirror in a file of sources, of either format.
fn mirror(sources: &str) -> Option<&str> {
    sources.lines().find_map(|line| {
        let line = line.trim();
        if let Some(uris) = line.strip_prefix("URIs:") {
            return uris.split_whitespace().next();
        }
        let mut words = line.strip_prefix("deb ")?.split_whitespace();
        words.find(|word| word.contains("://") || word.starts_with("mirror+"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_first_number() {
        for (version, new) in
            [("10.0.2 (Debian)", true), ("1:9.2.0-1", true), ("1:7.2+dfsg", false), ("?", false)]
        {
            assert_eq!(is_new(version), new, "{version}");
        }
    }

    #[test]
    fn mirrors_are_found_in_both_formats() {
        let deb822 = "Types: deb\n# http://other.example\nURIs: http://mirror.example/debian\nSuites: x\n";
        assert_eq!(mirror(deb822), Some("http://mirror.example/debian"));
        let line = "# a comment\ndeb [arch=amd64] http://mirror.example/debian x main\n";
        assert_eq!(mirror(line), Some("http://mirror.example/debian"));
        assert_eq!(mirror("nothing"), None);
    }
}
