//! What end-to-end tests share: one host with `vmm`, kernels and root file systems in it.
//!
//! The host is started once for a test program, by the first test that asks for it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use vmm_harness::host::{Host, Output, Place, Running};
use vmm_harness::workshop::Programs;
use vmm_harness::{Exec, WindowSize, workshop};

/// How long a guest may take from its start to its end. Hosts that emulate and compile at the same time are slow.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Which kernel a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The project's own: everything built in.
    Tuned,
    /// The distribution's: almost everything is a module.
    Stock,
}

impl Kernel {
    /// Its name in `vmm kernel ls`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tuned => "tuned",
            Self::Stock => "stock",
        }
    }
}

/// The host and what is in it.
pub struct Lab {
    host: Host,
    next_record: AtomicU32,
}

/// A guest that has come to its end.
pub struct Ended {
    /// What the monitor printed.
    pub output: Output,
    /// Its record of the boot; null if it wrote none.
    pub record: Value,
}

impl Ended {
    /// The exit status.
    pub fn status(&self) -> i32 {
        self.output.exit.code()
    }

    /// The guest's output.
    pub fn stdout(&self) -> &str {
        &self.output.stdout
    }

    /// What the monitor itself had to say.
    pub fn stderr(&self) -> &str {
        &self.output.stderr
    }

    /// A line of the guest's output that starts with `key`, without it.
    #[track_caller]
    pub fn line(&self, key: &str) -> &str {
        match self.stdout().lines().find_map(|line| line.strip_prefix(key)) {
            Some(rest) => rest.trim(),
            None => panic!("the guest said no {key:?}\n{}", self.output.text()),
        }
    }

    /// Fails unless the guest powered off and the monitor had nothing to complain about.
    #[track_caller]
    pub fn expect_power_off(&self) {
        let well = self.status() == 0 && self.record["outcome"] == "power-off" && self.stderr().is_empty();
        assert!(well, "{}\n{:#}", self.output.text(), self.record);
    }
}

/// The lab of this test program.
#[track_caller]
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Result<Lab, String>> = OnceLock::new();
    match LAB.get_or_init(|| Lab::open().map_err(|error| format!("{error:#}"))) {
        Ok(lab) => lab,
        Err(error) => panic!("there is no host to test in: {error}"),
    }
}

/// Says what takes long, also while a test's output is being captured.
fn say(what: &str) {
    // Nobody has to listen.
    let _ = writeln!(io::stderr(), "e2e: {what}");
}

impl Lab {
    fn open() -> anyhow::Result<Self> {
        say("building vmm");
        let programs = workshop::build()?;
        let home = workshop::cache()?.join("home");
        ensure_kernels(&programs, &home)?;
        let place = Place::choose()?;
        say(&format!("tests run on {place}"));
        let host = Host::start(place, &programs.agent, &say)?;
        let lab = Self { host, next_record: AtomicU32::new(0) };
        lab.host.put(&programs.vmm, &lab.path("vmm"))?;
        for kernel in [Kernel::Tuned, Kernel::Stock] {
            let below = Path::new("kernels").join(kernel.name());
            lab.host.put(&home.join(&below), &lab.path("home").join(below))?;
        }
        let made = lab.sh(
            "./vmm kernel default tuned && ./vmm rootfs make -o root.erofs && ./vmm rootfs make --format ext4 -o root.ext4 \
             && fsck.erofs --extract=tree root.erofs && mksquashfs tree root.squashfs -quiet -no-progress",
        );
        if !made.exit.success() {
            bail!("cannot make root file systems in the host: {}", made.text());
        }
        Ok(lab)
    }

    /// Where the host is.
    pub fn place(&self) -> Place {
        self.host.place()
    }

    /// The host itself.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A path in the host's directory for tests, which is also where commands run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    fn exec(&self, argv: Vec<String>, terminal: Option<WindowSize>) -> Exec {
        let home = self.path("home").display().to_string();
        Exec {
            argv,
            env: vec![("VMM_HOME".to_owned(), home), ("TERM".to_owned(), "linux".to_owned())],
            cwd: Some(self.host.directory().display().to_string()),
            terminal,
        }
    }

    /// Runs a shell script in the host.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Output {
        self.run(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    /// Runs a shell script in the host that has to succeed; returns what it prints.
    #[track_caller]
    pub fn must(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(output.exit.success(), "{script}\n{}", output.text());
        output.stdout.trim_end().to_owned()
    }

    /// Runs `vmm` in the host, with nothing to read.
    #[track_caller]
    pub fn vmm(&self, arguments: &[&str]) -> Output {
        self.run(self.vmm_argv(arguments))
    }

    #[track_caller]
    fn run(&self, argv: Vec<String>) -> Output {
        match self.host.run(self.exec(argv, None), LIMIT) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Starts `vmm` in the host, on a terminal if a size is given.
    #[track_caller]
    pub fn start(&self, arguments: &[&str], terminal: Option<WindowSize>) -> Running {
        match self.host.spawn(self.exec(self.vmm_argv(arguments), terminal)) {
            Ok(running) => running,
            Err(error) => panic!("{error}"),
        }
    }

    fn vmm_argv(&self, arguments: &[&str]) -> Vec<String> {
        let program = self.path("vmm").display().to_string();
        std::iter::once(program).chain(arguments.iter().map(|word| (*word).to_owned())).collect()
    }

    /// Boots a guest and waits for its end.
    #[track_caller]
    pub fn boot(&self, arguments: &[&str]) -> Ended {
        let record = self.path(&format!("record-{}.json", self.next_record.fetch_add(1, Ordering::Relaxed)));
        let record = record.display().to_string();
        let mut all = vec!["boot", "--record", &record];
        all.extend(arguments);
        let output = self.vmm(&all);
        let json = self.sh(&format!("cat {record}; rm -f {record}")).stdout;
        Ended { output, record: serde_json::from_str(&json).unwrap_or(Value::Null) }
    }

    /// Boots a guest that runs `script` in its shell, from the read-only root file system.
    #[track_caller]
    pub fn guest(&self, kernel: Kernel, options: &[&str], script: &str) -> Ended {
        let cmdline = format!("-- \"{script}\"");
        let mut all = vec!["--kernel", kernel.name(), "--cmdline", &cmdline];
        if !options.contains(&"--rootfs") {
            all.extend(["--rootfs", "root.erofs"]);
        }
        all.extend(options);
        self.boot(&all)
    }
}

/// Makes the kernels, here, unless they are there already.
fn ensure_kernels(programs: &Programs, home: &Path) -> anyhow::Result<()> {
    let there = programs.ask(Some(home), &["kernel", "ls", "--quiet"])?;
    if !there.lines().any(|name| name == Kernel::Stock.name()) {
        say("fetching the distribution's kernel (once)");
        programs.ask(Some(home), &["kernel", "fetch", "--name", Kernel::Stock.name()])?;
    }
    say("building the guest kernel (minutes, the first time)");
    programs.ask(Some(home), &["kernel", "build", "--name", Kernel::Tuned.name()])?;
    Ok(())
}
