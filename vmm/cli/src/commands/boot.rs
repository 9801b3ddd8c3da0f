//! `vmm boot`: a raw machine.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use event_manager::{EventOps, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vmm_devices::output::{self, Output};
use vmm_devices::rng::Rng;
use vmm_devices::stage;
use vmm_images_kernel::open::BootKernel;
use vmm_machine::kvm::{Hypervisor, KvmError};
use vmm_machine::machine::{Config, Control, Machine, Outcome};
use vmm_machine::memory::Backing;
use vmm_machine::probe::{self, Verdict};
use vmm_sys_util::epoll::EventSet;

use crate::console::{Input, RawTerminal};
use crate::hint::Hinted;
use crate::home;
use crate::size::parse_size;

/// What a guest's kernel gets unless `--cmdline-only` says otherwise.
const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet";
/// How long a guest has after its power button was pressed.
const GRACE: Duration = Duration::from_secs(10);
/// How long the last output may take to be written.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// The guest crashed.
const CRASHED: u8 = 1;
/// The time was up.
const TIMED_OUT: u8 = 124;

/// Boot a kernel in a microVM and use its console.
///
/// Exits with 0 when the guest powers off or reboots, 1 when it crashes, 124 when its time is up, 125 when vmm itself
/// fails. Ctrl-] leaves the console; SIGINT and SIGTERM press the power button.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm boot --kernel vmlinux --initrd initrd.img
  vmm boot --kernel vmlinuz --initrd initrd.img --cpus 4 --memory 2G
  vmm boot --kernel vmlinux --initrd initrd.img --cmdline 'loglevel=7' --boot-timer")]
#[allow(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "a field is a flag of the command line"
)]
pub(crate) struct Boot {
    /// An ELF vmlinux or a bzImage.
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// An initial file system.
    #[arg(long, value_name = "PATH")]
    initrd: PathBuf,
    /// Words for the kernel's command line, after the defaults.
    #[arg(
        long,
        value_name = "STR",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    cmdline: String,
    /// The kernel's command line in place of the defaults.
    #[arg(long, value_name = "STR", allow_hyphen_values = true, conflicts_with = "cmdline")]
    cmdline_only: Option<String>,
    /// How many processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// How much memory.
    #[arg(long, short, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    memory: u64,
    /// Back the memory by 2 MiB pages from the host's pool.
    #[arg(long)]
    huge_pages: bool,
    /// Describe the machine by an MP table and on the command line, for kernels without ACPI.
    #[arg(long)]
    no_acpi: bool,
    /// Say how long it took to the first user-space program.
    #[arg(long)]
    boot_timer: bool,
    /// Cut the power after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Boot even where this KVM does not look able to.
    #[arg(long)]
    force: bool,
}

impl Boot {
    /// Boots, and waits until the guest is over.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let cache = home::directory()?.join("cache");
        let kernel =
            BootKernel::open(&self.kernel, &cache).map_err(|error| Hinted::new(error.hint(), error))?;
        let kernel_file = open(&kernel.path, "kernel")?;
        let initrd = open(&self.initrd, "initrd")?;
        let hypervisor = Hypervisor::open().map_err(|error| Hinted::new(kvm_hint(&error), error))?;
        if !self.force {
            check_kvm(&hypervisor)?;
        }

        // Blocked before there are threads, so that only the event loop takes them.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot listen for signals")?;

        let (output, output_thread) =
            output::spawn(Box::new(io::stdout())).context("cannot start the console")?;
        let mut machine = Machine::build(
            &hypervisor,
            Config {
                cpus: self.cpus,
                memory_bytes: self.memory,
                backing: if self.huge_pages { Backing::HugePages } else { Backing::Pages },
                kernel: kernel_file,
                initrd: Some(initrd),
                cmdline: self.command_line(),
                protocol: None,
                acpi: !self.no_acpi,
                devices: vec![Box::new(Rng)],
                serial: output.clone(),
            },
        )
        .context("cannot set up the machine")?;
        let control = machine.control();
        let terminal = RawTerminal::enter().context("cannot set up the terminal")?;
        machine.reactor().add(Box::new(Input::new(control.serial(), terminal.is_some())));
        let watch = Watch::new(control.clone(), signals, self.timeout)?;
        machine.reactor().add(Box::new(watch));

