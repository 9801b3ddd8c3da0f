//! What is told of a boot: on the terminal, and in a record for programs.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vmm_devices::output::Output;
use vmm_machine::description::{Description, Space};
use vmm_machine::machine::Outcome;
use vmm_machine::timeline::{Stage, Timeline};

use super::watch::Why;
use crate::FAILURE;
use crate::hint::Hinted;

/// The guest crashed.
const CRASHED: u8 = 1;
/// The time was up.
const TIMED_OUT: u8 = 124;
/// A signal ended it: this and the signal's number.
const SIGNALLED: u8 = 128;
/// Console lines in a record.
const LAST_LINES: usize = 20;

/// How a boot ended, for programs (`--record`).
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// `power-off`, `reset`, `panicked`, `crashed`, `stopped`, or `failed` where it was not the guest's doing.
    pub(super) outcome: &'static str,
    /// The exit status.
    pub(super) status: u8,
    /// The stage that the boot was in when it ended.
    pub(super) stage: Stage,
    /// What went wrong.
    pub(super) error: Option<String>,
    /// The system's error number behind it.
    pub(super) errno: Option<i32>,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// The last lines on the guest's console.
    pub(super) console: Vec<String>,
    /// When each stage began.
    pub(super) timings: Vec<Timing>,
}

/// When a stage began.
#[derive(Debug, Serialize)]
pub(super) struct Timing {
    stage: Stage,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    monotonic_ns: u64,
    /// Microseconds after the monitor's start.
    at_us: u64,
}

impl Record {
    /// The record of a guest that came to an end.
    pub(super) fn of_guest(
        outcome: &Outcome,
        why: Option<Why>,
        output: Option<&Output>,
        timeline: &Timeline,
    ) -> Self {
        let stage = last_stage(timeline);
        let panic = output.and_then(Output::panic_message);
        let mut record = Self {
            outcome: "power-off",
            status: 0,
            stage,
            error: None,
            errno: None,
            hint: None,
            console: output.map(|output| output.last_lines(LAST_LINES)).unwrap_or_default(),
            timings: timings(timeline),
        };
        match (outcome, panic) {
            // A kernel without pvpanic says why on the console, then reboots.
            (Outcome::Panicked | Outcome::Reset, Some(message)) => {
                record.crash("panicked", format!("the guest's kernel panicked{}: {message}", during(stage)));
                record.hint = Some(panic_hint(&message).to_owned());
            }
            (Outcome::Panicked, None) => {
                record.crash("panicked", format!("the guest's kernel panicked{}", during(stage)));
                record.hint = Some("boot it with --console serial to see why".to_owned());
            }
            (Outcome::Crashed(crash), _) => {
                record
                    .crash("crashed", format!("{:#}", anyhow::Error::msg(crash.to_string())) + during(stage));
                if stage == Stage::GuestKernel {
                    let hint =
                        "see how far it came with --console serial --cmdline 'earlyprintk=serial loglevel=8'";
                    record.hint = Some(hint.to_owned());
                }
            }
            (Outcome::PowerOff, _) => {}
            (Outcome::Reset, None) => record.outcome = "reset",
            (Outcome::Stopped, _) => {
                record.outcome = "stopped";
                record.error = Some("the guest did not shut down and was stopped".to_owned());
            }
        }
        match why {
            Some(Why::Timeout) => {
                record.status = TIMED_OUT;
                record
                    .error
                    .get_or_insert_with(|| "the guest was shut down".to_owned())
                    .push_str(": its time was up");
            }
            Some(Why::Signal(signal)) if record.outcome == "stopped" => {
                record.status = SIGNALLED + signal as u8;
            }
            _ => {}
        }
        record
    }

    /// The record of a boot that failed for a reason outside the guest.
    pub(super) fn of_failure(error: &anyhow::Error, timeline: &Timeline) -> Self {
        let errno = error.chain().find_map(|cause| {
            let io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            io.or_else(|| cause.downcast_ref::<nix::Error>().map(|&errno| errno as i32))
        });
        Self {
            outcome: "failed",
            status: FAILURE,
            stage: last_stage(timeline),
            error: Some(format!("{error:#}")),
            errno,
            hint: Hinted::of(error).map(str::to_owned),
            console: Vec::new(),
            timings: timings(timeline),
        }
    }

    fn crash(&mut self, outcome: &'static str, error: String) {
        self.outcome = outcome;
        self.status = CRASHED;
        self.error = Some(error);
    }

