//! Opens what distributions ship and writes what kernels read.
//!
//! - [`compression`]: streams decompressed by what they are, not by what they are called, under a limit.
//! - [`deb`]: Debian packages, without `dpkg`.
//! - [`cpio`]: the archive format of an initramfs.
//! - [`packages`]: packages from wherever this system gets its own.
//!
//! Every input counts as hostile: sizes are bounded and paths cannot leave the directory they are meant for.

#![forbid(unsafe_code)]

pub mod compression;
pub mod cpio;
pub mod deb;
mod lz4;
pub mod packages;
