//! What one session after another uses: the dirty log and the epochs of the gate, the buffers of checkpoints, the figures of
//! a session. It is reached through [`Live`] only, a proof that the session is the one that lives.
//!
//! P4, P8: what a session takes from the dirty log is told to no other. A thread of a session that has ended may still be on
//! its way (it was held by the system, or a write to a dead link has just returned); taking from the log it would take what
//! the session after it has to send. The proof holds the lock under which sessions begin and end, so that there is no moment
//! between asking and touching.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::LinkId;
use ft_core::pages::PageFrames;
use io_gate_host::Sealed;
use kemari_hypervisor::kvm::VmError;
use kemari_hypervisor::memory::{DirtyError, DirtyTracker};

use super::Engine;
use super::status::EngineStats;

/// Checkpoint buffers that are kept, at most; as many may be under way, and one more filled.
const SPARE: usize = 4;
/// Buffers larger than this go back to the system.
pub(super) const SPARE_BYTES: usize = 64 << 20;

/// Guards the dirty log and who may take from it. Whoever holds the engine's core takes it to end a session: under it no call
/// is made but KVM's on the log, which take a millisecond for a GiB of changed pages; nothing is sent, and no lock is taken but
/// that of the figures.
pub(super) struct Tracking(Mutex<Tracked>);

struct Tracked {
    live: Option<LinkId>,
    log: DirtyTracker,
    spare: Vec<(Vec<u64>, PageFrames)>,
}

/// This thread's session has ended: there is nothing more to do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session over link {} has ended", .0.0)]
pub(super) struct SessionEnded(LinkId);

impl Tracking {
    pub(super) fn new(log: DirtyTracker) -> Self {
        Self(Mutex::new(Tracked { live: None, log, spare: Vec::new() }))
    }

    /// The session over `link` lives from now on. For who holds the core.
    pub(super) fn begin(&self, link: LinkId) {
        let mut tracked = self.lock();
        assert!(tracked.live.is_none(), "P4: a session begins when the one before it has ended");
        tracked.live = Some(link);
    }

    /// When this returns no thread of the session takes anything any more. For who holds the core.
    pub(super) fn end(&self) {
        self.lock().live = None;
    }

    /// Whoever has taken pages and cannot send them gives them back, whether its session lives or not: a page that is
    /// marked once too often is sent once too often.
    pub(super) fn give_back(&self, frames: &[u64]) {
        self.lock().log.mark(frames);
    }

    fn lock(&self) -> MutexGuard<'_, Tracked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module. Not to be held while something is waited for.
pub(super) struct Live<'e> {
    tracked: MutexGuard<'e, Tracked>,
    engine: &'e Engine,
}

impl Engine {
    /// The proof that the session over `link` lives, for as long as it is held.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn live(&self, link: LinkId) -> Result<Live<'_>, SessionEnded> {
        let tracked = self.tracking.lock();
        match tracked.live {
            Some(live) if live == link => Ok(Live { tracked, engine: self }),
            _ => Err(SessionEnded(link)),
        }
    }
}

impl Live<'_> {
    /// Makes KVM log what the guest writes.
    pub(super) fn start_log(&mut self) -> Result<(), VmError> {
        self.engine.machine.vm().start_dirty_log()
    }

    /// All of memory is to be sent.
    pub(super) fn mark_all(&mut self) {
        self.tracked.log.mark_all();
    }

    /// See [`DirtyTracker::collect`].
    pub(super) fn collect(&mut self) -> Result<Vec<u64>, DirtyError> {
        self.tracked.log.collect().map(<[u64]>::to_vec)
    }

    /// See [`DirtyTracker::collect_epoch`].
    pub(super) fn collect_epoch(&mut self, frames: &mut Vec<u64>) -> Result<(), DirtyError> {
        self.tracked.log.collect_epoch(frames)
    }

    /// Ends the gate's epoch: of the device thread, vCPUs paused.
    pub(super) fn seal(&mut self) -> Sealed {
        self.engine.machine.gate().seal()
    }

    /// Buffers of an earlier checkpoint, so that a pause does not begin with fresh memory.
    pub(super) fn buffers(&mut self) -> (Vec<u64>, PageFrames) {
        self.tracked.spare.pop().unwrap_or_default()
    }

    /// A checkpoint has been sent: what it weighed and how long it took, and its buffers for the next.
    pub(super) fn sent(
        &mut self,
        bytes: u64,
        time: Duration,
        mut frames: Vec<u64>,
        pages: PageFrames,
    ) {
        self.note(|stats| {
            stats.epoch_bytes.add(bytes);
            stats.send.add_time(time);
        });
        if pages.capacity() <= SPARE_BYTES && self.tracked.spare.len() < SPARE {
            frames.clear();
            self.tracked.spare.push((frames, pages));
        }
    }

    /// Figures of the session.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut EngineStats)) {
        note(&mut self.engine.stats());
    }
}
