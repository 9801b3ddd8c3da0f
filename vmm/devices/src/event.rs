//! What a guest tells the world outside its devices.

use std::sync::Arc;

/// Something the guest did that concerns the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// It switched the machine off.
    PowerOff,
    /// It asked for a reset, which is how kernels reboot.
    Reset,
    /// Its kernel panicked (pvpanic).
    Panicked,
    /// It reached a stage of its boot; see [`crate::stage`].
    Stage(u8),
}

/// Who hears of [`GuestEvent`]s. Called on a vCPU's thread, so it must not block.
pub type EventSink = Arc<dyn Fn(GuestEvent) + Send + Sync>;
