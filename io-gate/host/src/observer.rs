//! Reports the steps of each effect, in order, to an observer (the audit log).
//!
//! Without an observer the cost is one branch. The observer is called with the gate's locks held.
//! So it must not wait, and must not take a lock under which it calls the gate.

use io_gate::host::{EffectId, EffectOp, Epoch, Record, Request, Term};

/// The kind of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Sends a network frame.
    NetTx = 1,
    /// Writes sectors.
    BlockWrite = 2,
    /// Makes written data durable.
    BlockFlush = 3,
    /// Discards sectors.
    BlockDiscard = 4,
    /// Zeroes sectors.
    BlockWriteZeroes = 5,
    /// Shows bytes on a console.
    ConsoleTx = 6,
    /// Powers the machine off or resets it.
    Power = 7,
}

impl Op {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::NetTx,
        Self::BlockWrite,
        Self::BlockFlush,
        Self::BlockDiscard,
        Self::BlockWriteZeroes,
        Self::ConsoleTx,
        Self::Power,
    ];

    /// The name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetTx => "net-tx",
            Self::BlockWrite => "block-write",
            Self::BlockFlush => "block-flush",
            Self::BlockDiscard => "block-discard",
            Self::BlockWriteZeroes => "block-write-zeroes",
            Self::ConsoleTx => "console-tx",
            Self::Power => "power",
        }
    }
}

/// One effect, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its id.
    pub id: EffectId,
    /// The slot of the device that staged it.
    pub slot: u16,
    /// Its kind.
    pub op: Op,
    /// The epoch in which it was staged.
    pub epoch: Epoch,
}

impl Noted {
    /// The effect of a record; `None` for an input.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let Request::Effect(op) = &record.request else { return None };
        let op = match op {
            EffectOp::NetTx { .. } => Op::NetTx,
            EffectOp::BlockWrite { .. } => Op::BlockWrite,
            EffectOp::BlockFlush { .. } => Op::BlockFlush,
            EffectOp::BlockDiscard { .. } => Op::BlockDiscard,
            EffectOp::BlockWriteZeroes { .. } => Op::BlockWriteZeroes,
            EffectOp::ConsoleTx { .. } => Op::ConsoleTx,
            EffectOp::Power(_) => Op::Power,
        };
        Some(Self { id: record.id, slot: record.origin.slot(), op, epoch: record.epoch })
    }
}

/// Receives every step of every effect, in order.
pub trait Observer: Send + Sync {
    /// Devices have staged these, oldest first. An effect that passes an open gate may be reported
    /// twice; ignore the second report.
    fn staged(&self, effects: &[Noted]);

    /// The gate was open and closes now. Effects with ids below `next` have passed it.
    fn held(&self, next: EffectId);

    /// The gate opens: this machine has won `term`. Called before any effect passes.
    fn opened(&self, term: Term);

    /// The machine has adopted these effects of its former owner. `next` is the first id of its own
    /// effects.
    fn adopted(&self, effects: &[Noted], next: EffectId);

    /// An effect is about to be performed. If there are terms, the fence has permitted it for
    /// `term`. Returns `false` if the loss of the right was reported before: then the effect must
    /// not be performed.
    #[must_use]
    fn performing(&self, effect: Noted, replay: bool, term: Option<u64>) -> bool;

    /// An effect that was reported as about to be performed was not permitted after all (P2).
    fn withheld(&self, effect: Noted);

    /// An effect has no backend: its device gets it back as unsupported.
    fn returned(&self, effect: Noted);

    /// These effects were dropped while they were held.
    fn cancelled(&self, effects: &[EffectId]);

    /// The right to perform is lost (P2).
    fn fenced_off(&self);
}
