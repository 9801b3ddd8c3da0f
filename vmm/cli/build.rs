//! Builds the guest's init for embedding, with a cargo of its own: another profile, and a target directory that no
//! other cargo waits for. `VMM_GUEST_INIT` is the path of the program.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROFILE: &str = "guest";

/// Static, so that it runs where there is nothing else; at a fixed address, so that it starts without relocating
/// itself. Separated as `CARGO_ENCODED_RUSTFLAGS` wants it.
const RUSTFLAGS: &str = "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static";

/// What the program is made of, relative to the workspace.
const INPUTS: [&str; 4] = ["guest/init/src", "guest/init/Cargo.toml", "Cargo.toml", "Cargo.lock"];

fn main() {
    let workspace = variable("CARGO_MANIFEST_DIR").join("../..");
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let init = build(&workspace, &variable("OUT_DIR").join("guest"));
    println!("cargo::rustc-env=VMM_GUEST_INIT={}", init.display());
}

fn build(workspace: &Path, target_directory: &Path) -> PathBuf {
    let target = variable("TARGET");
    let status = Command::new(variable("CARGO"))
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--package", "vmm-init", "--profile", PROFILE])
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(target_directory)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS)
        // Under clippy this names clippy's driver, which would build everything again.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // The outer cargo reads our standard output.
        .stdout(Stdio::null())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "building the guest's init failed: {status}");
    target_directory.join(target).join(PROFILE).join("vmm-init")
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")).into()
}
