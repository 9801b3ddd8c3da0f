//! Where vmm keeps what lasts: `$VMM_HOME`.

use std::env;
use std::path::PathBuf;

use anyhow::Context;
use etcetera::BaseStrategy;
use nix::unistd::Uid;

/// `$VMM_HOME`, or `/var/lib/vmm` for root, or `$XDG_DATA_HOME/vmm`.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("VMM_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    if Uid::effective().is_root() {
        return Ok("/var/lib/vmm".into());
    }
    let base = etcetera::choose_base_strategy().context("cannot find a place for data: set VMM_HOME")?;
    Ok(base.data_dir().join("vmm"))
}
