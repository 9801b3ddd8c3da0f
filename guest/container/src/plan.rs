//! What a container is to be: plain data, with nothing left to decide.
//!
//! The fields follow the OCI runtime-spec (`config.json`), in the shape that carrying them out needs; a runtime-spec
//! configuration converts into a plan without loss of anything that is supported.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Which namespaces are its own.
    pub namespaces: Namespaces,
    /// What its `/` is.
    pub root: Root,
    /// What is mounted below `/`, in this order.
    pub mounts: Vec<Mount>,
    /// Device nodes made in `/dev` beside the usual ones (null, zero, full, random, urandom, tty, ptmx).
    pub devices: Vec<Device>,
    /// Paths that cannot be read: covered by an empty directory or by `/dev/null`.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name; needs a UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name; needs a UTS namespace.
    pub domainname: Option<String>,
    /// Kernel parameters by their dotted name; only those that belong to a namespace of the container.
    pub sysctls: BTreeMap<String, String>,
    /// Its control group.
    pub cgroup: Option<CgroupPlan>,
    /// Whether a small init of ours is process 1, reaping and forwarding signals, with the workload as its child.
    pub init: bool,
    /// The workload.
    pub process: Process,
}

/// Which namespaces are new, shared or joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Mounts.
    pub mount: Namespace,
    /// Processes.
    pub pid: Namespace,
    /// Host and domain name.
    pub uts: Namespace,
    /// System V IPC and POSIX message queues.
    pub ipc: Namespace,
    /// Network.
    pub network: Namespace,
    /// The view of the control group hierarchy.
    pub cgroup: Namespace,
    /// Monotonic and boot-time clocks.
    pub time: Namespace,
    /// Users; a new one has these mappings.
    pub user: UserNamespace,
}

/// How one namespace comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// The one of the process that makes the container.
    Host,
    /// One of its own.
    New,
    /// The one that this file stands for, such as `/proc/PID/ns/net`.
    Path(PathBuf),
}

/// How the user namespace comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserNamespace {
    /// The one of the process that makes the container.
    Host,
    /// One of its own with these mappings. With more than one mapping, or another's id, without privileges,
    /// `newuidmap` and `newgidmap` write them.
    New {
        /// User ids.
        uids: Vec<IdMap>,
        /// Group ids.
        gids: Vec<IdMap>,
    },
    /// The one that this file stands for.
    Path(PathBuf),
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside the container.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// A container's `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The host's own, as it is: no root of its own, no mounts, nothing masked. For the rung without isolation.
    Host,
    /// A directory.
    Directory {
        /// Its path.
        path: PathBuf,
        /// Whether it cannot be written.
        readonly: bool,
    },
    /// An overlay of unpacked layers.
    Overlay {
        /// The layers, topmost first.
        lower: Vec<PathBuf>,
        /// Writable layer: `None` for a read-only root.
        upper: Option<Upper>,
    },
}

/// The writable layer of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// Directories on one file system, which exist: what is written, and overlayfs's own work directory.
    Directory {
        /// What is written.
        upper: PathBuf,
        /// Overlayfs's work directory.
        work: PathBuf,
    },
    /// In memory, gone with the container; at most this many bytes (`None`: half of memory).
    Memory {
        /// Limit in bytes.
        size: Option<u64>,
    },
}

/// Something mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where: absolute, resolved inside the container's root and never outside it.
    pub target: PathBuf,
    /// What.
    pub kind: MountKind,
    /// `ro`.
    pub readonly: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// Whether mounts go on between host and container (`rprivate` unless said otherwise).
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Its path on the host.
        source: PathBuf,
        /// Whether what is mounted below it comes along.
        recursive: bool,
        /// Where the target is an empty directory of the root: whether what the root has there is copied into the
        /// source first, as for a new volume.
        copy_up: bool,
    },
    /// A file whose content is given, such as `/etc/hostname`: kept in memory, writable unless `readonly`.
    File {
        /// Its content.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A file system in memory.
    Tmpfs {
        /// Limit in bytes.
        size: Option<u64>,
        /// Permission bits of its root.
        mode: Option<u32>,
    },
    /// `/proc` of the container's PID namespace.
    Proc,
    /// `/sys`; without a network namespace of its own in a user namespace, a bind of the host's.
    Sysfs,
    /// Message queues of the IPC namespace.
    Mqueue,
    /// The control group hierarchy as the container sees it.
    Cgroup,
    /// `/dev`: a tmpfs with the usual nodes and links, `/dev/pts` of its own and `/dev/console` with a terminal.
    Dev {
        /// Limit of `/dev/shm` in bytes (Docker's default: 64 MiB).
        shm_size: u64,
    },
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// Host to container.
    Slave,
    /// Both ways.
    Shared,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub path: PathBuf,
    /// Block rather than character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
}

