//! The orderly end of a guest.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::termios::tcdrain;
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sync};

use crate::report::complain;

/// How long programs may take to end after they were asked to, and after they were killed.
const GRACE: Duration = Duration::from_secs(5);
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long the last words may take to reach the terminal.
const CONSOLE_GRACE: Duration = Duration::from_secs(2);

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    PowerOff,
    Reboot,
}

impl Ending {
    /// The signal by which PID 1 is asked for this ending. These are busybox's, whose tools so work with this
    /// init too.
    pub(crate) fn signal(self) -> Signal {
        match self {
            Self::PowerOff => Signal::SIGUSR2,
            Self::Reboot => Signal::SIGTERM,
        }
    }

    /// What to ask the kernel for. Without ACPI a kernel can only halt, which would leave the machine running; a
    /// restart ends a microVM just as well.
    fn mode(self) -> RebootMode {
        match self {
            Self::PowerOff if Path::new("/sys/firmware/acpi").exists() => RebootMode::RB_POWER_OFF,
            Self::PowerOff | Self::Reboot => RebootMode::RB_AUTOBOOT,
        }
    }

    /// The ending that `signal` asks PID 1 for, if any: besides [`Self::signal`], Ctrl-Alt-Del (`SIGINT`),
    /// halting (`SIGUSR1`) and a failing power supply (`SIGPWR`).
    pub(crate) fn asked_by(signal: Signal) -> Option<Self> {
        match signal {
            Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGPWR => Some(Self::PowerOff),
            Signal::SIGTERM | Signal::SIGINT => Some(Self::Reboot),
            _ => None,
        }
    }
}

/// Ends all programs, puts the disks in order and ends the machine. `SIGCHLD` has to be blocked. Comes back only
/// if the kernel refuses.
pub(crate) fn run(ending: Ending) -> Errno {
    // Asked while /sys is still mounted.
    let mode = ending.mode();
    end_programs();
    sync();
    unmount_all();
    drain_console();
    reboot_as(mode)
}

/// Writes out the disks' data and ends the machine at once. Comes back only if the kernel refuses.
pub(crate) fn sync_and_reboot(ending: Ending) -> Errno {
    sync();
    reboot_as(ending.mode())
}

fn reboot_as(mode: RebootMode) -> Errno {
    let Err(errno) = reboot(mode);
    errno
}

/// Waits, though not for long, until the terminal has what was written to it: a machine that ends takes along what a
/// slow line has not sent. A broken line never sends it, so that the wait is left to a child.
pub(crate) fn drain_console() {
    let _ = child_signal().thread_block();
    // SAFETY: this process has one thread, and the child makes two system calls.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let _ = tcdrain(std::io::stdout());
            // SAFETY: ends the child at once, without running what the parent has registered for its own end.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { .. }) => drop(wait_for_all(CONSOLE_GRACE)),
        Err(_) => {}
    }
}

fn end_programs() {
    // Shells at a terminal ignore SIGTERM; they go when they lose it. What is stopped has to run to end.
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCONT] {
        signal_all(signal);
    }
    if wait_for_all(GRACE) {
        return;
    }
    signal_all(Signal::SIGKILL);
    if !wait_for_all(KILL_GRACE) {
        complain(&"some programs cannot be killed");
    }
}

/// Sends `signal` to every process but this one.
fn signal_all(signal: Signal) {
    // Fails only if there is no other process.
    let _ = kill(Pid::from_raw(-1), signal);
}

/// Reaps until no process is left; every orphan is ours. Returns whether that happened within `limit`.
fn wait_for_all(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) | Err(_) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || !wait_for_signal(&child_signal(), left) {
                    return false;
                }
            }
            Ok(_) => {}
        }
    }
}

fn child_signal() -> SigSet {
    [Signal::SIGCHLD].into_iter().collect()
}

/// Waits until one of `signals`, which are blocked, is pending. Returns whether one came within `limit`.
fn wait_for_signal(signals: &SigSet, limit: Duration) -> bool {
    let limit = *TimeSpec::from(limit).as_ref();
    loop {
        // SAFETY: set and time live through the call; the null pointer says that no details are wanted.
        match unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const limit) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return false,
            _ => return true,
        }
    }
}

/// Unmounts what can be unmounted, last mounted first, and makes the rest read-only, so that no file system is
/// left with a journal to replay.
fn unmount_all() {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in disk_mounts(&table).into_iter().rev() {
        if target == "/" || umount2(target.as_str(), MntFlags::empty()).is_err() {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let none: Option<&str> = None;
            if let Err(errno) = mount(none, target.as_str(), none, flags, none) {
                complain(&format_args!("cannot make {target} read-only: {}", errno.desc()));
            }
        }
    }
}

/// The targets in a mount table whose source is a device, in the order of the table.
fn disk_mounts(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, target) = (fields.next()?, fields.next()?);
            source.starts_with('/').then(|| unescape(target))
        })
        .collect()
}

/// Undoes the kernel's octal escapes for white space and backslashes in a mount table.
fn unescape(field: &str) -> String {
    const ESCAPES: [(&str, &str); 4] = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    ESCAPES.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_are_unmounted() {
        let table =
            "/dev/root / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/vdb /mnt/my\\040disk ext4 rw 0 0\n";
        assert_eq!(disk_mounts(table), ["/", "/mnt/my disk"]);
    }

    #[test]
    fn an_ending_is_asked_for_by_its_own_signal() {
        for ending in [Ending::PowerOff, Ending::Reboot] {
            assert_eq!(Ending::asked_by(ending.signal()), Some(ending));
        }
        assert_eq!(Ending::asked_by(Signal::SIGHUP), None);
    }

    #[test]
    fn waiting_for_a_signal_has_an_end() {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGWINCH);
        assert!(!wait_for_signal(&signals, Duration::from_millis(1)));
    }
}
