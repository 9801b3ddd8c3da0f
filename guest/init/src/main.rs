//! PID 1 of a guest, in one static binary with three roles:
//!
//! - **In an initramfs** (it finds `/etc/modules.load`): load the listed modules, wait for the root device,
//!   mount it, switch to it and execute the real init ([`initramfs`]).
//! - **As the system's init** (any other PID 1): mount the kernel's file systems, run one command on the
//!   console, reap what is orphaned, and power off when the command ends ([`system`]).
//! - **As `poweroff`, `reboot` or `halt`** (by the name it is called by, or by its first argument): ask PID 1 to
//!   shut down ([`applet`]).
//!
//! A failure of PID 1 ends the process with one line on the console. The kernel answers with a panic, which the
//! monitor reports as a crash of the guest; nothing here waits without a limit.

mod applet;
mod boot_stage;
mod cmdline;
mod console;
mod initramfs;
mod inotify;
mod loopback;
mod modules;
mod mounts;
mod power_button;
mod report;
mod root_device;
mod shutdown;
mod switch_root;
mod system;

use std::path::Path;
use std::process::ExitCode;

use crate::report::complain;

/// Present only in the initramfs made for kernels with modules; see [`modules`].
const MODULE_LIST: &str = "/etc/modules.load";

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    if is_init {
        boot_stage::mark_user_space();
        report::install_panic_hook();
    }

    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if !is_init {
        return applet::run(&words);
    }
    if Path::new(MODULE_LIST).exists() {
        let Err(error) = initramfs::run(Path::new(MODULE_LIST));
        complain(&error);
    } else {
        let Err(error) = system::run();
        complain(&error);
    }
    shutdown::drain_console();
    ExitCode::FAILURE
}
