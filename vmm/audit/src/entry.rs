//! The records of the audit log: the events on one side of a pair.

use io_gate_host::Op;

/// How a term was won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Won {
    /// By a fresh start of the machine.
    Begin,
    /// By a standby that takes over.
    TakeOver,
    /// By a primary that continues without its standby.
    Alone,
}

impl Won {
    pub(super) const ALL: [Self; 3] = [Self::Begin, Self::TakeOver, Self::Alone];

    /// The word in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begins",
            Self::TakeOver => "takes over",
            Self::Alone => "continues alone",
        }
    }
}

/// An event on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A term was won, or assumed: 0 if there is no arbiter. A takeover also names the checkpoint
    /// that it continues from, and `next`, the first effect of its own.
    TermWon {
        /// How it was won.
        how: Won,
        /// The term.
        term: u64,
        /// A takeover's checkpoint.
        epoch: u64,
        /// A takeover's session.
        session: u64,
        /// A takeover's next effect.
        next: u64,
    },
    /// The gate opens: this side has won `term`.
    Opened {
        /// The term.
        term: u64,
    },
    /// The open gate closes; effects below `next` have passed it.
    Held {
        /// The next effect.
        next: u64,
    },
    /// A primary begins a session with a standby.
    Joined {
        /// Its term.
        term: u64,
        /// The session.
        session: u64,
    },
    /// A standby accepts a session of a primary.
    Accepted {
        /// The primary's term.
        term: u64,
        /// The session.
        session: u64,
    },
    /// A primary seals an epoch; its checkpoint will be sent.
    Sealed {
        /// The epoch.
        epoch: u64,
        /// The primary's term.
        term: u64,
        /// The session.
        session: u64,
        /// The first effect that the checkpoint does not contain.
        next: u64,
    },
    /// A primary has received the acknowledgement of an epoch, and has not released an effect by it
    /// yet.
    AckReceived {
        /// The epoch.
        epoch: u64,
        /// The primary's term.
        term: u64,
        /// The session.
        session: u64,
    },
    /// A standby has verified a checkpoint and is about to acknowledge it.
    AckSent {
        /// The epoch.
        epoch: u64,
        /// The primary's term.
        term: u64,
        /// The session.
        session: u64,
        /// The first effect that the checkpoint does not contain.
        next: u64,
    },
    /// A standby announces that it gives up its checkpoint of a session.
    GaveUp {
        /// The session.
        session: u64,
    },
    /// A primary learns that its standby has given up its checkpoint.
    HeardGivenUp {
        /// The session.
        session: u64,
    },
    /// The link of a session is closed on this side.
    Left {
        /// The session.
        session: u64,
    },
    /// A standby drops its checkpoint and will never use it.
    Discarded {
        /// The session.
        session: u64,
    },
    /// A device has staged an effect.
    Staged {
        /// The effect's id.
        id: u64,
        /// The device's slot.
        slot: u16,
        /// The operation.
        op: Op,
        /// The epoch in which it was staged.
        epoch: u64,
        /// The previous staged effect; 0: none.
        previous: u64,
    },
    /// A takeover has taken over an effect of the former primary.
    Adopted {
        /// The effect's id.
        id: u64,
        /// The device's slot.
        slot: u16,
        /// The operation.
        op: Op,
        /// The epoch in which it was staged.
        epoch: u64,
    },
    /// The fence has permitted an effect; the system call that performs it comes next.
    Performing {
        /// The effect's id.
        id: u64,
        /// The device's slot.
        slot: u16,
        /// The operation.
        op: Op,
        /// The epoch in which it was staged.
        epoch: u64,
        /// The term under which the fence permitted it.
        term: u64,
        /// Whether the former primary may have performed it.
        replay: bool,
    },
    /// The right was lost while an effect was being performed; the effect may have been performed
    /// in part.
    Withheld {
        /// The effect's id.
        id: u64,
    },
    /// An effect was returned to its device, because the device has no backend.
    Returned {
        /// The effect's id.
        id: u64,
    },
    /// A held effect was dropped.
    Cancelled {
        /// The effect's id.
        id: u64,
    },
    /// This side has lost the right to perform.
    Fenced,
    /// The buffer was full: records are missing here.
    Dropped {
        /// Number of missing records.
        count: u64,
    },
    /// The process ends in good order; this is the last record.
    Ended,
    /// A device panicked and the process ends. Later records come from threads that have not ended
    /// yet.
    Panicked {
        /// The device's slot.
        slot: u16,
        /// The source line of the panic.
        line: u64,
        /// The epoch from which a takeover continued, or 0.
        epoch: u64,
        /// Whether the device had panicked after the same epoch on the former host, too.
        again: bool,
    },
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the log; the first is 0.
    pub sequence: u64,
    /// The time in nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// The event.
    pub event: Event,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::TermWon { how: Won::TakeOver, term, epoch, session, next } => write!(
                f,
                "takes over in term {term} from epoch {epoch} of session {session:#x}; its own effects begin at {next}"
            ),
            Self::TermWon { how, term, .. } => write!(f, "{} in term {term}", how.name()),
            Self::Opened { term } => write!(f, "gate opened in term {term}"),
            Self::Held { next } => write!(f, "gate holds effects from {next} on"),
            Self::Joined { term, session } => {
                write!(f, "session {session:#x} started with a standby, term {term}")
            }
            Self::Accepted { term, session } => {
                write!(f, "session {session:#x} of a primary accepted, term {term}")
            }
            Self::Sealed { epoch, term, session, next } => write!(
                f,
                "epoch {epoch} sealed, with effects below {next}; session {session:#x}, term {term}"
            ),
            Self::AckReceived { epoch, term, session } => {
                write!(f, "ACK of epoch {epoch} received; session {session:#x}, term {term}")
            }
            Self::AckSent { epoch, term, session, next } => write!(
                f,
                "checkpoint {epoch} verified, with effects below {next}: ACK; session {session:#x}, term {term}"
            ),
            Self::GaveUp { session } => write!(f, "session {session:#x} given up"),
            Self::HeardGivenUp { session } => {
                write!(f, "the standby has given up session {session:#x}")
            }
            Self::Left { session } => write!(f, "session {session:#x} left"),
            Self::Discarded { session } => {
                write!(f, "the checkpoint of session {session:#x} discarded")
            }
            Self::Staged { id, slot, op, epoch, .. } => {
                write!(f, "effect {id} staged: {} of slot {slot}, epoch {epoch}", op.name())
            }
            Self::Adopted { id, slot, op, epoch } => {
                write!(f, "effect {id} taken over: {} of slot {slot}, epoch {epoch}", op.name())
            }
            Self::Performing { id, slot, op, epoch, term, replay } => {
                let again = if replay { " as a replay" } else { "" };
                let op = op.name();
                write!(
                    f,
                    "effect {id} performed{again} in term {term}: {op} of slot {slot}, epoch {epoch}"
                )
            }
            Self::Withheld { id } => write!(f, "effect {id} withheld: the right was lost"),
            Self::Returned { id } => {
                write!(f, "effect {id} returned to its device, which has no backend")
            }
            Self::Cancelled { id } => write!(f, "effect {id} cancelled"),
            Self::Fenced => f.write_str("fenced: the right to perform is lost"),
            Self::Dropped { count } => write!(f, "{count} records were DROPPED here"),
            Self::Ended => f.write_str("end of the log"),
            Self::Panicked { slot, line, epoch: 0, .. } => {
                write!(f, "the device of slot {slot} panicked at line {line} of its source")
            }
            Self::Panicked { slot, line, epoch, again } => {
                let again = if again { ", as it had on the host before" } else { "" };
                write!(
                    f,
                    "the device of slot {slot} panicked at line {line} of its source, taken over for epoch {epoch}{again}"
                )
            }
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, nanos) = (self.time / 1_000_000_000, self.time % 1_000_000_000);
        write!(f, "#{} {seconds}.{nanos:09} {}", self.sequence, self.event)
    }
}
