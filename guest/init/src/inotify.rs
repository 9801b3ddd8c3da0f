//! Waiting for names to appear in a directory, by event.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A watch on directories, readable when something was created in one of them.
pub(crate) struct CreationWatch {
    inotify: Inotify,
}

impl CreationWatch {
    /// A watch on no directory yet.
    pub(crate) fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify })
    }

    /// Watches `directory` too. Doing so twice is harmless.
    pub(crate) fn add(&self, directory: &Path) -> nix::Result<()> {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        self.inotify.add_watch(directory, flags).map(drop)
    }

    /// Discards what is pending; the caller looks at the directory itself.
    pub(crate) fn drain(&self) {
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for CreationWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Waits until `path` exists. Returns whether it does when `limit` has passed at the latest.
pub(crate) fn wait_for(path: &Path, limit: Duration) -> nix::Result<bool> {
    // Watch first, look then: a name that appears in between is not missed.
    let watch = CreationWatch::new()?;
    watch.add(path.parent().unwrap_or(Path::new("/")))?;
    let deadline = Instant::now() + limit;
    loop {
        watch.drain();
        if path.exists() {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], poll_timeout(left)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// `left` as poll takes it: milliseconds, rounded up so that the last one is not spent in a busy loop.
pub(crate) fn poll_timeout(left: Duration) -> PollTimeout {
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_there_is_found_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vda");
        std::fs::write(&path, "").unwrap();
        assert_eq!(wait_for(&path, Duration::ZERO), Ok(true));
    }

    #[test]
    fn a_name_that_appears_later_ends_the_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vda");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_for(&path, Duration::from_secs(60)));
            std::fs::write(directory.path().join("other"), "").unwrap();
            std::fs::write(&path, "").unwrap();
            assert_eq!(waiter.join().unwrap(), Ok(true));
        });
    }

    #[test]
    fn the_wait_has_an_end() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(wait_for(&directory.path().join("vda"), Duration::from_millis(1)), Ok(false));
    }

    #[test]
    fn a_remainder_of_a_millisecond_counts_as_one() {
        assert_eq!(poll_timeout(Duration::from_micros(1)), PollTimeout::from(1_u8));
    }
}
