//! The terminal of the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Lists the consoles in use; the last is the one behind `/dev/console`.
const ACTIVE_CONSOLES: &str = "/sys/class/tty/console/active";

/// Gives this process `/dev/console` for its standard streams. Without one they stay as they are: the kernel
/// hands a process 1 nothing when it finds no console.
pub(crate) fn adopt() -> io::Result<()> {
    let console = open(&PathBuf::from("/dev/console"))?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// Lets `command` run in a session of its own, with the console as its controlling terminal, so that job control
/// and Ctrl-C work. Without a console it gets `/dev/null`.
pub(crate) fn attach(command: &mut Command) {
    // /dev/console itself cannot be a controlling terminal; the device behind it can.
    let Some(terminal) = active().and_then(|path| open(&path).ok()) else {
        command.stdin(Stdio::null());
        return;
    };
    let (Ok(output), Ok(errors)) = (terminal.try_clone(), terminal.try_clone()) else { return };
    command.stdin(terminal).stdout(output).stderr(errors);
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory but its own.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            take_as_controlling_terminal(io::stdin().as_raw_fd())
        });
    }
}

fn take_as_controlling_terminal(terminal: RawFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, no memory.
    match unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn active() -> Option<PathBuf> {
    last_console(&std::fs::read_to_string(ACTIVE_CONSOLES).ok()?)
}

fn last_console(active: &str) -> Option<PathBuf> {
    active.split_whitespace().next_back().map(|name| PathBuf::from("/dev").join(name))
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_console_is_the_active_one() {
        assert_eq!(last_console("tty0 ttyS0\n"), Some("/dev/ttyS0".into()));
        assert_eq!(last_console("hvc0\n"), Some("/dev/hvc0".into()));
        assert_eq!(last_console("\n"), None);
    }
}
