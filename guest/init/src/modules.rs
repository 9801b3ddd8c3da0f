//! Kernel modules of an initramfs, listed in load order.
//!
//! The list holds one module a line: the file's path, absolute or relative to `/lib/modules`, then, if need be,
//! the module's parameters. Blank lines and lines that start with `#` are skipped.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::report::complain;

const MODULE_DIRECTORY: &str = "/lib/modules";

/// One line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    file: PathBuf,
    parameters: &'a str,
}

/// Loads every module that `list` names. What cannot be loaded is said on the console and skipped: whether the
/// system can do without shows when the root is mounted.
pub(crate) fn load_all(list: &Path) -> io::Result<()> {
    let text = std::fs::read_to_string(list)?;
    for module in parse(&text) {
        if let Err(error) = module.load() {
            complain(&format_args!("cannot load {}: {error}", module.file.display()));
        }
    }
    Ok(())
}

fn parse(list: &str) -> impl Iterator<Item = Module<'_>> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (file, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Module { file: Path::new(MODULE_DIRECTORY).join(file), parameters: parameters.trim() }
    })
}

impl Module<'_> {
    fn load(&self) -> Result<(), LoadError> {
        let file = File::open(&self.file).map_err(LoadError::Open)?;
        let parameters = CString::new(self.parameters).map_err(|_| LoadError::Load(Errno::EINVAL))?;
        match finit_module(file, &parameters, ModuleInitFlags::empty()) {
            // Loaded or built in already; or its hardware is not there.
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
            Err(errno) => Err(LoadError::Load(errno)),
        }
    }
}

enum LoadError {
    Open(io::Error),
    Load(Errno),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Load(errno) => f.write_str(errno.desc()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_modules_in_order() {
        let list =
            "# virtio\nkernel/drivers/virtio.ko\n\n  /extra/virtio_blk.ko  queue_depth=64 num_queues=1 \n";
        let modules: Vec<_> = parse(list).collect();
        assert_eq!(
            modules,
            [
                Module { file: "/lib/modules/kernel/drivers/virtio.ko".into(), parameters: "" },
                Module { file: "/extra/virtio_blk.ko".into(), parameters: "queue_depth=64 num_queues=1" },
            ]
        );
    }

    #[test]
    fn a_module_that_is_not_there_is_an_error() {
        let module = Module { file: "/nonexistent/a.ko".into(), parameters: "" };
        assert!(matches!(module.load(), Err(LoadError::Open(_))));
    }
}
