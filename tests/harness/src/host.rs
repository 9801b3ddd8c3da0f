//! A host: a machine whose KVM runs Linux.

use std::env;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_machine::kvm::Hypervisor;
use vmm_machine::probe::{self, Verdict};

use crate::agent;
use crate::emulated::Emulated;
use crate::link::{ConsoleLog, Conversation, Link, Talk};
use crate::protocol::{Exec, Exit, Frame, Message, WindowSize};
use crate::transfer::{self, MAILBOX_BYTES};

pub use crate::link::HostError;

/// Chooses the host in place of the probe: `local` or `emulated`.
const CHOICE: &str = "VMM_TEST_HOST";

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine.
    Local,
    /// A machine in QEMU.
    Emulated,
}

impl Place {
    /// Where `VMM_TEST_HOST` says, else here if this machine's KVM can run Linux.
    pub fn choose() -> anyhow::Result<Self> {
        match env::var(CHOICE).as_deref() {
            Ok("local") => Ok(Self::Local),
            Ok("emulated") => Ok(Self::Emulated),
            Ok("") | Err(_) => Ok(if is_capable() { Self::Local } else { Self::Emulated }),
            Ok(other) => bail!("{CHOICE} is {other:?}; it takes \"local\" and \"emulated\""),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Local => "this machine",
            Self::Emulated => "an emulated AMD-V host",
        })
    }
}

fn is_capable() -> bool {
    Hypervisor::open()
        .ok()
        .and_then(|hypervisor| probe::probe(&hypervisor).ok())
        .is_some_and(|verdict| verdict == Verdict::Capable)
}

/// A host that takes commands. It ends when this is dropped, and with this process.
pub struct Host {
    link: Arc<Link>,
    place: Place,
    directory: PathBuf,
    _machine: Option<Emulated>,
    _scratch: Option<tempfile::TempDir>,
}

impl Host {
    /// Starts one. `agent` is the program [`agent::init`] for the emulated machine; `say` hears what takes long.
    pub fn start(place: Place, agent: &Path, say: &dyn Fn(&str)) -> anyhow::Result<Self> {
        match place {
            Place::Local => Self::local(),
            Place::Emulated => Self::emulated(agent, say),
        }
    }

    fn local() -> anyhow::Result<Self> {
        let scratch =
            tempfile::Builder::new().prefix("vmm-host-").tempdir().context("cannot make a directory")?;
        let (near, far) = UnixStream::pair().context("cannot make a socket")?;
        let mailbox = mailbox()?;
        let far_mailbox = mailbox.try_clone()?;
        thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // The other side finds out by the closed stream.
            let _ = agent::serve(File::from(std::os::fd::OwnedFd::from(far)), far_mailbox);
        })?;
        let stream = File::from(std::os::fd::OwnedFd::from(near));
        let link = Link::open(stream, mailbox, ConsoleLog::default(), false)?;
        let directory = scratch.path().to_owned();
        Ok(Self { link, place: Place::Local, directory, _machine: None, _scratch: Some(scratch) })
    }

    fn emulated(agent: &Path, say: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let image = crate::image::ensure(say)?;
        let mailbox = mailbox()?;
        let console = ConsoleLog::default();
        let (machine, stream) = Emulated::start(&image, agent, &mailbox, &console)?;
        let link = Link::open(stream, mailbox, console, true).context("the emulated host did not start")?;
        let directory = PathBuf::from("/work");
        link.request(Message::MakeDirectory { path: text(&directory)? })?;
        Ok(Self { link, place: Place::Emulated, directory, _machine: Some(machine), _scratch: None })
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// A directory in the host for whatever belongs to its user.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a command.
    pub fn spawn(&self, exec: Exec) -> Result<Running, HostError> {
        let conversation = self.link.ask(Message::Exec(exec))?;
        Ok(Running { conversation, ended: false })
    }

    /// Runs a command to its end, which has to come within `limit`, and collects what it prints.
    pub fn run(&self, exec: Exec, limit: Duration) -> anyhow::Result<Output> {
        let what = exec.argv.join(" ");
        let mut running = self.spawn(exec)?;
        running.input().close()?;
        running.finish(limit).with_context(|| format!("running `{what}` in the host"))
    }

    /// Copies a file, or a directory with all that is in it, to the path `to` in the host.
    pub fn put(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        self.put_as(from, to, fs::metadata(from))
            .with_context(|| format!("cannot copy {} to {} in the host", from.display(), to.display()))
    }

    fn put_as(&self, from: &Path, to: &Path, metadata: std::io::Result<fs::Metadata>) -> anyhow::Result<()> {
        let kind = metadata?.file_type();
        if kind.is_symlink() {
            let target = text(&fs::read_link(from)?)?;
            self.link.request(Message::MakeLink { path: text(to)?, target })?;
        } else if kind.is_dir() {
            self.link.request(Message::MakeDirectory { path: text(to)? })?;
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                self.put_as(&entry.path(), &to.join(entry.file_name()), entry.path().symlink_metadata())?;
            }
        } else {
            self.put_file(&File::open(from)?, to)?;
        }
        Ok(())
    }

    fn put_file(&self, file: &File, to: &Path) -> anyhow::Result<()> {
        let path = text(to)?;
        let metadata = transfer::metadata(file)?;
        let mailbox = self.link.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Some(0);
        while let Some(from) = next {
            let batch = transfer::batch(file, from)?;
            transfer::fill(&mailbox, file, &batch.pieces)?;
            let (path, pieces) = (path.clone(), batch.pieces);
            self.link.request(Message::Store { path, pieces, first: from == 0, metadata })?;
            next = batch.next;
        }
        Ok(())
    }

    /// Copies a file from the host.
    pub fn get(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        self.get_file(from, to)
            .with_context(|| format!("cannot copy {} from the host to {}", from.display(), to.display()))
    }

    fn get_file(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let path = text(from)?;
        let mailbox = self.link.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = None;
        let mut position = Some(0);
        while let Some(from) = position {
            let answer = self.link.request(Message::Load { path: path.clone(), from })?;
            let Message::Loaded { pieces, metadata, next } = answer else {
                bail!("the agent answered {answer:?}");
            };
            let file = match &mut file {
                Some(file) => file,
                none => none.insert(OpenOptions::new().write(true).create(true).truncate(true).open(to)?),
            };
            transfer::empty(&mailbox, file, &pieces)?;
            transfer::apply(file, &metadata)?;
            position = next;
        }
        Ok(())
    }
}

