//! Pseudo-terminals.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::protocol::WindowSize;

/// Gives the command a new terminal and a session of its own; returns the terminal's other side.
pub(crate) fn attach(command: &mut Command, size: WindowSize) -> io::Result<File> {
    let OpenptyResult { master, slave } = openpty(Some(&winsize(size)), None)?;
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(slave);
    let lead = || {
        nix::unistd::setsid()?;
        // SAFETY: standard input is the terminal; the request takes an integer.
        nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(lead) };
    Ok(master.into())
}

/// Changes a terminal's size; its foreground processes are told.
pub(crate) fn resize(terminal: &impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = winsize(size);
    // SAFETY: the request reads a `winsize`, which lives across the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// The size of a terminal.
pub fn size(terminal: &impl AsFd) -> io::Result<WindowSize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes a `winsize`, which lives across the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    nix::errno::Errno::result(result)?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
