//! `vmm boot`: a raw machine.

mod disk;
mod plan;
mod report;
mod watch;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use vmm_devices::balloon::Balloon;
use vmm_devices::console;
use vmm_devices::input::ConsoleInput;
use vmm_devices::output::{self, Output};
use vmm_devices::rng::Rng;
use vmm_devices::virtio::VirtioDevice;
use vmm_machine::boot::Protocol;
use vmm_machine::kvm::{Hypervisor, KvmError};
use vmm_machine::machine::{Config, Machine};
use vmm_machine::memory::Backing;
use vmm_machine::probe::{self, Verdict};
use vmm_machine::timeline::{Stage, Timeline};

use crate::console::{self as terminal, Input, RawTerminal};
use crate::duration::parse_duration;
use crate::hint::Hinted;
use crate::home;
use crate::size::parse_size;
use disk::DiskSpec;
use plan::{Console, Plan};
use report::Record;
use watch::{Signals, Watch};

/// How long the last output may take to be written.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Boot a kernel in a microVM and use its console.
///
/// Exits with 0 when the guest powers off or reboots, 1 when it crashes, 124 when its time is up, 128 and the signal's
/// number when a signal ends it, 125 when vmm itself fails. Ctrl-] leaves the console; SIGINT and SIGTERM press the
/// power button, and cut the power ten seconds later.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm boot --rootfs \"$(vmm rootfs make)\"
  vmm boot --kernel vmlinux --rootfs root.ext4 --disk data.img,serial=data
  vmm boot --kernel /boot/vmlinuz --initrd initrd.img --cpus 4 --memory 2G
  vmm boot --rootfs root.erofs --boot-timer --cmdline '-- uname -a'")]