/// Paths travel as text.
fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn mailbox() -> anyhow::Result<File> {
    let file =
        File::from(memfd_create(c"mailbox", MFdFlags::MFD_CLOEXEC).context("cannot make the mailbox")?);
    file.set_len(MAILBOX_BYTES).context("cannot make the mailbox")?;
    Ok(file)
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended.
    Exited(Exit),
}

/// Everything that a command did.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Output {
    /// Both outputs, for a message.
    pub fn text(&self) -> String {
        format!("{:?}\n--- stdout\n{}\n--- stderr\n{}", self.exit, self.stdout, self.stderr)
    }
}

/// A command in a host; it is killed when this is dropped.
pub struct Running {
    conversation: Conversation,
    ended: bool,
}

impl Running {
    /// What it does next; none if it has done nothing when `deadline` is reached.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, HostError> {
        Ok(match self.conversation.next(deadline)? {
            None => None,
            Some(Frame::Stdout(data)) => Some(Event::Stdout(data)),
            Some(Frame::Stderr(data)) => Some(Event::Stderr(data)),
            Some(Frame::Message(Message::Exited(exit))) => {
                self.ended = true;
                Some(Event::Exited(exit))
            }
            Some(Frame::Message(Message::Failed(why))) => {
                self.ended = true;
                return Err(HostError::Refused(why));
            }
            Some(other) => return Err(HostError::Refused(format!("the agent said {other:?}"))),
        })
    }

    /// Waits for its end, and collects what it prints until then.
    pub fn finish(&mut self, limit: Duration) -> anyhow::Result<Output> {
        let deadline = Instant::now() + limit;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let decode = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        loop {
            match self.next(Some(deadline))? {
                Some(Event::Stdout(data)) => stdout.extend(data),
                Some(Event::Stderr(data)) => stderr.extend(data),
                Some(Event::Exited(exit)) => {
                    return Ok(Output { exit, stdout: decode(&stdout), stderr: decode(&stderr) });
                }
                None => bail!(
                    "not finished after {} s\n--- stdout\n{}\n--- stderr\n{}",
                    limit.as_secs(),
                    decode(&stdout),
                    decode(&stderr)
                ),
            }
        }
    }

    /// The way to it, also for a thread besides the one that waits for its output.
    pub fn input(&self) -> Input {
        Input(self.conversation.talk.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // A host that is gone has killed it.
            let _ = self.input().signal(libc::SIGKILL);
        }
    }
}

/// The near end of a command's input and terminal.
#[derive(Clone)]
pub struct Input(Talk);

impl Input {
    /// Gives it something to read.
    pub fn write(&self, data: &[u8]) -> Result<(), HostError> {
        // An empty one would be the end.
        if data.is_empty() { Ok(()) } else { self.0.send(&Frame::Stdin(data.to_vec())) }
    }

    /// Ends what it has to read.
    pub fn close(&self) -> Result<(), HostError> {
        self.0.send(&Frame::Stdin(Vec::new()))
    }

    /// Signals its process group.
    pub fn signal(&self, signal: i32) -> Result<(), HostError> {
        self.0.say(Message::Signal(signal))
    }

    /// Changes its terminal's size.
    pub fn resize(&self, size: WindowSize) -> Result<(), HostError> {
        self.0.say(Message::Resize(size))
    }
}
