//! The packages of the lock file, as cargo knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// "dev", "build", or nothing.
    kind: Option<String>,
}

/// A package.
#[derive(Deserialize)]
pub(crate) struct Package {
    id: String,
    /// Its name.
    pub(crate) name: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

impl Package {
    /// Whether the licences in `allowed` are enough to use it.
    pub(crate) fn is_licensed_by(&self, allowed: &BTreeSet<String>) -> bool {
        let Some(license) = &self.license else { return false };
        let expression = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX);
        expression.is_ok_and(|expression| expression.evaluate(|wanted| allowed.contains(&wanted.to_string())))
    }

    /// Whether it lies in that directory of the project.
    pub(crate) fn is_below(&self, directory: &str) -> bool {
        self.manifest_path.starts_with(workspace().join(directory))
    }
}

/// All of them, and what each needs.
pub(crate) struct Packages {
    packages: BTreeMap<String, Package>,
    /// By id; without what only tests need.
    needs: BTreeMap<String, Vec<String>>,
}

impl Packages {
    /// Asks cargo.
    pub(crate) fn load() -> Self {
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(workspace())
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform=x86_64-unknown-linux-gnu",
            ])
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo starts");
        assert!(output.status.success(), "cargo metadata failed");
        let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
        let needs = metadata.resolve.nodes.into_iter().map(|node| {
            let needed = node.deps.into_iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
            });
            (node.id, needed.map(|dependency| dependency.pkg).collect())
        });
        let packages = metadata.packages.into_iter().map(|package| (package.id.clone(), package));
        Self { needs: needs.collect(), packages: packages.collect() }
    }

    /// Every package.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Package> {
        self.packages.values()
    }

    /// The project's own.
    pub(crate) fn own(&self) -> impl Iterator<Item = &Package> {
        self.iter().filter(|package| package.source.is_none())
    }

    /// The names of all packages that this one needs, directly or through others.
    pub(crate) fn reached_from(&self, name: &str) -> BTreeSet<&str> {
        let start = self.own().find(|package| package.name == name);
        let start = start.unwrap_or_else(|| panic!("no package of ours is called {name}"));
        let mut reached = BTreeSet::new();
        let mut to_visit = vec![&start.id];
        while let Some(id) = to_visit.pop() {
            for needed in &self.needs[id] {
                if reached.insert(self.packages[needed].name.as_str()) {
                    to_visit.push(needed);
                }
            }
        }
        reached
    }
}

/// What `.cargo/deny.toml` allows.
pub(crate) fn allowed_licences() -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Deny {
        licenses: Licenses,
    }
    #[derive(Deserialize)]
    struct Licenses {
        allow: BTreeSet<String>,
    }
    let text = std::fs::read_to_string(workspace().join(".cargo/deny.toml")).expect("the file is there");
    toml::from_str::<Deny>(&text).expect("it is as cargo-deny wants it").licenses.allow
}

/// The project's directory.
pub(crate) fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}
