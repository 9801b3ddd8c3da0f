//! `vmm kernel`: the kernels that guests run.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use vmm_images_kernel::build::{self, BuildOptions};
use vmm_images_kernel::fetch::{self, FetchOptions};
use vmm_images_kernel::store::{Origin, Store, StoredKernel};

use crate::hint::Hinted;

/// Build, fetch and choose the kernels that guests run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm kernel fetch                   the distribution's cloud kernel, in seconds
  vmm kernel build                   a small kernel that starts faster, in minutes
  vmm kernel ls                      what there is; * marks the default
  vmm kernel default 6.12.117-vmm    what `vmm boot` runs unless told otherwise")]
pub(crate) struct Kernel {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the small guest kernel from source.
    Build(Build),
    /// Take the distribution's own kernel from its package.
    Fetch(Fetch),
    /// List kernels.
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Remove kernels.
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Choose the default kernel, or print its name.
    Default {
        /// The kernel that is to be the default.
        name: Option<String>,
    },
}

/// Build the small guest kernel from source: about seven minutes on two cores.
///
/// The source is the distribution's linux-source package. An interrupted build goes on where it stopped, and a
/// kernel that has been built already is not built again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm kernel build
  vmm kernel build --source ~/src/linux --name mine
  vmm kernel build --source linux-6.12.9.tar.xz --default")]
struct Build {
    /// A kernel source tree or tarball, in place of the distribution's package.
    #[arg(long, value_name = "DIR|TARBALL")]
    source: Option<PathBuf>,
    /// A configuration fragment, in place of the built-in one; what it does not name is off.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The kernel's name here [default: its release].
    #[arg(long)]
    name: Option<String>,
    /// How many compilers run at a time [default: the number of processors].
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Build even if the same kernel is there.
    #[arg(long)]
    force: bool,
    /// Make it the default.
    #[arg(long)]
    default: bool,
}

/// Take the distribution's own kernel, and the modules that guests need, from its package.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm kernel fetch
  vmm kernel fetch linux-image-amd64
  vmm kernel fetch --from linux-image-6.12.9-cloud-amd64.deb")]
struct Fetch {
    /// The package [default: linux-image-cloud-amd64].
    package: Option<String>,
    /// A package file that is here already.
    #[arg(long, value_name = "FILE.deb", conflicts_with = "package")]
    from: Option<PathBuf>,
    /// The kernel's name here [default: its release].
    #[arg(long)]
    name: Option<String>,
    /// Make it the default.
    #[arg(long)]
    default: bool,
}

#[derive(Debug, Args)]
struct Ls {
    /// How to print the list.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Print names only.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A kernel as programs see it.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    release: &'a str,
    default: bool,
    origin: &'a Origin,
    image: PathBuf,
    modules: bool,
    size_bytes: u64,
    created: String,
}

impl Kernel {
    /// Carries out the command; `home` is `$VMM_HOME`.
    pub(crate) fn run(self, home: &Path) -> anyhow::Result<()> {
        let store = Store::new(home.join("kernels"));
        match self.action {
            Action::Build(options) => options.run(&store, &home.join("cache")),
            Action::Fetch(options) => options.run(&store),
            Action::Ls(options) => options.run(&store),
            Action::Rm { names } => remove(&store, &names),
            Action::Default { name } => choose(&store, name.as_deref()),
        }
    }
}

impl Build {
    fn run(self, store: &Store, cache: &Path) -> anyhow::Result<()> {
        let options = BuildOptions {
            source: self.source,
            config: self.config,
            name: self.name,
            jobs: self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
            force: self.force,
            root: is_root(),
        };
        let bar = progress_bar();
        let result = build::build(store, cache, &options, &mut |progress| show(&bar, progress));
        bar.finish_and_clear();
        let kernel = result.map_err(|error| Hinted::new(error.hint(), error))?;
        finish(store, &kernel, self.default)
    }
}

impl Fetch {
    fn run(self, store: &Store) -> anyhow::Result<()> {
        let options =
            FetchOptions { from: self.from, package: self.package, name: self.name, root: is_root() };
        let bar = progress_bar();
        let result = fetch::fetch(store, &options, &mut |progress| match progress {
            fetch::Progress::Download(package) => spin(&bar, format!("downloading {package}")),
            fetch::Progress::Unpack => spin(&bar, "unpacking".to_owned()),
        });
        bar.finish_and_clear();
        let kernel = result.map_err(|error| Hinted::new(error.hint(), error))?;
        finish(store, &kernel, self.default)
    }
}

