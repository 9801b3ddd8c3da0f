//! Child processes that do not outlive this one, not even if it is killed.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, PoisonError};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

use crate::protocol::Exit;

/// Makes the child die when the thread that starts it ends, which that thread therefore may not do before.
pub(crate) fn die_with_thread(command: &mut Command) {
    let parent = getpid();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before that call.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(prepare) };
}

/// A child that leads a process group of its own.
pub(crate) struct Leader {
    pid: Pid,
    /// None once its exit status was taken, after which its number may be another's.
    child: Mutex<Option<Child>>,
}

impl Leader {
    pub(crate) fn new(child: Child) -> Self {
        Self { pid: Pid::from_raw(child.id() as i32), child: Mutex::new(Some(child)) }
    }

    /// Signals the group, unless the leader has ended.
    pub(crate) fn signal(&self, signal: i32) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_some()
            && let Ok(signal) = Signal::try_from(signal)
        {
            // That the group has just ended is no failure.
            let _ = killpg(self.pid, signal);
        }
    }

    /// Waits for the leader's end. Only one thread may.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        // Not reaped yet: until the lock is taken, the number must stay the child's.
        while let Err(errno) = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            if errno != nix::errno::Errno::EINTR {
                return Err(errno.into());
            }
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = child.take().ok_or_else(|| io::Error::other("it was waited for before"))?;
        child.wait()
    }
}

/// The exit status in terms of the protocol.
pub(crate) fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(255),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_signalled_until_its_leader_has_ended() {
        let mut command = Command::new("sleep");
        command.arg("1000").process_group(0);
        die_with_thread(&mut command);
        let leader = Leader::new(command.spawn().unwrap());
        leader.signal(Signal::SIGTERM as i32);
        assert_eq!(exit(leader.wait().unwrap()), Exit::Signal(15));
        leader.signal(Signal::SIGTERM as i32);
    }
}
