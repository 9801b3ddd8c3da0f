//! What reaches a guest from outside: signals and time.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use event_manager::{EventOps, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vmm_devices::console;
use vmm_machine::machine::Control;
use vmm_sys_util::epoll::EventSet;

use crate::console::size;

/// How long a guest has after its power button was pressed.
const GRACE: Duration = Duration::from_secs(10);

/// Why a guest was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// A signal of that number.
    Signal(i32),
    /// Its time was up.
    Timeout,
}

/// The signals that concern a guest, blocked: made before there are threads, so that only the event loop takes them.
pub(super) struct Signals(SignalFd);

impl Signals {
    pub(super) fn block() -> anyhow::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH]);
        signals.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&signals, flags).context("cannot listen for signals")?))
    }
}

/// Ends the guest on signals and when its time is up: first by its power button, then by cutting the power. It also
/// passes on the terminal's size.
pub(super) struct Watch {
    control: Control,
    signals: Signals,
    timer: TimerFd,
    why: Arc<OnceLock<Why>>,
    /// Whom the size of the terminal matters to.
    console: Option<Arc<console::Handle>>,
}

impl Watch {
    /// A watch, and where it says why it told the guest to end, if it did.
    pub(super) fn new(
        control: Control,
        signals: Signals,
        timeout: Option<Duration>,
        console: Option<Arc<console::Handle>>,
    ) -> anyhow::Result<(Self, Arc<OnceLock<Why>>)> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("cannot make a timer")?;
        let watch = Self { control, signals, timer, why: Arc::default(), console };
        if let Some(timeout) = timeout {
            watch.arm(timeout).context("cannot set the timer")?;
        }
        let why = Arc::clone(&watch.why);
        Ok((watch, why))
    }

    fn arm(&self, after: Duration) -> nix::Result<()> {
        // A timer of zero would never go off.
        let after = TimeSpec::from_duration(after.max(Duration::from_nanos(1)));
        self.timer.set(Expiration::OneShot(after), TimerSetTimeFlags::empty())
    }

    /// Asks the guest to shut down; the second time, it is not asked.
    fn end(&self, why: Why) {
        if self.why.set(why).is_err() || self.arm(GRACE).is_err() {
            self.control.stop();
        } else {
            self.control.press_power_button();
        }
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.timer.as_fd().as_raw_fd() {
            // Fails only where the timer was set anew in the meantime.
            let _ = self.timer.wait();
            self.end(Why::Timeout);
        } else if let Ok(Some(signal)) = self.signals.0.read_signal() {
            let number = signal.ssi_signo.cast_signed();
            if number != Signal::SIGWINCH as i32 {
                self.end(Why::Signal(number));
            } else if let Some(console) = &self.console {
                console.resize(size());
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.signals.0.as_raw_fd(), self.timer.as_fd().as_raw_fd()] {
            // Only a dead loop refuses, and then nothing works.
            let _ = ops.add(Events::new_raw(fd, EventSet::IN));
        }
    }
}
