//! What runs inside a host and does there what the harness asks for.
//!
//! In the emulated host it is started by [`init`]; on the local host it is a thread of the harness itself, so that
//! both do the same.

mod command;
mod files;
pub mod init;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::protocol::{self, Frame, HOST, Message};
use command::Running;

/// How often the agent says that it still runs.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// The way out, for all threads.
#[derive(Clone)]
struct Outlet(Arc<Mutex<File>>);

impl Outlet {
    fn send(&self, command: u32, frame: &Frame) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::write(&mut *stream, command, frame)
    }

    fn say(&self, command: u32, message: Message) -> io::Result<()> {
        self.send(command, &Frame::Message(message))
    }
}

/// Serves `stream` until its end, then kills what still runs.
///
/// The calling thread starts all commands, so that they die with it.
pub(crate) fn serve(stream: File, mailbox: File) -> io::Result<()> {
    let outlet = Outlet(Arc::new(Mutex::new(stream.try_clone()?)));
    outlet.say(HOST, Message::Ready)?;
    let (stop, stopped) = mpsc::channel::<()>();
    let heart = {
        let outlet = outlet.clone();
        thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(HEARTBEAT) {
                if outlet.say(HOST, Message::Heartbeat).is_err() {
                    break;
                }
            }
        })
    };
    let mut commands = HashMap::new();
    let result = converse(BufReader::new(stream), &outlet, &mailbox, &mut commands);
    for command in commands.into_values() {
        command.end();
    }
    drop(stop);
    // A thread that panicked has nothing to say here.
    let _ = heart.join();
    result
}

fn converse(
    mut stream: BufReader<File>,
    outlet: &Outlet,
    mailbox: &File,
    commands: &mut HashMap<u32, Running>,
) -> io::Result<()> {
    while let Some((id, frame)) = protocol::read(&mut stream)? {
        commands.retain(|_, command| !command.has_ended());
        match frame {
            Frame::Message(Message::Exec(exec)) => match Running::start(id, &exec, outlet) {
                Ok(command) => {
                    commands.insert(id, command);
                }
                Err(error) => {
                    let program = exec.argv.first().map_or("nothing", String::as_str);
                    outlet.say(id, Message::Failed(format!("cannot run {program}: {error}")))?;
                }
            },
            Frame::Message(Message::Signal(signal)) => {
                if let Some(command) = commands.get(&id) {
                    command.signal(signal);
                }
            }
            Frame::Message(Message::Resize(size)) => {
                if let Some(command) = commands.get(&id) {
                    command.resize(size);
                }
            }
            Frame::Stdin(data) => {
                if let Some(command) = commands.get_mut(&id) {
                    command.feed(data);
                }
            }
            Frame::Message(request) => outlet.say(id, files::answer(request, mailbox))?,
            Frame::Stdout(_) | Frame::Stderr(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "only commands write output"));
            }
        }
    }
    Ok(())
}
