//! Runs fuzz targets: builds them with coverage, and gives each its time.
//!
//! This is libFuzzer on a stable compiler: what it needs is an LLVM pass, which is switched on by flags.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Parser;

const TARGETS: [&str; 8] = ["transport", "block", "console", "balloon", "rng", "serial", "image", "loader"];
/// Coverage as libFuzzer reads it, checks on arithmetic, and no optimisation that would hide them.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Coverflow-checks=on",
];

/// Run fuzz targets.
#[derive(Parser)]
struct Options {
    /// Which; by default all: transport, block, console, balloon, rng, serial, image, loader.
    targets: Vec<String>,
    /// Seconds for each.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let targets =
        if options.targets.is_empty() { TARGETS.map(str::to_owned).to_vec() } else { options.targets };
    for target in &targets {
        ensure!(TARGETS.contains(&target.as_str()), "there is no target {target}: {}", TARGETS.join(", "));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from).join("fuzz");
    build(&directory, &targets)?;

    let mut failed = Vec::new();
    for target in targets {
        let corpus = directory.join("corpus").join(&target);
        std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        println!("fuzzing {target} for {} s", options.seconds);
        let status =
            Command::new(directory.join("x86_64-unknown-linux-gnu/release").join(format!("fuzz-{target}")))
                .arg(format!("-max_total_time={}", options.seconds))
                .arg(format!("-artifact_prefix={}/", directory.display()))
                .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
                .arg(&corpus)
                .status()
                .with_context(|| format!("cannot run target {target}"))?;
        if !status.success() {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed: {}; inputs are in {}", failed.join(", "), directory.display());
    Ok(ExitCode::FAILURE)
}

fn build(directory: &Path, targets: &[String]) -> anyhow::Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "vmm-fuzz", "--target-dir"]).arg(directory);
    // One piece of code per function, so that counters stand for places; and no symbols are thrown away.
    cargo.env("RUSTFLAGS", FLAGS.join(" ")).env("CARGO_PROFILE_RELEASE_STRIP", "none");
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    for target in targets {
        cargo.arg("--bin").arg(format!("fuzz-{target}"));
    }
    ensure!(cargo.status().context("cannot run cargo")?.success(), "the targets do not build");
    Ok(())
}
