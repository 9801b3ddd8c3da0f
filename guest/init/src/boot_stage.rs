//! Tells the monitor how far the boot has come, by writing a stage number to its timer port.

use std::ffi::c_ulong;

/// I/O port on which the monitor takes boot stages, one byte each.
const PORT: u16 = 0x0a00;

/// Stage 1: the first instruction of user space.
const USER_SPACE: u8 = 1;

/// Set for the next program by an initramfs that has marked the stage already.
const MARKED: &str = "VMM_BOOT_STAGE";

/// Marks the first instruction of user space, unless an earlier program has. Without the monitor's port, or
/// without the right to touch it, nothing happens.
pub(crate) fn mark_user_space() {
    if std::env::var_os(MARKED).is_none() {
        write_port(PORT, USER_SPACE);
    }
}

/// The environment variable that tells the next program in PID 1 that the stage is marked.
pub(crate) fn marked_variable() -> (&'static str, &'static str) {
    (MARKED, "1")
}

/// Name of the variable to keep from the programs that run under PID 1.
pub(crate) const fn marked_name() -> &'static str {
    MARKED
}

fn write_port(port: u16, value: u8) {
    // SAFETY: ioperm takes numbers only, and changes nothing but this thread's right to use the port.
    let permit = |turn_on: i32| unsafe { libc::ioperm(c_ulong::from(port), 1, turn_on) };
    if permit(1) != 0 {
        return;
    }
    // SAFETY: the port was opened above, so the instruction does not fault; it touches no memory of ours.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    // Children would inherit the right, and the kernel would switch the I/O bitmap with every task.
    permit(0);
}
