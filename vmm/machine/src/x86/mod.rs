//! What is particular to x86: the state a processor starts in.

pub mod cpuid;
pub mod start;
