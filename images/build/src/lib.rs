//! Makes root file systems and disk images.
//!
//! A [`tree::Tree`] describes a file system in memory; [`erofs`] writes it as a read-only image, [`ext4`] as a
//! writable one, and [`rootfs`] puts either into a file, whole or not at all. [`system`] is the tree of a small system
//! to try things out with, made of a [`busybox`].

#![forbid(unsafe_code)]

pub mod busybox;
pub mod erofs;
pub mod ext4;
pub mod rootfs;
mod sparse;
pub mod system;
pub mod tree;
