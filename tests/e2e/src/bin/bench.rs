//! `cargo bench-boot`: what a boot costs, measured in one boot of one host, kernel by kernel in turn.
//!
//! In an emulated host only ratios between figures of one run mean something.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use serde::Serialize;
use vmm_e2e::{Kernel, LIMIT, Lab, lab};
use vmm_harness::host::Event;

/// Measure what a boot costs.
#[derive(Parser)]
struct Options {
    /// How many times each boot is timed.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Write the results to this file too, as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// One measured thing.
#[derive(Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
}

impl Figure {
    fn new(name: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let median = values[values.len() / 2];
        Self { name: name.into(), unit, median, min: values[0], max: values[values.len() - 1] }
    }
}

/// The boots that are timed: name, kernel, options.
const BOOTS: [(&str, Kernel, &[&str]); 4] = [
    ("exec to init, tuned kernel, ACPI", Kernel::Tuned, &[]),
    ("exec to init, tuned kernel, MP table", Kernel::Tuned, &["--no-acpi"]),
    ("exec to init, tuned kernel, serial console", Kernel::Tuned, &["--console", "serial"]),
    ("exec to init, stock kernel", Kernel::Stock, &[]),
];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let lab = lab();
    let mut figures = boot_times(lab, options.runs)?;
    figures.extend(running_cost(lab)?);
    figures.extend(block(lab)?);
    let bytes: f64 = lab.must("stat -c %s vmm").parse()?;
    figures.push(Figure::new("size of vmm", "MiB", vec![bytes / f64::from(1 << 20)]));
    println!("on {}", lab.place());
    println!("{:<52} {:>10} {:>10} {:>10}", "", "median", "min", "max");
    for figure in &figures {
        let Figure { name, unit, median, min, max } = figure;
        println!("{name:<52} {median:>10.2} {min:>10.2} {max:>10.2} {unit}");
    }
    if let Some(path) = options.json {
        let json = serde_json::to_string_pretty(&figures)?;
        fs::write(&path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// From the start of the monitor to the first instruction of user space.
fn boot_times(lab: &Lab, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut times = BTreeMap::<usize, Vec<f64>>::new();
    // The first fills caches and is not counted.
    for run in 0..=runs {
        for (index, (name, kernel, options)) in BOOTS.iter().enumerate() {
            let ended = lab.guest(*kernel, &[&["--memory", "128M"], *options].concat(), "true");
            let timings = ended.record["timings"].as_array();
            let reached = timings.and_then(|timings| {
                timings.iter().find(|timing| timing["stage"] == "user-space")?["at_us"].as_f64()
            });
            let Some(at_us) = reached else { bail!("{name}: {}", ended.output.text()) };
            if run > 0 {
                times.entry(index).or_default().push(at_us / 1e3);
            }
        }
    }
    Ok(times.into_iter().map(|(index, times)| Figure::new(BOOTS[index].0, "ms", times)).collect())
}

/// Memory and processor time of a monitor whose guest has just reached its shell.
fn running_cost(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let cmdline = "-- \"echo up; sleep 1000\"";
    let arguments =
        ["boot", "--kernel", "tuned", "--memory", "128M", "--rootfs", "root.erofs", "--cmdline", cmdline];
    let mut running = lab.start(&arguments, None);
    let mut seen = String::new();
    while !seen.contains("up") {
        match running.next(Some(Instant::now() + LIMIT))? {
            Some(Event::Stdout(data) | Event::Stderr(data)) => seen += &String::from_utf8_lossy(&data),
            other => bail!("{other:?} after {seen:?}"),
        }
    }
    // What the guest's memory and its kernel are mapped from is the guest's; the rest is the monitor's.
    let smaps = lab.must("cat /proc/$(pgrep -x vmm)/smaps");
    let (mut rss, mut anonymous, mut is_own) = (0.0, 0.0, true);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            is_own = !line.contains("/memfd:") && !line.contains("vmlinux") && !line.contains("kvm-vcpu");
            continue;
        }
        let kib: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        match first {
            "Rss:" if is_own => rss += kib,
            "Anonymous:" if is_own => anonymous += kib,
            _ => {}
        }
    }
    let threads = lab.must(
        "for t in /proc/$(pgrep -x vmm)/task/*; do echo $(cat $t/comm) $(cut -d' ' -f1 $t/schedstat); done",
    );
    let (mut own, mut guest) = (0.0, 0.0);
    for line in threads.lines() {
        let (name, nanoseconds) = line.rsplit_once(' ').context("a thread without a time")?;
        let milliseconds = nanoseconds.parse::<f64>()? / 1e6;
        if name.starts_with("vcpu") { guest += milliseconds } else { own += milliseconds }
    }
    Ok(vec![
        Figure::new("monitor's memory beyond its guest's", "MiB", vec![rss / 1024.0]),
        Figure::new("monitor's memory, anonymous part", "MiB", vec![anonymous / 1024.0]),
        Figure::new("processor time of the monitor's own threads", "ms", vec![own]),
        Figure::new("processor time of the vCPU's thread", "ms", vec![guest]),
        Figure::new("monitor's share of the vCPU's time", "%", vec![100.0 * own / guest]),
    ])
}

/// Direct reads of one file: from the host, and as a disk from within a guest.
fn block(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    lab.must("dd if=/dev/urandom of=bench.img bs=1M count=256 2>/dev/null; sync");
    // The clock of each side, before and after; a pass each, in turn, three times.
    let script = |file: &str| {
        let read = |options: &str| format!("dd if={file} of=/dev/null iflag=direct {options} 2>/dev/null");
        let clock = "cat /proc/uptime";
        format!("{clock}; {}; {clock}; {}; {clock}", read("bs=1M count=256"), read("bs=4k count=8192"))
    };
    let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for _ in 0..3 {
        let host = lab.must(&script("bench.img"));
        let guest = lab.guest(Kernel::Tuned, &["--disk", "bench.img:ro"], &script("/dev/vdb"));
        for (place, text) in [("host", host.as_str()), ("guest", guest.stdout())] {
            let clock: Vec<f64> =
                text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
            let [start, between, end] = clock[..] else { bail!("the {place} said {text:?}") };
            found.entry((place, "MiB/s, 1 MiB reads")).or_default().push(256.0 / (between - start));
            found.entry((place, "reads/s, 4 KiB")).or_default().push(8192.0 / (end - between));
        }
    }
    lab.must("rm bench.img");
    Ok(found
        .into_iter()
        .map(|((place, what), values)| Figure::new(format!("{what}, {place}"), "", values))
        .collect())
}
