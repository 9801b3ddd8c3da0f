//! The monitor: a machine on KVM, its memory, its processors, and how a kernel is started on it.
//!
//! This is the only crate that sees KVM, and within it only [`kvm`] does. Devices come from `vmm_devices`
//! and know nothing of it.

pub mod acpi;
pub mod boot;
pub mod description;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod mptable;
mod placement;
pub mod probe;
pub mod timeline;
pub mod vcpus;
pub mod x86;
