//! The data that successive sessions share: the dirty log, the gate's epochs, the buffers of
//! checkpoints, and the figures. Only [`Live`], the proof that a session is the live one, gives
//! access to it.
//!
//! P4, P8: when a session takes pages from the dirty log, no other session gets them. A thread of
//! an ended session may still run: the system had suspended it, or a write to a dead link has just
//! returned. If it took pages from the log, the next session would not send them. [`Live`] holds
//! the lock under which sessions begin and end, so that a session cannot end between the check and
//! the use.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::LinkId;
use ft_core::pages::PageFrames;
use io_gate_host::Sealed;
use kemari_hypervisor::kvm::VmError;
use kemari_hypervisor::memory::{DirtyError, DirtyTracker};

use super::Engine;
use super::status::EngineStats;

/// Upper bound of the checkpoint buffers that are kept: as many checkpoints may be unacknowledged,
/// with one more being filled.
const SPARE: usize = 4;
/// Buffers larger than this are returned to the system.
pub(super) const SPARE_BYTES: usize = 64 << 20;

/// Guards the dirty log, and records which session may take from it. A thread that holds the
/// engine's state takes this lock to end a session. The only system calls under it are KVM's on the
/// log: one millisecond per GiB of changed pages. Nothing is sent under it, and the only lock taken
/// under it is that of the figures.
pub(super) struct Tracking(Mutex<Tracked>);

struct Tracked {
    live: Option<LinkId>,
    log: DirtyTracker,
    spare: Vec<(Vec<u64>, PageFrames)>,
}

/// This thread's session has ended: the thread has no more work for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session over link {} has ended", .0.0)]
pub(super) struct SessionEnded(LinkId);

impl Tracking {
    pub(super) fn new(log: DirtyTracker) -> Self {
        Self(Mutex::new(Tracked { live: None, log, spare: Vec::new() }))
    }

    /// Makes the session over `link` the live one. The caller holds the engine's state.
    pub(super) fn begin(&self, link: LinkId) {
        let mut tracked = self.lock();
        assert!(tracked.live.is_none(), "P4: a session begins when the one before it has ended");
        tracked.live = Some(link);
    }

    /// Ends the live session: after this call none of its threads takes pages or buffers. The
    /// caller holds the engine's state.
    pub(super) fn end(&self) {
        self.lock().live = None;
    }

    /// Returns pages to the log that were taken and cannot be sent, whether the session is live or
    /// not. A page that is marked once too often is only sent once too often.
    pub(super) fn give_back(&self, page_numbers: &[u64]) {
        self.lock().log.mark(page_numbers);
    }

    fn lock(&self) -> MutexGuard<'_, Tracked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proof that a session is live (see the module). Do not block while holding it.
pub(super) struct Live<'e> {
    tracked: MutexGuard<'e, Tracked>,
    engine: &'e Engine,
}

impl Engine {
    /// Returns the proof that the session over `link` is live. The session stays live as long as
    /// the proof is held.
    ///
    /// # Errors
    /// When the session has ended.
    pub(super) fn live(&self, link: LinkId) -> Result<Live<'_>, SessionEnded> {
        let tracked = self.tracking.lock();
        match tracked.live {
            Some(live) if live == link => Ok(Live { tracked, engine: self }),
            _ => Err(SessionEnded(link)),
        }
    }
}

impl Live<'_> {
    /// Makes KVM log the guest's writes.
    pub(super) fn start_log(&mut self) -> Result<(), VmError> {
        self.engine.machine.vm().start_dirty_log()
    }

    /// Marks all of memory as dirty.
    pub(super) fn mark_all(&mut self) {
        self.tracked.log.mark_all();
    }

    /// See [`DirtyTracker::collect`].
    pub(super) fn collect(&mut self) -> Result<Vec<u64>, DirtyError> {
        self.tracked.log.collect().map(<[u64]>::to_vec)
    }

    /// See [`DirtyTracker::collect_epoch`].
    pub(super) fn collect_epoch(&mut self, page_numbers: &mut Vec<u64>) -> Result<(), DirtyError> {
        self.tracked.log.collect_epoch(page_numbers)
    }

    /// Ends the gate's epoch. The device thread calls this with the vCPUs paused.
    pub(super) fn seal(&mut self) -> Sealed {
        self.engine.machine.gate().seal()
    }

    /// Returns the buffers of an earlier checkpoint, so that a pause does not begin with an
    /// allocation.
    pub(super) fn buffers(&mut self) -> (Vec<u64>, PageFrames) {
        self.tracked.spare.pop().unwrap_or_default()
    }

    /// Records the size and the time of a sent checkpoint, and keeps its buffers for the next one.
    pub(super) fn sent(
        &mut self,
        bytes: u64,
        time: Duration,
        mut page_numbers: Vec<u64>,
        pages: PageFrames,
    ) {
        self.note(|stats| {
            stats.epoch_bytes.add(bytes);
            stats.send.add_time(time);
        });
        if pages.capacity() <= SPARE_BYTES && self.tracked.spare.len() < SPARE {
            page_numbers.clear();
            self.tracked.spare.push((page_numbers, pages));
        }
    }

    /// Updates the figures.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut EngineStats)) {
        note(&mut self.engine.stats());
    }
}
