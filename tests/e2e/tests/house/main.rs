//! Rules of the house that the compiler does not know: what the project may depend on, and who may depend on whom.

#![allow(missing_docs)]

mod packages;

use packages::Packages;

/// Which of the project's crates may not reach which, directly or through others. Nothing may reach the tests.
const WALLS: [(&str, &[&str], &str); 5] = [
    (
        "vmm-devices",
        &[
            "kvm-ioctls",
            "kvm-bindings",
            "vmm-machine",
            "vmm-images-archive",
            "vmm-images-build",
            "vmm-images-kernel",
        ],
        "devices know nothing of KVM, so that each can be tested with a mock queue, nor of images",
    ),
    (
        "vmm-machine",
        &["vmm-images-archive", "vmm-images-build", "vmm-images-kernel", "clap", "anyhow"],
        "the monitor knows nothing of images, nor of command lines",
    ),
    (
        "vmm-init",
        &["vmm-machine", "vmm-devices", "kvm-ioctls", "clap", "anyhow"],
        "what runs in a guest is small and knows nothing of its monitor",
    ),
    (
        "vmm-images-build",
        &["vmm-machine", "vmm-devices", "clap", "anyhow"],
        "images know nothing of who runs them",
    ),
    (
        "vmm-images-kernel",
        &["vmm-machine", "vmm-devices", "clap", "anyhow"],
        "images know nothing of who runs them",
    ),
];

#[test]
fn dependencies_have_permissive_licences() {
    let allowed = packages::allowed_licences();
    let packages = Packages::load();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package.is_licensed_by(&allowed))
        .map(|package| format!("{}: {:?}", package.name, package.license))
        .collect();
    assert!(refused.is_empty(), "not in .cargo/deny.toml: {refused:#?}");
}

#[test]
fn dependencies_point_one_way() {
    let packages = Packages::load();
    for (from, forbidden, because) in WALLS {
        let reached = packages.reached_from(from);
        for target in forbidden {
            assert!(!reached.contains(*target), "{from} reaches {target}, but {because}");
        }
    }
    for package in packages.own().filter(|package| !package.is_below("tests")) {
        let reached = packages.reached_from(&package.name);
        for test in ["vmm-harness", "vmm-e2e", "vmm-fuzz"] {
            assert!(!reached.contains(test), "{} reaches {test}, which is for tests", package.name);
        }
    }
}

#[test]
fn the_top_level_is_what_the_readme_says() {
    let allowed = ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "guest", "images", "tests", "vmm"];
    let top = packages::workspace();
    for entry in std::fs::read_dir(&top).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let fits = name.starts_with('.') || name == "target" || allowed.contains(&name.as_str());
        assert!(fits, "{name} is at the top level; everything has its room inside one of {allowed:?}");
    }
}
