//! The one voice of PID 1: lines on the console.

use std::fmt::Display;
use std::io::Write;

/// Prints one line about something that went wrong. A console that cannot be written to is no reason to stop.
pub(crate) fn complain(message: &dyn Display) {
    // One write, so that the line is not mixed with the kernel's.
    let line = format!("vmm-init: {message}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Makes a defect of ours end as a crash of the guest: one line, then the end of PID 1.
///
/// Aborting would not do: the kernel ignores `SIGABRT` for PID 1.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        complain(panic);
        std::process::exit(101);
    }));
}
