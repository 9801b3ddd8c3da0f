//! `cargo demo`: boots a guest, with everything that takes, and shows it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm_harness::host::{Event, Host, Place};
use vmm_harness::{Exec, workshop};

/// What the guest shows of itself.
const SCRIPT: &str = "uname -a; \
    grep -m1 -F name /proc/cpuinfo; echo $(grep -c ^processor /proc/cpuinfo) processors; \
    head -n1 /proc/meminfo; cat /proc/mounts; echo up for $(cut -f1 -d. /proc/uptime) s";

/// A boot takes two seconds on an emulated host, and far less elsewhere.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let say = |what: &str| eprintln!("[{:5.1} s] {what}", started.elapsed().as_secs_f64());
    say("building vmm");
    let programs = workshop::build()?;

    if programs.ask(None, &["kernel", "ls", "--quiet"])?.is_empty() {
        say(
            "vmm kernel fetch: the distribution's own kernel; `vmm kernel build` makes one that starts faster",
        );
        programs.ask(None, &["kernel", "fetch"])?;
    }
    say("vmm rootfs make");
    let rootfs = programs.ask(None, &["rootfs", "make"])?;

    let place = Place::choose()?;
    match place {
        Place::Local => say("this machine's KVM can run Linux"),
        Place::Emulated => say("this machine's KVM cannot run Linux: starting an emulated AMD-V host"),
    }
    let host = Host::start(place, &programs.agent, &say)?;
    let rootfs = Path::new(&rootfs);
    let mut program = programs.vmm.display().to_string();
    if place == Place::Emulated {
        workshop::put_vmm(&host, &programs)?;
        workshop::put_default_kernel(&host, &programs)?;
        host.put(rootfs, rootfs)?;
        "vmm".clone_into(&mut program);
    }

    let cmdline = format!("-- sh -c \"{SCRIPT}\"");
    let options = ["boot", "--cpus", "2", "--boot-timer", "--rootfs"].map(str::to_owned);
    let mut argv = vec![program];
    argv.extend(options);
    argv.extend([rootfs.display().to_string(), "--cmdline".to_owned(), cmdline]);
    say(&format!("vmm boot --cpus 2 --boot-timer --rootfs {} --cmdline '-- sh -c \"…\"'", rootfs.display()));
    let mut running = host.spawn(Exec { argv, ..Exec::default() })?;
    running.input().close()?;
    let deadline = Instant::now() + LIMIT;
    let exit = loop {
        match running.next(Some(deadline))? {
            Some(Event::Stdout(data)) => io::stdout().write_all(&data).context("cannot write the output")?,
            Some(Event::Stderr(data)) => io::stderr().write_all(&data).context("cannot write the output")?,
            Some(Event::Exited(exit)) => break exit,
            None => bail!("the guest is not finished after {} s", LIMIT.as_secs()),
        }
    };
    say(&format!("the guest is off; it ran on {place}"));
    Ok(ExitCode::from(exit.code() as u8))
}
