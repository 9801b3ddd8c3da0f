//! Makes the kernel's configuration from a fragment and checks that all of it took effect.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::BuildError;
use super::make::last_line;

/// Configures `tree` into `output`: what `fragment` says, nothing else that can be off.
pub(super) fn configure(tree: &Path, output: &Path, fragment: &str) -> Result<(), BuildError> {
    fs::create_dir_all(output).map_err(BuildError::io("create", output))?;
    let fragment_file = output.join("fragment.config");
    fs::write(&fragment_file, fragment).map_err(BuildError::io("write", &fragment_file))?;
    let log = output.join("configure.log");
    let result = Command::new("make")
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", output.display()))
        .arg(format!("KCONFIG_ALLCONFIG={}", fragment_file.display()))
        .args(["ARCH=x86_64", "allnoconfig"])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(BuildError::io("run", Path::new("make")))?;
    if !result.status.success() {
        let text = [result.stdout, result.stderr].concat();
        fs::write(&log, &text).map_err(BuildError::io("write", &log))?;
        return Err(BuildError::Compile { message: last_line(&String::from_utf8_lossy(&text)), log });
    }
    let config_file = output.join(".config");
    let config = fs::read_to_string(&config_file).map_err(BuildError::io("read", &config_file))?;
    match lost(fragment, &config) {
        lost if lost.is_empty() => Ok(()),
        lost => Err(BuildError::Config { lost }),
    }
}

/// The lines of `fragment` that `config` does not fulfil. Options that are off may simply be absent.
fn lost(fragment: &str, config: &str) -> Vec<String> {
    let set: std::collections::BTreeMap<&str, &str> = config.lines().filter_map(assignment).collect();
    let mut lost = Vec::new();
    for line in fragment.lines() {
        if let Some((name, value)) = assignment(line) {
            if set.get(name) != Some(&value) {
                lost.push(format!("{name}={value}"));
            }
        } else if let Some(name) = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"))
            && set.contains_key(name)
        {
            lost.push(format!("{name}=n"));
        }
    }
    lost
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    line.trim_end().split_once('=').filter(|(name, _)| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kconfig_dropped_is_named() {
        let fragment = "# Why = because\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_N=64\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_N=512\nCONFIG_OTHER=y\n";
        assert_eq!(lost(fragment, config), ["CONFIG_B=y", "CONFIG_N=64", "CONFIG_C=n"]);
        assert!(lost(fragment, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=64\n").is_empty());
    }

    #[test]
    fn the_guest_configuration_names_each_option_once() {
        let mut seen = std::collections::BTreeSet::new();
        for line in crate::build::GUEST_CONFIG.lines() {
            let off = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
            if let Some(name) = assignment(line).map(|(name, _)| name).or(off) {
                assert!(seen.insert(name), "{name} is there twice");
            }
        }
        assert!(seen.len() > 200);
    }
}
