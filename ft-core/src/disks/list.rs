//! The primary's list (R1, R2, R12): its operations on its images since the last seal, and the
//! bytes that the standby has not performed yet. The list is bounded in bytes and by the time that
//! the standby needs to catch up. At a bound, the guest's next disk operation is not staged until
//! there is room.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Entry, Operation, Report, Seq};
use crate::deliberate;

/// The bounds of a list, which are those of the standby's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes that are listed and not performed by the standby.
    pub bytes: u64,
    /// Bytes listed in one epoch at which the epoch is sealed.
    pub epoch: u64,
    /// The longest time that the standby may need to perform its queue.
    pub drain: Duration,
}

/// The list of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// The last entry so far, also if this list is empty.
    pub end: Seq,
    /// The last flush that the guest has seen complete.
    pub flushed: Seq,
}

/// An entry; `None` until its bytes are known.
type Open = (Seq, u64, Option<Operation>);

/// See the module.
#[derive(Clone, Debug)]
pub struct List {
    limits: Limits,
    last: Seq,
    /// R12: no operation is listed without a standby.
    recording: bool,
    open: VecDeque<Open>,
    open_bytes: u64,
    /// Number and bytes of each entry that was sent and is not performed by the standby.
    sent: VecDeque<(Seq, u64)>,
    sent_bytes: u64,
    drain: Duration,
    flushed: Seq,
}

impl List {
    /// A list that continues after `last`, and records nothing.
    #[must_use]
    pub fn new(limits: Limits, last: Seq) -> Self {
        Self {
            limits,
            last,
            recording: false,
            open: VecDeque::new(),
            open_bytes: 0,
            sent: VecDeque::new(),
            sent_bytes: 0,
            drain: Duration::ZERO,
            flushed: Seq(0),
        }
    }

    /// The last number that was given.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The last flush that the guest has seen complete.
    #[must_use]
    pub fn flushed(&self) -> Seq {
        self.flushed
    }

    /// Recording begins. The lane must be empty (R12): an operation that it still performs would be
    /// neither in the list nor in the resync's first read.
    pub fn begin(&mut self) {
        self.end();
        self.recording = true;
    }

    /// Recording ends: the standby is gone.
    pub fn end(&mut self) {
        self.recording = false;
        self.open.clear();
        self.sent.clear();
        (self.open_bytes, self.sent_bytes, self.drain) = (0, 0, Duration::ZERO);
    }

    /// Whether operations are listed.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// R2: whether one more operation may be staged now, within the limits. An empty list admits
    /// any operation.
    #[must_use]
    pub fn admits(&self, operation: &Operation) -> bool {
        let bytes = self.open_bytes + self.sent_bytes + operation.bytes();
        let empty = self.open.is_empty() && self.sent.is_empty();
        !self.recording || empty || bytes <= self.limits.bytes && self.drain <= self.limits.drain
    }

    /// Whether the bytes listed in this epoch have reached the limit at which it is sealed.
    #[must_use]
    pub fn wants_seal(&self) -> bool {
        self.open_bytes >= self.limits.epoch
    }

    /// Lists an operation at its place; its bytes were copied.
    pub fn record(&mut self, operation: Operation) -> Seq {
        let bytes = operation.bytes();
        self.place(bytes, Some(operation))
    }

    /// Reserves the place of a resync block or a hash. The lane reads the bytes later, in the order
    /// of this place (R8).
    pub fn reserve(&mut self, bytes: u64) -> Seq {
        self.place(bytes, None)
    }

    fn place(&mut self, bytes: u64, operation: Option<Operation>) -> Seq {
        self.last = self.last.next();
        if self.recording {
            self.open.push_back((self.last, bytes, operation));
            self.open_bytes += bytes;
        }
        self.last
    }

    /// Fills a reserved place.
    pub fn fill(&mut self, seq: Seq, operation: Operation) {
        if let Some(open) = self.open.iter_mut().find(|open| open.0 == seq) {
            open.2 = Some(operation);
        }
    }

    /// Whether every place of the epoch is filled. An epoch is sealed only then.
    #[must_use]
    pub fn may_seal(&self) -> bool {
        self.open.iter().all(|open| open.2.is_some())
    }

    /// Takes the entries that can be sent: all before the first place that is not filled. At a seal
    /// [every place is filled](Self::may_seal), so it takes all.
    pub fn seal(&mut self) -> Sealed {
        let mut entries = Vec::new();
        while let Some((seq, bytes, Some(operation))) =
            self.open.pop_front_if(|open| open.2.is_some())
        {
            self.open_bytes -= bytes;
            self.sent_bytes += bytes;
            self.sent.push_back((seq, bytes));
            entries.push(Entry { seq, operation });
        }
        Sealed { entries, end: self.last, flushed: self.flushed }
    }

    /// The guest has seen a flush complete, or a write that is durable when it completes.
    pub fn flush_completed(&mut self, seq: Seq) {
        self.flushed = self.flushed.max(seq);
    }

    /// After a takeover: the last flush in the checkpoint.
    pub fn adopt_flushed(&mut self, seq: Seq) {
        self.flushed = seq;
    }

    /// Takes a report of the standby.
    pub fn report(&mut self, report: &Report) {
        while let Some((_, bytes)) = self.sent.pop_front_if(|(seq, _)| *seq <= report.performed) {
            self.sent_bytes -= bytes;
        }
        self.drain = report.drain;
    }

    /// R10: the guest or a device is reset. The requests never complete, but both sides perform
    /// them: no entry is removed from the list.
    pub fn reset(&mut self) {
        if deliberate!(ResetCancels) {
            // The numbers stay without a gap: only the last ones are given again.
            while let Some((_, bytes, _)) = self.open.pop_back() {
                self.open_bytes -= bytes;
                self.last = Seq(self.last.0 - 1);
            }
        }
    }
}
