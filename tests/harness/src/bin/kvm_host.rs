//! `cargo kvm-host`: runs a command where KVM runs Linux.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{self, SetArg, Termios};
use vmm_harness::host::{Event, Host, Input, Place};
use vmm_harness::{Exec, pty, workshop};

/// Run a command in a host whose KVM runs Linux: this machine, or else an emulated one.
///
/// `vmm` is there, with the default kernel of this machine's `vmm kernel ls`. Arguments that name files here, by a
/// path with a slash, are copied there, to the same path. Without a command there is a shell.
#[derive(Parser)]
#[command(
    name = "kvm-host",
    after_help = "\
Examples:
  cargo kvm-host -- vmm boot --rootfs root.erofs
  cargo kvm-host --get /work/result.json -- vmm boot --record /work/result.json --rootfs ./root.erofs
  cargo kvm-host                                a shell; `exit` ends it and the host

VMM_TEST_HOST=local|emulated chooses the host in place of the probe."
)]
struct Arguments {
    /// Copy a file or directory into the host first.
    #[arg(long, value_name = "PATH[:PATH THERE]")]
    put: Vec<String>,
    /// Copy a file out of the host afterwards.
    #[arg(long, value_name = "PATH THERE[:PATH]")]
    get: Vec<String>,
    /// End it after so many seconds, with status 124.
    #[arg(long, short, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Our own failure, and that of time, as timeout(1) has them.
const FAILURE: u8 = 125;
const TIMED_OUT: u8 = 124;

/// Where paths mean the host's own files.
const SYSTEM: [&str; 9] = ["/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/etc", "/run"];

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A reader that has gone needs no help text.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    match run(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("kvm-host: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let signals = Signals::start()?;
    let programs = workshop::build()?;
    let place = Place::choose()?;
    let host = Host::start(place, &programs.agent, &|what| eprintln!("kvm-host: {what}"))?;
    let here = env::current_dir().context("cannot find out the current directory")?;
    if place == Place::Emulated {
        workshop::put_vmm(&host, &programs)?;
        workshop::put_default_kernel(&host, &programs)?;
        for argument in arguments.command.iter().skip(1) {
            if let Some(path) = named_file(argument) {
                let path = here.join(path);
                host.put(&path, &path)?;
            }
        }
    }
    for pair in &arguments.put {
        let (from, to) = pair.split_once(':').unwrap_or((pair, pair));
        host.put(&here.join(from), &here.join(to))?;
    }
    let status = follow(&host, arguments, &here, &programs.vmm, &signals)?;
    for pair in &arguments.get {
        let (from, to) = match pair.split_once(':') {
            Some((from, to)) => (Path::new(from), PathBuf::from(to)),
            None => (Path::new(pair), Path::new(pair).file_name().map(PathBuf::from).unwrap_or_default()),
        };
        host.get(&here.join(from), &here.join(to))?;
    }
    Ok(status)
}

/// The file that an argument names: all of it, or what comes after `=`, up to options after `:` or `,`.
fn named_file(argument: &str) -> Option<&Path> {
    let value = argument
        .split_once('=')
        .filter(|(flag, _)| flag.starts_with("--"))
        .map_or(argument, |(_, value)| value);
    let bare = value.split([':', ',']).next().unwrap_or(value);
    [value, bare]
        .into_iter()
        .filter(|path| path.contains('/') && !SYSTEM.iter().any(|system| path.starts_with(system)))
        .map(Path::new)
        .find(|path| path.is_file())
}

fn follow(
    host: &Host,
    arguments: &Arguments,
    here: &Path,
    vmm: &Path,
    signals: &Signals,
) -> anyhow::Result<u8> {
    let mut argv = arguments.command.clone();
    if argv.is_empty() {
        argv.push("bash".to_owned());
    }
    if host.place() == Place::Local && argv[0] == "vmm" {
        argv[0] = vmm.display().to_string();
    }
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal =
        is_terminal.then(|| pty::size(&io::stdin())).transpose().context("cannot get the terminal's size")?;
    let term = env::var("TERM").map(|term| ("TERM".to_owned(), term));
    let cwd = here.to_str().context("the current directory's path is not UTF-8")?.to_owned();
    let mut running = host.spawn(Exec { argv, env: term.into_iter().collect(), cwd: Some(cwd), terminal })?;
    let _raw = if is_terminal { Some(Raw::enter()?) } else { None };
    feed(running.input());
    signals.pass_to(running.input());

    let deadline = arguments.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        match running.next(deadline)? {
            Some(Event::Stdout(data)) => write(&mut io::stdout().lock(), &data)?,
            Some(Event::Stderr(data)) => write(&mut io::stderr().lock(), &data)?,
            Some(Event::Exited(exit)) => return Ok(exit.code() as u8),
            None => return Ok(TIMED_OUT),
        }
    }
}

fn write(to: &mut impl Write, data: &[u8]) -> anyhow::Result<()> {
    let written = to.write_all(data).and_then(|()| to.flush());
    written.context("cannot write the command's output")
}

/// Hands standard input on.
fn feed(input: Input) {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        // Read past the library's buffer, which would keep what was typed until a line is complete.
        let Ok(stdin) = File::open("/dev/stdin") else { return };
        let mut stdin = stdin;
        loop {
            match stdin.read(&mut buffer) {
                Ok(length) if length > 0 => {
                    if input.write(&buffer[..length]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // If the command has gone, it needs no end of input.
                _ => return drop(input.close()),
            }
        }
    });
}

/// Hands signals on to the command, as well as changes of the terminal's size. Before there is a command, they end
/// this program, and the host with it.
struct Signals(Arc<Mutex<Option<Input>>>);

impl Signals {
    /// To be called before there are other threads.
    fn start() -> anyhow::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH]);
        signals.thread_block().context("cannot block signals")?;
        let command = Arc::new(Mutex::new(None::<Input>));
        let shared = Arc::clone(&command);
        thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                match &*shared.lock().unwrap_or_else(PoisonError::into_inner) {
                    None if signal == Signal::SIGWINCH => {}
                    None => std::process::exit(128 + signal as i32),
                    Some(command) if signal == Signal::SIGWINCH => {
                        // One who waits for the command finds out about a host that is gone.
                        let _ =
                            pty::size(&io::stdin()).map_err(Into::into).and_then(|size| command.resize(size));
                    }
                    Some(command) => drop(command.signal(signal as i32)),
                }
            }
        });
        Ok(Self(command))
    }

    fn pass_to(&self, command: Input) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
    }
}

/// The terminal, passing everything on as it is typed, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("cannot set up the terminal")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("cannot set up the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