        let ran = machine.run();
        output_thread.finish(LAST_OUTPUT);
        drop(terminal);
        if self.boot_timer {
            report_boot_time(&control, started);
        }
        Ok(exit_code(&ran.context("the machine stopped")?, &output))
    }

    fn command_line(&self) -> String {
        match &self.cmdline_only {
            Some(whole) => whole.clone(),
            None if self.cmdline.is_empty() => DEFAULT_CMDLINE.to_owned(),
            None => format!("{DEFAULT_CMDLINE} {}", self.cmdline),
        }
    }
}

fn open(path: &std::path::Path, what: &str) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open the {what} {}", path.display()))
}

fn kvm_hint(error: &KvmError) -> Option<String> {
    let KvmError::Open { path, source } = error else { return None };
    Some(match source.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("add yourself to the group that owns {path} (often \"kvm\"), then log in again")
        }
        _ => "enable virtualization in the firmware and load the kvm-intel or kvm-amd module".to_owned(),
    })
}

/// Refuses a KVM that cannot run Linux before it wastes the user's time.
fn check_kvm(hypervisor: &Hypervisor) -> anyhow::Result<()> {
    let reason = match probe::probe(hypervisor).context("cannot probe KVM")? {
        Verdict::Capable => return Ok(()),
        Verdict::Unimplemented { instruction } => format!("it does not implement {instruction}"),
        Verdict::Interpreted { instructions_per_second } => {
            format!("it interprets {instructions_per_second} instructions per second")
        }
    };
    let error = io::Error::other(format!("this machine's KVM cannot run Linux: {reason}"));
    let hint = "use a host with VT-x or AMD-V, or an emulated one: `cargo kvm-host -- vmm boot …`; \
                --force tries all the same";
    Err(Hinted::new(Some(hint.to_owned()), error).into())
}

fn report_boot_time(control: &Control, started: Instant) {
    let reached = control.marks().into_iter().find(|mark| mark.stage == stage::USER_SPACE);
    match reached {
        Some(mark) => {
            eprintln!("vmm: {:.1} ms to user space", (mark.at - started).as_secs_f64() * 1000.0);
        }
        None => eprintln!("vmm: the guest did not mark that it reached user space"),
    }
}

fn exit_code(outcome: &Outcome, output: &Output) -> ExitCode {
    let panic = output.panic_message();
    match (outcome, panic) {
        // A kernel without pvpanic says why on the console, then reboots.
        (Outcome::Panicked | Outcome::Reset, Some(message)) => {
            eprintln!("vmm: the guest's kernel panicked: {message}");
            ExitCode::from(CRASHED)
        }
        (Outcome::Panicked, None) => {
            eprintln!("vmm: the guest's kernel panicked");
            ExitCode::from(CRASHED)
        }
        (Outcome::Crashed(crash), _) => {
            eprintln!("vmm: {:#}", anyhow::Error::msg(crash.to_string()));
            ExitCode::from(CRASHED)
        }
        (Outcome::PowerOff | Outcome::Reset, _) => ExitCode::SUCCESS,
        (Outcome::Stopped, _) => {
            eprintln!("vmm: the guest was stopped");
            ExitCode::from(TIMED_OUT)
        }
    }
}

/// Ends the guest on signals and when its time is up: first by its power button, then by cutting the power.
struct Watch {
    control: Control,
    signals: SignalFd,
    timer: TimerFd,
    asked: bool,
}

impl Watch {
    fn new(control: Control, signals: SignalFd, timeout_s: Option<u64>) -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("cannot make a timer")?;
        let watch = Self { control, signals, timer, asked: false };
        if let Some(seconds) = timeout_s {
            watch.arm(Duration::from_secs(seconds)).context("cannot set the timer")?;
        }
        Ok(watch)
    }

    fn arm(&self, after: Duration) -> nix::Result<()> {
        let expiration = Expiration::OneShot(TimeSpec::from_duration(after));
        self.timer.set(expiration, TimerSetTimeFlags::empty())
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.signals.as_raw_fd() {
            let heard = matches!(self.signals.read_signal(), Ok(Some(_)));
            // The second signal does not wait any longer.
            if heard && (self.asked || self.arm(GRACE).is_err()) {
                self.control.stop();
            } else if heard {
                self.asked = true;
                self.control.press_power_button();
            }
        } else {
            self.control.stop();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.signals.as_raw_fd(), std::os::fd::AsFd::as_fd(&self.timer).as_raw_fd()] {
            // Only a dead loop refuses, and then nothing works.
            let _ = ops.add(Events::new_raw(fd, EventSet::IN));
        }
    }
}
