//! What the release of an epoch waits for beside its acknowledgement (R4, R6).
//!
//! - Every epoch waits until the set names the standby.
//! - If a flush completed before the outputs of an epoch, the epoch also waits until that flush is
//!   durable on the standby's images.

use alloc::collections::VecDeque;

use io_gate::host::{DurableCommitAuthority, DurableEpoch};

use super::Seq;
use crate::{Epoch, Time, deliberate};

/// Whether a flush is durable on one side or on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushMode {
    /// On both. Data flushed before an output survives a power loss of both hosts.
    Both,
    /// On the primary's image only. The standby has the data in memory.
    Memory,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    epoch: Epoch,
    sealed: Time,
    /// The entry that must be durable on the standby.
    flushed: Seq,
}

/// See the module. Acknowledged epochs that wait for the same flush share one place in `waiting`.
#[derive(Debug)]
pub struct Holds {
    mode: FlushMode,
    /// Epochs that are sealed and not acknowledged, each with the end of its list and the last
    /// flush.
    sealed: VecDeque<(Epoch, Seq, Seq)>,
    waiting: VecDeque<Waiting>,
    /// The last entry up to which the standby's images are durable.
    durable: Seq,
    /// The last entry of the checkpoint that covers the resync.
    cover: Option<Seq>,
    in_set: bool,
    /// After a takeover: the entry that must be durable on this side before the first output.
    until: Option<Seq>,
}

impl Holds {
    /// For a machine without a standby.
    #[must_use]
    pub fn new(mode: FlushMode) -> Self {
        Self {
            mode,
            sealed: VecDeque::new(),
            waiting: VecDeque::new(),
            durable: Seq(0),
            cover: None,
            in_set: false,
            until: None,
        }
    }

    /// For a machine that has taken over. The former primary may have released outputs after the
    /// last flush in the checkpoint, and that flush may not be durable here yet.
    #[must_use]
    pub fn after_takeover(mode: FlushMode, flushed: Seq) -> Self {
        let held = mode == FlushMode::Both && !deliberate!(ToldBeforeDurable);
        Self { until: held.then_some(flushed), ..Self::new(mode) }
    }

    /// The list of an epoch has ended; the epoch is sealed next.
    pub(crate) fn listed(&mut self, epoch: Epoch, end: Seq, flushed: Seq) {
        self.sealed.push_back((epoch, end, flushed));
    }

    /// The standby has acknowledged an epoch.
    pub(crate) fn acknowledged(&mut self, epoch: Epoch, sealed: Time) {
        while let Some((of, end, flushed)) = self.sealed.pop_front_if(|(of, ..)| *of <= epoch) {
            self.cover.get_or_insert(end);
            match self.waiting.back_mut() {
                Some(last) if last.flushed == flushed => last.epoch = of,
                _ => self.waiting.push_back(Waiting { epoch: of, sealed, flushed }),
            }
        }
    }

    /// The standby's images are durable up to this entry.
    pub(crate) fn durable(&mut self, durable: Seq) {
        self.durable = self.durable.max(durable);
    }

    /// R6: whether the set may name the standby: the checkpoint that covers the resync is
    /// acknowledged and durable, while outputs are held.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.cover.is_some_and(|end| end <= self.durable || deliberate!(SetBeforeDurable))
    }

    /// R6: whether the covering checkpoint was sealed. From then on the standby's image may have
    /// this generation, so that the machine runs alone in another one only.
    #[must_use]
    pub(crate) fn shares_generation(&self) -> bool {
        self.in_set || self.cover.is_some() || !self.sealed.is_empty()
    }

    /// Whether the set names the standby.
    #[must_use]
    pub fn is_in_set(&self) -> bool {
        self.in_set
    }

    pub(crate) fn enlarged(&mut self) {
        self.in_set = true;
    }

    /// The proof of the last epoch that may be released now, and when that epoch was sealed.
    pub(crate) fn release(
        &mut self,
        authority: &DurableCommitAuthority,
    ) -> Option<(DurableEpoch, Time)> {
        if !self.in_set {
            return None;
        }
        let memory = self.mode == FlushMode::Memory || deliberate!(FlushOfOne);
        let mut last = None;
        while let Some(waiting) = self.waiting.front() {
            let Waiting { epoch, sealed, flushed } = *waiting;
            let standby = if memory { flushed } else { self.durable };
            let Some(durable) = authority.durable(epoch, flushed, standby) else { break };
            last = Some((durable, sealed));
            self.waiting.pop_front();
        }
        last
    }

    /// The epoch that has waited longest, and when it was sealed.
    #[must_use]
    pub(crate) fn oldest(&self) -> Option<(Epoch, Time)> {
        self.waiting.front().map(|waiting| (waiting.epoch, waiting.sealed))
    }

    /// The session has ended.
    pub(crate) fn session_ended(&mut self) {
        self.sealed.clear();
        self.waiting.clear();
        (self.durable, self.cover, self.in_set) = (Seq(0), None, false);
    }

    /// Whether a takeover's outputs still wait for this side's images.
    #[must_use]
    pub fn holds_takeover(&self) -> bool {
        self.until.is_some()
    }

    /// Whether this side's images are now durable enough for a takeover's first output. Returns
    /// `true` once.
    pub(crate) fn own_durable(&mut self, durable: Seq) -> bool {
        self.until.take_if(|until| *until <= durable).is_some()
    }
}
