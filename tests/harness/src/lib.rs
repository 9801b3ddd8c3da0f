//! The emulated KVM host, and how to run things in it.
//!
//! Where a machine's own KVM cannot run Linux, everything about VMs is proven on an emulated AMD-V machine: QEMU
//! translates its instructions, a stock Debian kernel with `kvm-amd` runs on it, and inside that the monitor boots
//! guests through real nested SVM.
//!
//! - [`host`]: a host, emulated or the machine itself: runs commands there and copies files both ways.
//! - [`agent`]: the other end, inside the host.
//! - [`workshop`]: the project's own programs, built for use in a host.
//!
//! `protocol` and `transfer` are what both ends agree on; `image` makes what the emulated machine boots.

pub mod agent;
mod child;
mod emulated;
pub mod host;
mod image;
mod link;
mod protocol;
pub mod pty;
mod transfer;
pub mod workshop;

pub use protocol::{Exec, Exit, WindowSize};