    /// Says what went wrong, if anything did.
    pub(super) fn print(&self) {
        if let Some(error) = &self.error {
            eprintln!("vmm: {error}");
        }
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }

    /// Writes the record to a file, as JSON.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self).context("cannot encode the record")?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write the record {}", path.display()))
    }
}

/// The stage in which it ended: the last but the end.
fn last_stage(timeline: &Timeline) -> Stage {
    let marks = timeline.marks();
    marks.iter().rev().find(|mark| mark.stage != Stage::End).map_or(Stage::Prepare, |mark| mark.stage)
}

fn during(stage: Stage) -> &'static str {
    if stage == Stage::GuestKernel { " before it reached user space" } else { "" }
}

/// Advice on the panics that users bring about.
fn panic_hint(message: &str) -> &'static str {
    let known = [
        (
            "Unable to mount root fs",
            "the kernel cannot mount its root: does it have the file system, and is --rootfs an image of one?",
        ),
        (
            "No working init",
            "the root has no init: put one at /sbin/init, or name it with --cmdline init=PATH",
        ),
        ("Requested init", "the root has no such program: see init= on the command line"),
        ("Attempted to kill init", "the guest's first program ended: its last words are above"),
        ("emory", "give the guest more memory with --memory"),
    ];
    let found = known.iter().find(|(part, _)| message.contains(part));
    found.map_or("see more of it with --cmdline loglevel=8", |(_, hint)| hint)
}

fn timings(timeline: &Timeline) -> Vec<Timing> {
    let marks = timeline.marks();
    let Some(first) = marks.first() else { return Vec::new() };
    // Instants do not tell their own number: it is counted back from now.
    let now = Instant::now();
    let now_ns = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned());
    marks
        .iter()
        .map(|mark| Timing {
            stage: mark.stage,
            monotonic_ns: now_ns.saturating_sub((now - mark.at).as_nanos() as u64),
            at_us: (mark.at - first.at).as_micros() as u64,
        })
        .collect()
}

/// Prints how long each stage took.
pub(super) fn print_timings(timeline: &Timeline) {
    let marks = timeline.marks();
    eprintln!("{:<14} {:>12} {:>12}", "stage", "began ms", "took ms");
    for (i, mark) in marks.iter().enumerate() {
        let began = (mark.at - marks[0].at).as_secs_f64() * 1e3;
        let took = marks.get(i + 1).map(|next| (next.at - mark.at).as_secs_f64() * 1e3);
        let took = took.map(|took| format!("{took:.2}")).unwrap_or_default();
        eprintln!("{:<14} {began:>12.2} {took:>12}", name(mark.stage));
    }
}

fn name(stage: Stage) -> String {
    match stage {
        Stage::Guest(number) => format!("guest {number}"),
        stage => serde_json::to_value(stage)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default(),
    }
}

/// Prints the time to user space.
pub(super) fn print_boot_time(timeline: &Timeline) {
    let marks = timeline.marks();
    match marks.iter().find(|mark| mark.stage == Stage::UserSpace) {
        Some(mark) => eprintln!("vmm: {:.1} ms to user space", (mark.at - marks[0].at).as_secs_f64() * 1e3),
        None => eprintln!("vmm: the guest did not mark that it reached user space"),
    }
}

/// Shows a machine that is not started.
pub(super) fn print_description(machine: &Description, to: &mut impl io::Write) -> io::Result<()> {
    writeln!(to, "cpus          {}", machine.cpus)?;
    writeln!(to, "entry         {:?} at {:#x}", machine.protocol, machine.entry)?;
    writeln!(to, "command line  {}", machine.cmdline)?;
    for (title, ranges) in [("memory map", &machine.memory_map), ("contents", &machine.contents)] {
        writeln!(to, "{title}")?;
        for range in ranges {
            writeln!(to, "  {:#012x}..{:#012x}  {}", range.start, range.end, range.what)?;
        }
    }
    writeln!(to, "devices")?;
    for device in &machine.devices {
        let space = match device.space {
            Space::Ports => "ports",
            Space::Mmio => "mmio",
        };
        let interrupt = device.interrupt.map(|line| format!("  irq {line}")).unwrap_or_default();
        writeln!(to, "  {:<16}{space:<6} {:#x}..{:#x}{interrupt}", device.name, device.start, device.end)?;
    }
    Ok(())
}
