//! What happens to effects, told in its order to whoever keeps a record of it (the audit log).
//!
//! With no observer nothing is told, at the price of one branch. The calls are made with the gate's
//! locks held: an observer takes no lock under which it calls the gate, and never waits.

use io_gate::host::{EffectId, EffectOp, Epoch, Record, Request, Term};

/// What an effect does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// A network frame leaves.
    NetTx = 1,
    /// Sectors are written.
    BlockWrite = 2,
    /// What was written is made durable.
    BlockFlush = 3,
    /// Sectors are given up.
    BlockDiscard = 4,
    /// Sectors become zero.
    BlockWriteZeroes = 5,
    /// Bytes appear on a console.
    ConsoleTx = 6,
    /// The machine powers off or resets.
    Power = 7,
    /// Bytes leave on a stream of a virtio socket.
    VsockTx = 8,
}

impl Op {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::NetTx,
        Self::BlockWrite,
        Self::BlockFlush,
        Self::BlockDiscard,
        Self::BlockWriteZeroes,
        Self::ConsoleTx,
        Self::Power,
        Self::VsockTx,
    ];

    /// Its name, for people.
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
            Self::VsockTx => "vsock-tx",
        }
    }
}

/// One effect, without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its name.
    pub id: EffectId,
    /// The slot of the device that staged it.
    pub slot: u16,
    /// What it does.
    pub op: Op,
    /// The epoch in which it was staged.
    pub epoch: Epoch,
}

impl Noted {
    /// The effect of a record; none for an input.
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
            EffectOp::VsockTx { .. } => Op::VsockTx,
        };
        Some(Self { id: record.id, slot: record.origin.slot(), op, epoch: record.epoch })
    }
}

/// Is told of every effect, in the order in which things happen to it.
pub trait Observer: Send + Sync {
    /// Devices have staged these, oldest first. An effect that passes an open gate may be told of
    /// twice; the second time counts for nothing.
    fn staged(&self, effects: &[Noted]);

    /// The gate, which was open, holds from now on; effects with names below `next` have passed it.
    fn held(&self, next: EffectId);

    /// The gate opens by the right that was won with `term`; told before anything passes.
    fn opened(&self, term: Term);

    /// These effects of a former owner were taken over; the next of this owner's own is `next`.
    fn adopted(&self, effects: &[Noted], next: EffectId);

    /// An effect is about to be performed, the fence having permitted it for `term`, where there
    /// are terms. `false`: the loss of the right was told before, so it must not be.
    #[must_use]
    fn performing(&self, effect: Noted, replay: bool, term: Option<u64>) -> bool;

    /// An effect that was about to be performed turned out not to be permitted (P2).
    fn withheld(&self, effect: Noted);

    /// An effect has no backend and went back to its device.
    fn returned(&self, effect: Noted);

    /// These effects were dropped while they were held.
    fn cancelled(&self, effects: &[EffectId]);

    /// The right to perform is lost (P2).
    fn fenced_off(&self);
}
