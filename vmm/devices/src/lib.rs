//! Device models of the monitor and the buses that reach them.
//!
//! Nothing here knows of KVM: a device sees guest memory, queues, and event descriptors that somebody
//! wired to an interrupt. That is what makes every device testable with a mock queue ([`testkit`]) and
//! fuzzable without privileges.
//!
//! Everything a guest writes is hostile. Lengths and addresses are checked once, where a descriptor chain
//! is taken off its ring ([`virtio::queue`]); devices only ever see chains that lie in guest memory.

pub mod balloon;
pub mod block;
pub mod bus;
pub mod console;
pub mod event;
#[cfg(test)]
mod hostile;
pub mod i8042;
pub mod input;
pub mod interrupt;
pub mod output;
pub mod power;
pub mod pvpanic;
pub mod reactor;
pub mod rng;
pub mod rtc;
pub mod serial;
pub mod stage;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod virtio;

/// Guest physical memory as every device sees it.
pub type Memory = std::sync::Arc<vm_memory::GuestMemoryMmap<()>>;
