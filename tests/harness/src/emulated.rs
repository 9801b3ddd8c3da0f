//! The emulated machine: QEMU with an AMD-V processor of its own making.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use nix::libc;

use crate::agent::init::{MAILBOX_SERIAL, PORT_NAME, ROOT_SERIAL};
use crate::child::die_with_thread;
use crate::image::Image;
use crate::image::initramfs;
use crate::link::ConsoleLog;

const CPUS: u32 = 2;
/// Room for a guest of 5 GiB. The emulator takes what is touched.
const MEMORY_MIB: u32 = 7168;
/// The translator executes `rep movsb` a byte at a time, which distorts every figure.
const CPU: &str = "max,-erms,-fsrm";
/// Messages on the emulated UART cost more than most of what they tell.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off";

/// File descriptors that the emulator inherits.
const AGENT_FD: i32 = 10;
const MAILBOX_FD: i32 = 11;
const INITRAMFS_FD: i32 = 12;

/// A running machine; dropping it ends it. All that it changed on its disk is lost.
pub(crate) struct Emulated {
    end: Option<mpsc::Sender<()>>,
    keeper: Option<thread::JoinHandle<()>>,
}

impl Emulated {
    /// Starts it; returns the stream to its agent too.
    pub(crate) fn start(
        image: &Image,
        agent: &Path,
        mailbox: &File,
        console: &ConsoleLog,
    ) -> anyhow::Result<(Self, File)> {
        let (near, far) = UnixStream::pair().context("cannot make a socket")?;
        let mut initramfs = tempfile::tempfile().context("cannot make a file")?;
        let program = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
        initramfs.write_all(&initramfs::archive(&image.modules, &program)?)?;
        let inherited = [
            (OwnedFd::from(far), AGENT_FD),
            (mailbox.try_clone()?.into(), MAILBOX_FD),
            (initramfs.into(), INITRAMFS_FD),
        ];
        let mut command = command(image);
        let console = console.clone();
        let (started, has_started) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        // The machine dies with the thread that started it, which therefore only waits.
        let keeper = thread::Builder::new().name("emulator".to_owned()).spawn(move || {
            match spawn(&mut command, &inherited, &console) {
                Ok(mut child) => {
                    drop(inherited);
                    let _ = started.send(Ok(()));
                    // It is an error that is awaited: that of the other side being gone.
                    let _ = ends.recv();
                    // It has nothing to lose; if it has ended already, there is nothing to kill.
                    let _ = child.kill();
                    let _ = child.wait();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        has_started.recv().context("the thread that starts the emulator is gone")??;
        Ok((Self { end: Some(end), keeper: Some(keeper) }, OwnedFd::from(near).into()))
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        self.end = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn spawn(command: &mut Command, inherited: &[(OwnedFd, i32)], console: &ConsoleLog) -> anyhow::Result<Child> {
    // Copies above the numbers that are wanted, so that none is overwritten before it is in its place.
    let mut copies = Vec::new();
    for (fd, wanted) in inherited {
        // SAFETY: the descriptor is open, and the new one has no other owner.
        let copy = unsafe {
            let copy = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64);
            nix::errno::Errno::result(copy)?;
            OwnedFd::from_raw_fd(copy)
        };
        copies.push((copy, *wanted));
    }
    let numbers: Vec<(i32, i32)> = copies.iter().map(|(fd, wanted)| (fd.as_raw_fd(), *wanted)).collect();
    let place = move || {
        for (fd, wanted) in &numbers {
            // SAFETY: this process is a copy about to become another program; it owns all its descriptors.
            nix::errno::Errno::result(unsafe { libc::dup2(*fd, *wanted) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(place) };
    die_with_thread(command);
    let mut child = command.spawn().context("cannot run the emulator")?;
    if let Some(output) = child.stdout.take() {
        console.follow(output);
    }
    if let Some(output) = child.stderr.take() {
        console.follow(output);
    }
    Ok(child)
}

fn command(image: &Image) -> Command {
    let mut command = Command::new(&image.qemu);
    let (cpus, memory) = (CPUS.to_string(), MEMORY_MIB.to_string());
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", &cpus, "-m", &memory])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .arg("-kernel")
        .arg(&image.kernel)
        .args(["-initrd", &format!("/dev/fd/{INITRAMFS_FD}"), "-append", CMDLINE])
        .args(["-chardev", &format!("socket,id=agent,fd={AGENT_FD}"), "-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    let root = format!("{},snapshot=on", option_value(&image.root));
    let mailbox = format!("/dev/fd/{MAILBOX_FD}");
    for (serial, file) in [(ROOT_SERIAL, root), (MAILBOX_SERIAL, mailbox)] {
        command
            .args([
                "-drive",
                &format!("if=none,id={serial},format=raw,cache=unsafe,discard=unmap,file={file}"),
            ])
            .args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
    }
    // What it writes to its disk goes to a file without a name; /tmp is memory on some machines.
    if let Some(directory) = image.root.parent() {
        command.env("TMPDIR", directory);
    }
    // What is typed to interrupt the command inside is not for the machine.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// QEMU's options are separated by commas; one in a value is doubled.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
