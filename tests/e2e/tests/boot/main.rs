//! `vmm boot`, from the command line to what the guest sees.

#![allow(missing_docs)]

mod console;
mod disks;
mod endings;
mod kernels;
mod refusals;
