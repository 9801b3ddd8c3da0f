//! A command that runs in the host.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;

use super::Outlet;
use crate::child::{Leader, die_with_thread, exit};
use crate::protocol::{Exec, Frame, Message, WindowSize};
use crate::pty;

/// How much output goes into one frame.
const OUTPUT_BYTES: usize = 32 << 10;

/// What ends the input of a program on a terminal (^D).
const END_OF_INPUT: u8 = 4;

/// A command that was started.
pub(super) struct Running {
    leader: Arc<Leader>,
    ended: Arc<AtomicBool>,
    input: Option<Sender<Vec<u8>>>,
    terminal: Option<File>,
    waiter: JoinHandle<()>,
}

impl Running {
    /// Starts a command; its output and its end go to `outlet` by themselves.
    pub(super) fn start(id: u32, exec: &Exec, outlet: &Outlet) -> io::Result<Self> {
        let (program, arguments) = exec.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).envs(exec.env.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &exec.cwd {
            fs::create_dir_all(directory)?;
            command.current_dir(directory);
        }
        let terminal = if let Some(size) = exec.terminal {
            Some(pty::attach(&mut command, size)?)
        } else {
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        };
        die_with_thread(&mut command);
        let mut child = command.spawn()?;
        // It holds the terminal's near side, whose last user is to be the command.
        drop(command);

        let mut pumps = Vec::new();
        let input = if let Some(terminal) = &terminal {
            pumps.push(pump(id, terminal.try_clone()?, outlet, Frame::Stdout));
            Some(feeder(terminal.try_clone()?, true))
        } else {
            let (stdout, stderr) = (child.stdout.take().map(owned), child.stderr.take().map(owned));
            pumps.extend(stdout.map(|out| pump(id, out, outlet, Frame::Stdout)));
            pumps.extend(stderr.map(|err| pump(id, err, outlet, Frame::Stderr)));
            child.stdin.take().map(|stdin| feeder(owned(stdin), false))
        };
        let leader = Arc::new(Leader::new(child));
        let ended = Arc::new(AtomicBool::new(false));
        let waiter = wait(id, &leader, &ended, pumps, outlet);
        Ok(Self { leader, ended, input, terminal, waiter })
    }

    /// Whether its end was reported.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Signals its process group.
    pub(super) fn signal(&self, signal: i32) {
        self.leader.signal(signal);
    }

    /// Tells it its terminal's new size.
    pub(super) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // A terminal that is gone needs no size.
            let _ = pty::resize(terminal, size);
        }
    }

    /// Gives it input; none at all is the end of it.
    pub(super) fn feed(&mut self, data: Vec<u8>) {
        if data.is_empty() {
            self.input = None;
        } else if let Some(input) = &self.input {
            // A command need not read what it is given.
            let _ = input.send(data);
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) fn end(self) {
        self.leader.signal(Signal::SIGKILL as i32);
        // A thread that panicked has nothing to say here.
        let _ = self.waiter.join();
    }
}

/// A pipe's end as a file.
fn owned(pipe: impl Into<OwnedFd>) -> File {
    pipe.into().into()
}

/// Sends what comes out of `source` to the harness.
fn pump(id: u32, mut source: File, outlet: &Outlet, frame: fn(Vec<u8>) -> Frame) -> JoinHandle<()> {
    let outlet = outlet.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; OUTPUT_BYTES];
        loop {
            match source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that nobody uses any more ends with EIO.
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    if outlet.send(id, &frame(buffer[..length].to_vec())).is_err() {
                        break;
                    }
                }
            }
        }
    })
}

/// Writes what it is sent to `target`, which it closes at the end.
fn feeder(mut target: File, is_terminal: bool) -> Sender<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        while let Ok(data) = receiver.recv() {
            // The command is free to end before it has read everything.
            if target.write_all(&data).is_err() {
                return;
            }
        }
        if is_terminal {
            let _ = target.write_all(&[END_OF_INPUT]);
        }
    });
    sender
}

/// Reports the command's end after the last of its output.
fn wait(
    id: u32,
    leader: &Arc<Leader>,
    ended: &Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
    outlet: &Outlet,
) -> JoinHandle<()> {
    let (leader, ended, outlet) = (Arc::clone(leader), Arc::clone(ended), outlet.clone());
    thread::spawn(move || {
        let message = match leader.wait() {
            Ok(status) => Message::Exited(exit(status)),
            Err(error) => Message::Failed(format!("cannot wait for the command: {error}")),
        };
        for pump in pumps {
            // A thread that panicked has nothing to say here.
            let _ = pump.join();
        }
        ended.store(true, Ordering::Release);
        // If nobody listens any more, nobody asks.
        let _ = outlet.say(id, message);
    })
}

/// Variables of the host's own environment, for [`super::init`] to set.
pub(super) fn usual_environment() -> [(&'static str, OsString); 3] {
    [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("HOME", "/root".into()),
        ("LANG", "C.UTF-8".into()),
    ]
}
