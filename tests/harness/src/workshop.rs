//! The project's own programs, built for use in a host.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::host::Host;
use crate::protocol::Exec;

/// Programs that a host needs, optimized.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `vmm` command.
    pub vmm: PathBuf,
    /// What runs in the emulated host as its first program.
    pub agent: PathBuf,
}

impl Programs {
    /// Runs `vmm` on this machine, with its data in `home` or where it has them by itself; returns what it prints.
    pub fn ask(&self, home: Option<&Path>, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.vmm)
            .args(arguments)
            .envs(home.map(|home| ("VMM_HOME", home)))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run vmm")?;
        if !output.status.success() {
            bail!("`vmm {}` failed", arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

/// The part of cargo's messages that is of use here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds them, or finds that nothing has changed.
pub fn build() -> anyhow::Result<Programs> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(["build", "--release", "--quiet", "--locked", "--message-format=json-render-diagnostics"])
        .args(["--package=vmm-cli", "--package=vmm-harness", "--bin=vmm", "--bin=host-agent"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("building vmm failed: {}", output.status);
    }
    let built: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .collect();
    let find = |name: &str| {
        let found = built.iter().find(|path| path.file_name().is_some_and(|file| file == name));
        found.cloned().with_context(|| format!("cargo built no {name}"))
    };
    Ok(Programs { vmm: find("vmm")?, agent: find("host-agent")? })
}

/// Puts `vmm` into the host, onto its search path.
pub fn put_vmm(host: &Host, programs: &Programs) -> anyhow::Result<()> {
    host.put(&programs.vmm, Path::new("/usr/local/bin/vmm"))
}

/// A kernel in the list of `vmm kernel ls --format json`.
#[derive(Deserialize)]
struct Kernel {
    name: String,
    default: bool,
    image: PathBuf,
}

/// Puts what `vmm boot` runs unless told otherwise into the host, if this machine has such a kernel.
pub fn put_default_kernel(host: &Host, programs: &Programs) -> anyhow::Result<()> {
    let list = programs.ask(None, &["kernel", "ls", "--format", "json"])?;
    let kernels: Vec<Kernel> = serde_json::from_str(&list).context("cannot read vmm's list of kernels")?;
    let Some(kernel) = kernels.into_iter().find(|kernel| kernel.default) else { return Ok(()) };
    let directory = kernel.image.parent().context("a kernel lies in a directory")?;
    host.put(directory, &Path::new("/var/lib/vmm/kernels").join(&kernel.name))?;
    let argv = ["vmm", "kernel", "default", &kernel.name].map(str::to_owned).to_vec();
    let chosen = host.run(Exec { argv, ..Exec::default() }, Duration::from_secs(30))?;
    if !chosen.exit.success() {
        bail!("cannot choose the kernel in the host: {}", chosen.stderr.trim_end());
    }
    Ok(())
}

/// Where the harness keeps what takes long to make.
pub fn cache() -> anyhow::Result<PathBuf> {
    crate::image::cache()
}
