//! `vmm rootfs`: root file systems to try things out with.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use vmm_images_build::busybox::Busybox;
use vmm_images_build::rootfs::{self, Format};
use vmm_images_build::system;
use vmm_images_build::tree::Timestamp;

use crate::guest_init::GUEST_INIT;
use crate::hint::Hinted;
use crate::size::parse_size;

/// Least size of an ext4 image in bytes: room for a small program and its data.
const DEFAULT_SIZE: u64 = 512 << 20;

/// Make root file systems to try things out with.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm rootfs make                               a read-only system; prints the path of its image
  vmm boot --rootfs \"$(vmm rootfs make)\"        boot it")]
pub(crate) struct Rootfs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the image of a small busybox system.
    Make(Make),
}

/// Make the image of a small busybox system, and print its path.
///
/// Its init runs what comes after ` -- ` on the kernel command line, or else /etc/vmm/rc, or else a shell on the
/// console, and powers the machine off when that ends. Several words are a program and its arguments; a single one,
/// maybe in double quotes, is a line for the shell. The busybox is this system's own if it is static, else the
/// one in its package busybox-static.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm rootfs make
  vmm rootfs make --format ext4 --size 1G
  vmm rootfs make --busybox ./busybox -o root.erofs")]
struct Make {
    /// Kind of image: erofs is read-only, ext4 can be written to.
    #[arg(long, value_enum, default_value_t = ImageFormat::Erofs)]
    format: ImageFormat,
    /// Size of an ext4 image, rounded up to a multiple of 128 MiB; unused space takes no room on the disk
    /// [default: 512M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// A static busybox, in place of the system's.
    #[arg(long, value_name = "PATH")]
    busybox: Option<PathBuf>,
    /// Where the image goes [default: images/busybox.FORMAT in the data directory].
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImageFormat {
    Erofs,
    Ext4,
}

impl Rootfs {
    /// Carries out the command; `home` is `$VMM_HOME`.
    pub(crate) fn run(self, home: &Path) -> anyhow::Result<()> {
        match self.action {
            Action::Make(options) => options.run(home),
        }
    }
}

impl Make {
    fn run(self, home: &Path) -> anyhow::Result<()> {
        let (format, suffix) = match (self.format, self.size) {
            (ImageFormat::Erofs, None) => (Format::Erofs, "erofs"),
            (ImageFormat::Erofs, Some(_)) => {
                bail!("--size needs --format ext4: EROFS is as large as its content")
            }
            (ImageFormat::Ext4, size) => (Format::Ext4 { size: size.unwrap_or(DEFAULT_SIZE) }, "ext4"),
        };
        let busybox = self.busybox(&home.join("cache"))?;
        let tree = system::tree(&busybox, GUEST_INIT, Timestamp::default())
            .context("cannot put the root file system together")?;
        let output = self.output.unwrap_or_else(|| home.join("images").join(format!("busybox.{suffix}")));
        rootfs::write(&tree, format, &output)?;
        writeln!(io::stdout(), "{}", output.display())?;
        Ok(())
    }

    fn busybox(&self, cache: &Path) -> anyhow::Result<Busybox> {
        let found = if let Some(path) = &self.busybox {
            Busybox::open(path)
        } else {
            let search_path = env::var_os("PATH").unwrap_or_default();
            Busybox::find(&search_path, cache, nix::unistd::geteuid().is_root())
        };
        Ok(found.map_err(|error| Hinted::new(error.hint(), error))?)
    }
}
