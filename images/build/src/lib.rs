//! Makes root file systems and disk images.
//!
//! A [`tree::Tree`] describes a file system in memory; [`erofs`] writes it as a read-only image, `ext4` as a
//! writable one. `busybox` makes the tree of a small system to try things out with.

#![forbid(unsafe_code)]

pub mod erofs;
mod sparse;
pub mod tree;