/// A program to run in a container: its main one, or one more (`exec`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments. A program without a slash is looked for in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made if it is missing.
    pub cwd: PathBuf,
    /// Who runs it.
    pub user: User,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `/proc/self/oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// A terminal of its own, of this size (columns, rows), as its three standard streams.
    pub terminal: Option<(u16, u16)>,
    /// Landlock rules as an extra, where the kernel has it: only these paths can be written (`None`: no rules).
    pub landlock_writable: Option<Vec<PathBuf>>,
}

/// Who runs a program, in the container's ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Who.
    pub who: Who,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Groups beside those that the user database of the image gives.
    pub additional_gids: Vec<u32>,
}

/// A user by number, or as the image's `/etc/passwd` and `/etc/group` know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// User and group id.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// Docker's `USER[:GROUP]`, each a name or a number, looked up inside the container's root; supplementary
    /// groups and `HOME` come from there too.
    Lookup(String),
}

/// Capability sets by name (`CAP_CHOWN`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Capabilities {
    /// What a process can ever get by executing files.
    pub bounding: Vec<String>,
    /// What it can do.
    pub effective: Vec<String>,
    /// What it can make effective.
    pub permitted: Vec<String>,
    /// What executed files can inherit.
    pub inheritable: Vec<String>,
    /// What executed files inherit without having capabilities themselves.
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Name, such as `nofile`.
    pub name: String,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// A system call filter in the terms of the OCI runtime-spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to calls that no rule names.
    pub default_action: SeccompAction,
    /// The errno of `default_action`, where that is an error (`EPERM` if not given).
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    /// Rules.
    #[serde(default)]
    pub syscalls: Vec<SeccompRule>,
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompAction {
    /// It is let through.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// It fails with an errno.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// It is logged and let through.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// The thread is killed.
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// The process is killed.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The process gets SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// A tracer decides.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
}

/// A rule of a filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompRule {
    /// Names of system calls; those that this architecture lacks are passed over.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: SeccompAction,
    /// The errno, where the action is an error.
    #[serde(default)]
    pub errno_ret: Option<u32>,
    /// Conditions on arguments, all of which must hold.
    #[serde(default)]
    pub args: Vec<SeccompArg>,
}

/// A condition on an argument of a system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompArg {
    /// Which argument, from 0.
    pub index: u32,
    /// What it is compared with, or the mask of `MaskedEqual`.
    pub value: u64,
    /// What it is compared with under the mask.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: SeccompOperator,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompOperator {
    /// `!=`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `<`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `<=`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `==`
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `>=`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `>`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == value_two`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A container's control group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// Name of the group, below the one that the maker may manage; one path component.
    pub name: String,
    /// What the container may use.
    pub resources: Resources,
}

/// What a container may use. `None` is no limit of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Resources {
    /// CPU time: how many microseconds in each `cpu_period_us`.
    pub cpu_quota_us: Option<u64>,
    /// Period of `cpu_quota_us` in microseconds (100 000 if not given).
    pub cpu_period_us: Option<u64>,
    /// `cpu.weight`, 1 to 10 000.
    pub cpu_weight: Option<u64>,
    /// CPUs that it may run on, such as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    pub cpuset_mems: Option<String>,
    /// `memory.max` in bytes.
    pub memory_max: Option<u64>,
    /// `memory.high` in bytes.
    pub memory_high: Option<u64>,
    /// `memory.low` in bytes.
    pub memory_low: Option<u64>,
    /// `memory.swap.max` in bytes: swap alone, not memory and swap.
    pub swap_max: Option<u64>,
    /// `pids.max`.
    pub pids_max: Option<u64>,
    /// `io.weight`, 1 to 10 000.
    pub io_weight: Option<u64>,
    /// `io.max` per device.
    pub io_max: Vec<IoMax>,
    /// Device access: `None` leaves it as it is, a list is all that is allowed.
    pub devices: Option<Vec<DeviceRule>>,
}

/// Limits of one block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct IoMax {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read per second.
    pub read_bps: Option<u64>,
    /// Bytes written per second.
    pub write_bps: Option<u64>,
    /// Reads per second.
    pub read_iops: Option<u64>,
    /// Writes per second.
    pub write_iops: Option<u64>,
}

/// Devices that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Block (`Some(true)`), character (`Some(false)`) or both.
    pub block: Option<bool>,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// Nodes may be made.
    pub mknod: bool,
}
