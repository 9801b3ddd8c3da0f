//! Containers: a process with namespaces of its own (what it sees) and a control group of its own (what it may use).
//!
//! The same library runs on the host and inside guests. Its input is a [`plan::Plan`]: plain data, complete, without
//! defaults of its own. Who makes the plan decides; this crate carries it out or says why it cannot.

pub mod plan;
