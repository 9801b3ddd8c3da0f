//! The way from an initramfs to the root file system.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::boot_stage;
use crate::cmdline::CommandLine;
use crate::console;
use crate::modules;
use crate::mounts;
use crate::report::complain;
use crate::root_device::{self, RootError};
use crate::switch_root::{self, SwitchError};

/// Where the new root is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// What the kernel looks for when `init=` is not given, in its order.
const DEFAULT_INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// Why the real init was not reached.
#[derive(Debug)]
pub(crate) enum InitramfsError {
    Modules { list: PathBuf, cause: io::Error },
    CommandLine(io::Error),
    Root(RootError),
    NewRoot(io::Error),
    Switch(SwitchError),
    Init { program: String, cause: io::Error },
    NoInit { device: PathBuf },
}

impl fmt::Display for InitramfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Modules { list, cause } => write!(f, "cannot read {}: {cause}", list.display()),
            Self::CommandLine(cause) => write!(f, "cannot read the kernel command line: {cause}"),
            Self::Root(cause) => cause.fmt(f),
            Self::NewRoot(cause) => write!(f, "cannot make {NEW_ROOT}: {cause}"),
            Self::Switch(cause) => cause.fmt(f),
            Self::Init { program, cause } => write!(f, "cannot run init={program}: {cause}"),
            Self::NoInit { device } => {
                write!(f, "no init on {} (tried {})", device.display(), DEFAULT_INITS.join(", "))
            }
        }
    }
}

/// Loads the modules in `list`, mounts the root and becomes its init. Comes back only with an error.
pub(crate) fn run(list: &Path) -> Result<Infallible, InitramfsError> {
    mounts::mount_early();
    if let Err(error) = console::adopt() {
        complain(&format_args!("cannot open /dev/console: {error}"));
    }
    modules::load_all(list).map_err(|cause| InitramfsError::Modules { list: list.to_owned(), cause })?;
    let command_line = CommandLine::of_kernel().map_err(InitramfsError::CommandLine)?;
    let device = root_device::wait(&command_line).map_err(InitramfsError::Root)?;
    match std::fs::create_dir(NEW_ROOT) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(InitramfsError::NewRoot(error));
        }
        _ => {}
    }
    root_device::mount_root(&device, Path::new(NEW_ROOT), &command_line).map_err(InitramfsError::Root)?;
    switch_root::switch(Path::new(NEW_ROOT)).map_err(InitramfsError::Switch)?;
    exec_init(command_line.init, device)
}

/// Becomes the real init, with the arguments and the environment that the kernel gave.
fn exec_init(init: Option<String>, device: PathBuf) -> Result<Infallible, InitramfsError> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let exec = |program: &str| {
        let (marked, value) = boot_stage::marked_variable();
        Command::new(program).args(&arguments).env(marked, value).exec()
    };
    if let Some(program) = init {
        let cause = exec(&program);
        return Err(InitramfsError::Init { program, cause });
    }
    for program in DEFAULT_INITS {
        let error = exec(program);
        if error.kind() != io::ErrorKind::NotFound {
            complain(&format_args!("cannot run {program}: {error}"));
        }
    }
    Err(InitramfsError::NoInit { device })
}
