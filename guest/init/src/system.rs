//! The init of a running system: sets it up, runs one command, reaps, and powers off.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::boot_stage;
use crate::cmdline::CommandLine;
use crate::console;
use crate::loopback;
use crate::mounts;
use crate::power_button::PowerButton;
use crate::report::complain;
use crate::shutdown::{self, Ending};

/// Run instead of a shell when the kernel command line has no command.
const STARTUP_SCRIPT: &str = "/etc/vmm/rc";

const SHELL: &str = "/bin/sh";

/// For programs that the kernel's environment leaves without one.
const DEFAULT_ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TERM", "linux"),
    ("SHELL", SHELL),
];

/// Signals that PID 1 takes, besides `SIGCHLD`: those that ask for an ending, and those it passes on.
const TAKEN: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGPWR,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Why the system could not run.
#[derive(Debug)]
pub(crate) enum SystemError {
    Signals(Errno),
    Start { program: String, cause: io::Error },
    Wait(Errno),
    End(Errno),
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signals(errno) => write!(f, "cannot take signals: {}", errno.desc()),
            Self::Start { program, cause } => write!(f, "cannot run {program}: {cause}"),
            Self::Wait(errno) => write!(f, "cannot wait for events: {}", errno.desc()),
            Self::End(errno) => write!(f, "cannot end the system: {}", errno.desc()),
        }
    }
}

/// What PID 1 runs, and whose end is the end of the system.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    /// The words after `--` on the kernel command line: a program and its arguments.
    Command(String, Vec<String>),
    /// The only word there, which is the shell's to take apart.
    Line(String),
    /// [`STARTUP_SCRIPT`].
    Startup,
    /// A login shell on the console.
    Shell,
}

/// Sets the system up, runs its job and ends the machine. Comes back only with an error.
pub(crate) fn run() -> Result<Infallible, SystemError> {
    mounts::mount_early();
    if let Err(error) = console::adopt() {
        complain(&format_args!("cannot open /dev/console: {error}"));
    }
    mounts::mount_late();
    if let Err(error) = console::lead_session() {
        complain(&format_args!("cannot take the console as terminal: {error}"));
    }
    set_host_name();
    if let Err(errno) = loopback::bring_up() {
        complain(&format_args!("cannot bring lo up: {}", errno.desc()));
    }

    let signals = take_signals().map_err(SystemError::Signals)?;
    let ending = supervise(start(&job())?, &signals)?;
    Err(SystemError::End(shutdown::run(ending)))
}

fn job() -> Job {
    let words = match CommandLine::of_kernel() {
        Ok(command_line) => command_line.init_words,
        Err(error) => {
            complain(&format_args!("cannot read the kernel command line: {error}"));
            Vec::new()
        }
    };
    choose_job(&words, Path::new(STARTUP_SCRIPT).exists())
}

fn choose_job(words: &[String], has_startup_script: bool) -> Job {
    match (words, has_startup_script) {
        ([line], _) => Job::Line(line.clone()),
        ([program, arguments @ ..], _) => Job::Command(program.clone(), arguments.to_vec()),
        ([], true) => Job::Startup,
        ([], false) => Job::Shell,
    }
}

/// Starts the job on the console.
fn start(job: &Job) -> Result<Pid, SystemError> {
    let mut command = match job {
        Job::Command(program, arguments) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Job::Line(line) => {
            let mut command = Command::new(SHELL);
            command.arg("-c").arg(line);
            command
        }
        Job::Startup => Command::new(STARTUP_SCRIPT),
        Job::Shell => {
            // The dash makes it a login shell, which reads /etc/profile.
            let mut command = Command::new(SHELL);
            command.arg0("-sh");
            command
        }
    };
    for (name, value) in DEFAULT_ENVIRONMENT {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    command.env("HOME", home).current_dir(home).env_remove(boot_stage::marked_name());
    console::attach(&mut command);
    match command.spawn() {
        Ok(child) => Ok(Pid::from_raw(child.id() as libc::pid_t)),
        Err(cause) => {
            let program = command.get_program().to_string_lossy().into_owned();
            Err(SystemError::Start { program, cause })
        }
    }
}

/// Reaps, passes signals on and watches the power button until `child` ends or an ending is asked for.
fn supervise(child: Pid, signals: &SignalFd) -> Result<Ending, SystemError> {
    let mut button = PowerButton::new().map_err(SystemError::Wait)?;
    loop {
        let mut sources: Vec<_> = std::iter::once(signals.as_fd())
            .chain(button.sources())
            .map(|source| PollFd::new(source, PollFlags::POLLIN))
            .collect();
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SystemError::Wait(errno)),
        }
        let input = sources[1..].iter().any(|source| source.any() != Some(false));
        if input && button.pressed() {
            return Ok(Ending::PowerOff);
        }
        while let Some(pending) = signals.read_signal().map_err(SystemError::Wait)? {
            match Signal::try_from(pending.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => {
                    if let Some(status) = reap(child) {
                        report(status);
                        return Ok(Ending::PowerOff);
                    }
                }
                Ok(signal) => match Ending::asked_by(signal) {
                    Some(ending) => return Ok(ending),
                    // The command leads its group. It may be gone already.
                    None => drop(killpg(child, signal)),
                },
                Err(_) => {}
            }
        }
    }
}

/// Reaps everything that has ended. Returns how `child` did, if it did.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(status) if status.pid() == Some(child) => ended = Some(status),
            Ok(_) => {}
        }
    }
}

/// Says on the console how the command ended, unless it was well.
fn report(status: WaitStatus) {
    match status {
        WaitStatus::Exited(_, code) if code != 0 => {
            complain(&format_args!("the command ended with status {code}"));
        }
        WaitStatus::Signaled(_, signal, _) => complain(&format_args!("the command was killed by {signal}")),
        _ => {}
    }
}

/// Blocks the signals that PID 1 takes, and returns where to read them.
fn take_signals() -> nix::Result<SignalFd> {
    let taken: SigSet = TAKEN.into_iter().chain([Signal::SIGCHLD]).collect();
    taken.thread_block()?;
    // Ctrl-Alt-Del is to be a signal, not the kernel's own sudden restart.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn set_host_name() {
    let Ok(text) = std::fs::read_to_string("/etc/hostname") else { return };
    let name = text.trim();
    if !name.is_empty()
        && let Err(errno) = sethostname(OsString::from(name))
    {
        complain(&format_args!("cannot set the host name {name}: {}", errno.desc()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_script_before_the_shell() {
        let words = ["sh".to_owned(), "-c".to_owned(), "echo a  b; uname -a".to_owned()];
        let command = Job::Command("sh".to_owned(), words[1..].to_vec());
        assert_eq!(choose_job(&words, true), command, "words stay what they are");
        assert_eq!(choose_job(&words[2..], true), Job::Line("echo a  b; uname -a".to_owned()));
        assert_eq!(choose_job(&[], true), Job::Startup);
        assert_eq!(choose_job(&[], false), Job::Shell);
    }

    #[test]
    fn every_signal_taken_has_an_effect() {
        let passed_on = [Signal::SIGHUP, Signal::SIGQUIT];
        for signal in TAKEN {
            assert_eq!(Ending::asked_by(signal).is_none(), passed_on.contains(&signal), "{signal}");
        }
    }
}
