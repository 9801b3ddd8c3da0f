//! How far a machine has come, and when: what `--timings` prints, and where a boot that failed had got to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// A guest may mark stages as often as it likes; a boot has few.
const MARKS_MAX: usize = 64;

/// The stages of a boot, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading arguments and opening files.
    Prepare,
    /// Finding out what this host's KVM can do.
    Probe,
    /// Making guest memory.
    Memory,
    /// Making the VM and its interrupt controllers.
    Vm,
    /// Making devices.
    Devices,
    /// Loading kernel and initrd, and writing what describes the machine to them.
    Kernel,
    /// Making vCPUs.
    Vcpus,
    /// Starting threads.
    Start,
    /// The guest's kernel runs.
    GuestKernel,
    /// The guest's first user-space program runs.
    UserSpace,
    /// The guest says so: a number of its own (see [`vmm_devices::stage`]).
    Guest(u8),
    /// The guest is over.
    End,
}

/// The moment at which a stage began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which stage.
    pub stage: Stage,
    /// When.
    pub at: Instant,
}

/// The stages passed so far. Clones share them.
#[derive(Debug, Clone)]
pub struct Timeline(Arc<Mutex<Vec<Mark>>>);

impl Timeline {
    /// A timeline that begins now, with [`Stage::Prepare`].
    pub fn start() -> Self {
        let timeline = Self(Arc::default());
        timeline.enter(Stage::Prepare);
        timeline
    }

    /// Marks that `stage` begins now.
    pub fn enter(&self, stage: Stage) {
        let mut marks = self.lock();
        // The end is told in any case.
        if marks.len() < MARKS_MAX || stage == Stage::End {
            marks.push(Mark { stage, at: Instant::now() });
        }
    }

    /// All marks, oldest first.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().clone()
    }

    /// The latest stage.
    pub fn stage(&self) -> Stage {
        self.lock().last().map_or(Stage::Prepare, |mark| mark.stage)
    }

    /// Whether `stage` was reached.
    pub fn reached(&self, stage: Stage) -> bool {
        self.lock().iter().any(|mark| mark.stage == stage)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_order_and_a_chatty_guest_is_cut_short() {
        let timeline = Timeline::start();
        timeline.enter(Stage::GuestKernel);
        for _ in 0..1000 {
            timeline.enter(Stage::Guest(7));
        }
        timeline.enter(Stage::End);
        assert!(timeline.reached(Stage::GuestKernel) && !timeline.reached(Stage::UserSpace));
        assert_eq!(timeline.stage(), Stage::End);
        let marks = timeline.marks();
        assert_eq!(marks.len(), MARKS_MAX + 1);
        assert!(marks.is_sorted_by_key(|mark| mark.at));
    }
}
