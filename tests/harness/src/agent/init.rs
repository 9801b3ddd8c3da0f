//! The first process of the emulated host.
//!
//! It loads the modules, says [`Message::Hello`], and waits for [`Message::Begin`]. Up to there it has only read
//! its initramfs: no disk has been touched, nor has any time been looked at. Then it makes the disk its root,
//! starts the agent, and reaps what other processes leave behind.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::time::TimeSpec;
use nix::sys::wait::wait;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{ForkResult, Pid, chdir, chroot, fork, sethostname, setsid};

use vmm_machine::kvm::{Hypervisor, Vm};
use vmm_machine::memory::{self, Backing};

use super::{command, serve};
use crate::protocol::{self, Frame, HOST, Message};

/// Lists the modules in the initramfs in the order to load them.
pub(crate) const MODULES_LIST: &str = "/etc/modules.load";
/// The name of the agent's port.
pub(crate) const PORT_NAME: &str = "vmm.agent";
/// Serial numbers of the host's disks.
pub(crate) const ROOT_SERIAL: &str = "root";
/// See [`ROOT_SERIAL`].
pub(crate) const MAILBOX_SERIAL: &str = "mailbox";

/// Where the root disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";

/// File systems of the host: type, place below the root, options.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=666,mode=620"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", ""),
];

/// Never returns: the host ends with it.
pub fn run() -> ! {
    match up() {
        Ok(()) => eprintln!("host: the agent has ended"),
        Err(error) => eprintln!("host: {error}"),
    }
    // Nothing is left to do if even this fails; the kernel then panics, which ends the machine as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}

fn up() -> io::Result<()> {
    for (kind, place, options) in &MOUNTS[..3] {
        fs::create_dir_all(place)?;
        attach(kind, place, options)?;
    }
    load_modules()?;
    let _vm = hold_vm();
    let mut port = File::options().read(true).write(true).open(port()?)?;
    say(&mut port, Message::Hello)?;
    let time_ns = match protocol::read(&mut port)? {
        Some((HOST, Frame::Message(Message::Begin { time_ns }))) => time_ns,
        other => return Err(io::Error::other(format!("{other:?} is no beginning"))),
    };
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(Duration::from_nanos(time_ns)))?;
    let mailbox =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(disk(MAILBOX_SERIAL)?)?;
    change_root(&disk(ROOT_SERIAL)?)?;
    for (name, value) in command::usual_environment() {
        // SAFETY: this process has one thread.
        unsafe { env::set_var(name, value) };
    }
    sethostname("kvm-host")?;
    // SAFETY: this process has one thread, so that the child can go on as it is.
    match unsafe { fork() }? {
        ForkResult::Child => {
            setsid()?;
            raise_loopback()?;
            serve(port, mailbox)?;
            std::process::exit(0)
        }
        ForkResult::Parent { child } => {
            drop((port, mailbox));
            reap_until(child)
        }
    }
}

fn say(port: &mut File, message: Message) -> io::Result<()> {
    protocol::write(port, HOST, &Frame::Message(message))
}

fn attach(kind: &str, place: &str, options: &str) -> io::Result<()> {
    let named = |errno: Errno| io::Error::other(format!("cannot mount {place}: {errno}"));
    mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options)).map_err(named)
}

/// Loads what the initramfs holds. A machine without AMD-V lacks the use for a module, which is no failure here.
fn load_modules() -> io::Result<()> {
    for path in fs::read_to_string(MODULES_LIST).map_err(|error| about(MODULES_LIST, &error))?.lines() {
        let file = File::open(path).map_err(|error| about(path, &error))?;
        if let Err(errno) = finit_module(file, c"", ModuleInitFlags::empty())
            && errno != Errno::EEXIST
        {
            eprintln!("host: {path}: {errno}");
        }
    }
    Ok(())
}

/// Makes a virtual machine that stays as long as the host.
///
/// The kernel patches a jump in its scheduler with the first one and the last one. The emulator now and then goes on
/// executing what was there in between, forever; so there is no other first one, and no last.
fn hold_vm() -> Option<Vm> {
    let held = Hypervisor::open().and_then(|hypervisor| {
        let memory = memory::create(1 << 20, Backing::Pages).ok();
        memory.map(|memory| hypervisor.create_vm(memory)).transpose()
    });
    match held {
        Ok(vm) => vm,
        Err(error) => {
            eprintln!("host: {error}");
            None
        }
    }
}

/// The agent's serial port.
fn port() -> io::Result<PathBuf> {
    wait_for("/sys/class/virtio-ports", "name", PORT_NAME)
}

/// The disk with this serial number.
fn disk(serial: &str) -> io::Result<PathBuf> {
    wait_for("/sys/block", "serial", serial)
}

/// The device whose `attribute` reads `value`, which its driver may still be about to make.
fn wait_for(class: &str, attribute: &str, value: &str) -> io::Result<PathBuf> {
    let changes = Inotify::init(InitFlags::empty())?;
    changes.add_watch("/dev", AddWatchFlags::IN_CREATE)?;
    loop {
        if let Some(path) = named(class, attribute, value)? {
            return Ok(path);
        }
        changes.read_events()?;
    }
}

fn named(class: &str, attribute: &str, value: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(class).map_err(|error| about(class, &error))? {
        let entry = entry?;
        // Not every device has the attribute.
        if fs::read_to_string(entry.path().join(attribute)).is_ok_and(|read| read.trim() == value) {
            let path = Path::new("/dev").join(entry.file_name());
            return Ok(path.exists().then_some(path));
        }
    }
    Ok(None)
}

fn about(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Makes a disk the root, and mounts what belongs into it.
fn change_root(disk: &Path) -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    mount(Some(disk), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)?;
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place)?;
        attach(kind, place, options)?;
    }
    Ok(())
}

fn raise_loopback() -> io::Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip: {status}"))) }
}

/// Collects the exit statuses of all processes that have nobody else, up to the agent's.
fn reap_until(agent: Pid) -> io::Result<()> {
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(agent) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
