//! KVM, behind types that say only what a monitor needs. All `unsafe` of this crate that talks to KVM is
//! here.

mod state;
mod vcpu;
mod vm;

pub use vcpu::{Exit, Kicker, Vcpu};
pub use vm::{Hypervisor, Vm};

/// A KVM operation failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which node.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel's KVM lacks something that the monitor cannot do without.
    #[error("this kernel's KVM lacks {capability}")]
    Missing {
        /// What it lacks, by its name in the KVM API.
        capability: &'static str,
    },
    /// An ioctl failed.
    #[error("{operation} failed")]
    Ioctl {
        /// What was asked of KVM.
        operation: &'static str,
        /// Why it refused.
        source: std::io::Error,
    },
}

/// Names the operation that an ioctl's error belongs to.
fn ioctl(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Ioctl { operation, source: std::io::Error::from_raw_os_error(error.errno()) }
}