impl Ls {
    fn run(self, store: &Store) -> anyhow::Result<()> {
        let kernels = store.list()?;
        let default = store.default_name();
        let rows: Vec<Row<'_>> = kernels.iter().map(|kernel| Row::new(kernel, default.as_deref())).collect();
        let mut output = io::stdout().lock();
        if self.quiet {
            for row in rows {
                writeln!(output, "{}", row.name)?;
            }
        } else if matches!(self.format, Format::Json) {
            serde_json::to_writer_pretty(&mut output, &rows)?;
            writeln!(output)?;
        } else {
            write_table(&mut output, &rows)?;
        }
        Ok(())
    }
}

impl<'a> Row<'a> {
    fn new(kernel: &'a StoredKernel, default: Option<&str>) -> Self {
        Self {
            name: &kernel.name,
            release: &kernel.record.release,
            default: default == Some(&kernel.name),
            origin: &kernel.record.origin,
            image: kernel.image(),
            modules: kernel.modules().is_some(),
            size_bytes: kernel.bytes(),
            created: rfc3339(kernel.record.created_s),
        }
    }
}

fn write_table(output: &mut impl Write, rows: &[Row<'_>]) -> io::Result<()> {
    let width = rows.iter().map(|row| row.name.len()).chain(["NAME".len()]).max().unwrap_or(0);
    writeln!(output, "  {:width$}  {:>9}  {:10}  ORIGIN", "NAME", "SIZE", "CREATED")?;
    for row in rows {
        let mark = if row.default { '*' } else { ' ' };
        let origin = match row.origin {
            Origin::Built { source, .. } => format!("built from {source}"),
            Origin::Fetched { package, version } => format!("package {package} {version}"),
        };
        let size_mib = row.size_bytes.div_ceil(1 << 20);
        let day = &row.created[..10];
        writeln!(output, "{mark} {:width$}  {size_mib:>5} MiB  {day}  {origin}", row.name)?;
    }
    Ok(())
}

/// Removes every one that can be removed; the first failure is returned after that.
fn remove(store: &Store, names: &[String]) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    for name in names {
        if let Err(error) = store.remove(name) {
            outcome = outcome.and(Err(Hinted::new(error.hint(), error)));
        }
    }
    Ok(outcome?)
}

fn choose(store: &Store, name: Option<&str>) -> anyhow::Result<()> {
    let outcome = match name {
        Some(name) => store.set_default(name),
        None => store.get(None).map(|kernel| println!("{}", kernel.name)),
    };
    Ok(outcome.map_err(|error| Hinted::new(error.hint(), error))?)
}

/// Prints the new kernel's name, which is what a script wants of it.
fn finish(store: &Store, kernel: &StoredKernel, default: bool) -> anyhow::Result<()> {
    if default {
        store.set_default(&kernel.name)?;
    }
    writeln!(io::stdout(), "{}", kernel.name)?;
    Ok(())
}

/// A line on a terminal; nothing anywhere else.
fn progress_bar() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    ProgressBar::with_draw_target(None, target)
}

fn show(bar: &ProgressBar, progress: build::Progress) {
    match progress {
        build::Progress::Tools => spin(bar, "checking tools".to_owned()),
        build::Progress::Source => spin(bar, "getting the source".to_owned()),
        build::Progress::Unpack { done, total } => advance(bar, "unpacking", done >> 20, total >> 20, "MiB"),
        build::Progress::Configure => spin(bar, "configuring".to_owned()),
        build::Progress::Compile { done, total } => advance(bar, "compiling", done, total, "objects"),
        build::Progress::Install => spin(bar, "storing".to_owned()),
    }
}

fn spin(bar: &ProgressBar, message: String) {
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
}

fn advance(bar: &ProgressBar, message: &'static str, done: u64, total: u64, unit: &str) {
    if bar.message() != message {
        bar.disable_steady_tick();
        // The template is ours; the default one is no worse than failing over it.
        let template = format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {unit} {{elapsed}}");
        bar.set_style(
            ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(message);
    }
    bar.set_length(total);
    bar.set_position(done);
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Seconds since 1970 as a UTC time of RFC 3339, by the civil calendar of the proleptic Gregorian rules.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_487_438, "2026-11-24T02:30:38Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
