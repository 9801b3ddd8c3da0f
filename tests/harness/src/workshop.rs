//! The project's own programs, built for use in a host.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use etcetera::BaseStrategy;
use serde::Deserialize;
use vmm_images_kernel::store::Store;

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

/// Puts what `vmm boot` runs unless told otherwise into the host, if there is such a kernel in `home`.
pub fn put_default_kernel(host: &Host, home: &Path) -> anyhow::Result<()> {
    let store = Store::new(home.join("kernels"));
    let Some(name) = store.default_name() else { return Ok(()) };
    let kernel = store.get(Some(&name))?;
    host.put(&kernel.directory, &Path::new("/var/lib/vmm/kernels").join(&name))?;
    let argv = ["vmm", "kernel", "default", &name].map(str::to_owned).to_vec();
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

/// Where `vmm` keeps what lasts, as it finds it itself.
pub fn home() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("VMM_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/vmm".into());
    }
    let base = etcetera::choose_base_strategy().context("cannot find a place for data: set VMM_HOME")?;
    Ok(base.data_dir().join("vmm"))
}
