//! Guest kernels: what a kernel file is and can do, and where kernels come from.
//!
//! - [`open`]: makes any kernel file ready to boot. A bzImage's payload is unpacked once, on the host, because
//!   the guest's own decompressor is slow; later starts find it in a cache.
//! - [`image`] and [`facts`]: the parsing behind it, on plain byte slices.
//! - [`store`]: the kernels kept in `$VMM_HOME/kernels`.
//! - [`build`]: the tuned kernel, from the distribution's source package.
//! - [`fetch`]: the distribution's own kernel, with its modules.
//! - [`modules`] and [`initramfs`]: what a modular kernel needs to reach its root disk.

#![forbid(unsafe_code)]

pub mod build;
pub mod facts;
pub mod fetch;
mod hash;
pub mod image;
pub mod initramfs;
pub mod modules;
pub mod open;
pub mod store;
