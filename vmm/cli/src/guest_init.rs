//! The guest's init, as `build.rs` built it.

/// A static program that is PID 1 in initramfs and root file systems alike.
pub(crate) const GUEST_INIT: &[u8] = include_bytes!(env!("VMM_GUEST_INIT"));
