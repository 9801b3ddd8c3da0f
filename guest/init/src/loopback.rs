//! The network interface `lo`.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

nix::ioctl_write_ptr_bad!(
    /// Sets the flags of the interface that the request names.
    set_interface_flags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

/// Brings `lo` up; the kernel gives it its addresses. A kernel without network is no error.
pub(crate) fn bring_up() -> nix::Result<()> {
    let socket = match socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EAFNOSUPPORT) => return Ok(()),
        result => result?,
    };
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as libc::c_short },
    };
    // SAFETY: the request is a whole `ifreq` with a terminated name, and outlives the call.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }.map(drop)
}
