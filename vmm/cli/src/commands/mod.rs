//! One file per command; a new one adds its file and its line here.

mod boot;
mod kernel;
mod rootfs;

use std::process::ExitCode;

use clap::Subcommand;

use crate::home;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Boot(boot::Boot),
    Kernel(kernel::Kernel),
    Rootfs(rootfs::Rootfs),
}

impl Command {
    /// Does it, and says what the process is to exit with.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Boot(command) => return command.run(),
            Self::Kernel(command) => command.run(&home::directory()?)?,
            Self::Rootfs(command) => command.run(&home::directory()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
