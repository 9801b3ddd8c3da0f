//! The terminal of the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setpgid, setsid, tcsetpgrp};

/// Lists the consoles in use; the last is the one behind `/dev/console`.
const ACTIVE_CONSOLES: &str = "/sys/class/tty/console/active";

/// Gives this process `/dev/console` for its standard streams. Without one they stay as they are: the kernel
/// hands a process 1 nothing when it finds no console.
pub(crate) fn adopt() -> io::Result<()> {
    let console = open(Path::new("/dev/console"))?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// Makes this process the leader of a session whose terminal is the console. PID 1 leads it, not the command that it
/// runs: when a leader ends, the terminal hangs up, and what it has not sent yet is lost.
pub(crate) fn lead_session() -> io::Result<()> {
    // Refused only to a process that leads one already.
    let _ = setsid();
    // /dev/console itself cannot be a controlling terminal; the device behind it can.
    match active() {
        Some(path) => take_as_controlling_terminal(&open(&path)?),
        None => Ok(()),
    }
}

/// Lets `command` run on the console, in the terminal's foreground, so that job control and Ctrl-C work, and with no
/// signal blocked. Without a console it gets `/dev/null` to read from.
pub(crate) fn attach(command: &mut Command) {
    let streams = active().and_then(|path| {
        let terminal = open(&path).ok()?;
        Some((terminal.try_clone().ok()?, terminal.try_clone().ok()?, terminal))
    });
    match streams {
        Some((input, output, errors)) => command.stdin(input).stdout(output).stderr(errors),
        None => command.stdin(Stdio::null()),
    };
    // SAFETY: between fork and exec the closure makes a few system calls and touches no memory but its own.
    unsafe {
        command.pre_exec(move || {
            // A process in the background is stopped when it takes the foreground, unless it blocks this.
            SigSet::from(Signal::SIGTTOU).thread_block()?;
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // Without a terminal there is no foreground.
            let _ = tcsetpgrp(io::stdin(), Pid::this());
            // What PID 1 blocks to read it elsewhere would stay blocked in all that run under it.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
}

fn take_as_controlling_terminal(terminal: &File) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, no memory.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } {
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

fn open(path: &Path) -> io::Result<File> {
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