#[allow(clippy::struct_field_names, reason = "a field is named as its flag is")]
pub(crate) struct Boot {
    /// An ELF vmlinux or a bzImage, or the name of one of `vmm kernel ls` [default: its default].
    #[arg(long, value_name = "PATH|NAME")]
    kernel: Option<PathBuf>,
    /// The image of the root file system: the guest's first disk.
    #[arg(long, value_name = "PATH[:ro]")]
    rootfs: Option<DiskSpec>,
    /// An initial file system.
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// The kernel's modules (its /lib/modules/RELEASE), for an initial file system that loads those it needs.
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Words for the kernel's command line, after the defaults; those after ` -- ` are for init.
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
    /// How much of its memory the guest gives back at the start. Pages that it frees it gives back in any case.
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    balloon: u64,
    /// More disks: image files or block devices.
    #[arg(long, value_name = "PATH[:ro][,serial=ID]")]
    disk: Vec<DiskSpec>,
    /// The guest's console: virtio where the kernel has it built in, else serial.
    #[arg(long, value_enum, default_value_t = ConsoleChoice::Auto)]
    console: ConsoleChoice,
    /// Describe the machine by an MP table and on the command line, not by ACPI.
    #[arg(long)]
    no_acpi: bool,
    /// How to enter the kernel: PVH where it has it, else the 64-bit boot protocol.
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Auto)]
    protocol: ProtocolChoice,
    /// Say how long it took to the first user-space program.
    #[arg(long)]
    boot_timer: bool,
    /// Say how long each stage took.
    #[arg(long)]
    timings: bool,
    /// Write how it ended, and why, to this file, as JSON.
    #[arg(long, value_name = "PATH")]
    record: Option<PathBuf>,
    /// Show the machine, and do not start it.
    #[arg(long)]
    dry_run: bool,
    /// How to show it.
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "dry_run")]
    format: Format,
    /// Shut the guest down after this time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Boot even where this KVM does not look able to.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConsoleChoice {
    Auto,
    Serial,
    Virtio,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProtocolChoice {
    Auto,
    Pvh,
    Linux64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Boot {
    /// Boots, and waits until the guest is over.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let timeline = Timeline::start();
        let record = match self.boot(&timeline) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(ExitCode::SUCCESS),
            Err(error) => {
                if let Some(path) = &self.record {
                    Record::of_failure(&error, &timeline).write(path)?;
                }
                return Err(error);
            }
        };
        if self.timings {
            report::print_timings(&timeline);
        }
        if self.boot_timer {
            report::print_boot_time(&timeline);
        }
        record.print();
        if let Some(path) = &self.record {
            record.write(path)?;
        }
        Ok(ExitCode::from(record.status))
    }

    /// Boots; tells how the guest ended, if it was started.
    fn boot(&self, timeline: &Timeline) -> anyhow::Result<Option<Record>> {
        let plan = Plan::new(self, &home::directory()?)?;
        check_memory(self.memory)?;
        timeline.enter(Stage::Probe);
        let hypervisor = Hypervisor::open().map_err(|error| Hinted::new(kvm_hint(&error), error))?;
        if !self.force && !self.dry_run {
            check_kvm(&hypervisor)?;
        }

        // Before there are threads.
        let signals = Signals::block()?;
        let (output, output_thread) =
            output::spawn(Box::new(io::stdout())).context("cannot start the console")?;
        let mut config = self.config(&plan, &output, timeline)?;
        let virtio = (plan.console == Console::Virtio)
            .then(|| console::Console::new(output.clone(), terminal::size()))
            .transpose()
            .context("cannot make the console")?;
        let console = virtio.map(|(device, handle)| {
            config.devices.push(Box::new(device));
            handle
        });
        let mut machine = Machine::build(&hypervisor, config).context("cannot set up the machine")?;
        if self.dry_run {
            self.show(&machine)?;
            return Ok(None);
        }
        let control = machine.control();
        let terminal = RawTerminal::enter().context("cannot set up the terminal")?;
        let typed_to: Option<Arc<dyn ConsoleInput>> = match (&console, control.serial()) {
            (Some(console), _) => Some(console.clone()),
            (None, Some(serial)) => Some(serial.clone()),
            (None, None) => None,
        };
        if let Some(guest) = typed_to {
            let input = Input::of_stdin(guest, terminal.is_some()).context("cannot use standard input")?;
            machine.reactor().add(Box::new(input));
        }
        let (watch, why) = Watch::new(control, signals, self.timeout, console)?;
        machine.reactor().add(Box::new(watch));

        let ran = machine.run();
        output_thread.finish(LAST_OUTPUT);
        drop(terminal);
        if output.is_mid_line() {
            // What follows is ours.
            eprintln!();
        }
        let outcome = ran.context("the machine stopped")?;
        let shown = (plan.console != Console::None).then_some(&output);
        Ok(Some(Record::of_guest(&outcome, why.get().copied(), shown, timeline)))
    }

    fn config(&self, plan: &Plan, output: &Output, timeline: &Timeline) -> anyhow::Result<Config> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for disk in &plan.disks {
            devices.push(Box::new(disk.open().map_err(|error| Hinted::new(error.hint(), error))?));
        }
        devices.push(Box::new(Rng));
        devices.push(Box::new(Balloon::new(self.balloon).context("cannot make the balloon")?.0));
        Ok(Config {
            cpus: self.cpus,
            memory_bytes: self.memory,
            backing: if self.huge_pages { Backing::HugePages } else { Backing::Pages },
            kernel: open(&plan.kernel.path, "kernel")?,
            initrd: plan.initrd.as_deref().map(|path| open(path, "initrd")).transpose()?,
            cmdline: plan.cmdline.clone(),
            protocol: match self.protocol {
                ProtocolChoice::Auto => None,
                ProtocolChoice::Pvh => Some(Protocol::Pvh),
                ProtocolChoice::Linux64 => Some(Protocol::Linux64),
            },
            acpi: plan.acpi,
            devices,
            serial: (plan.console == Console::Serial).then(|| output.clone()),
            timeline: timeline.clone(),
        })
    }

    fn show(&self, machine: &Machine) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match self.format {
            Format::Text => report::print_description(machine.description(), &mut stdout)?,
            Format::Json => serde_json::to_writer_pretty(stdout, machine.description())?,
        }
        Ok(())
    }
}

fn open(path: &Path, what: &str) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open the {what} {}", path.display()))
}

/// Refuses memory that the host cannot have, which would only end the guest later and less clearly.
fn check_memory(bytes: u64) -> anyhow::Result<()> {
    let host = nix::sys::sysinfo::sysinfo().context("cannot find out how much memory the host has")?;
    let most = host.ram_total() + host.swap_total();
    if bytes <= most {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    let error = anyhow!("{} MiB of guest memory are more than the host's {} MiB", mib(bytes), mib(most));
    Err(Hinted::new(Some("ask for less with --memory".to_owned()), error).into())
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
    let error = anyhow!("this machine's KVM cannot run Linux: {reason}");
    let hint = "use a host with VT-x or AMD-V, or an emulated one: `cargo kvm-host -- vmm boot …`; \
                --force tries all the same";
    Err(Hinted::new(Some(hint.to_owned()), error).into())
}
