//! The kinds of outward effects, which are a closed list, and the records of requests in flight.

use serde::{Deserialize, Serialize};

use crate::chain::{Payload, Space, payload_in_record, space_in_record};
use crate::commit::Epoch;

/// One of a device's own backends, counted from 0. Only the far side of the gate knows which file
/// or interface is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port(pub u8);

/// A request of the guest to the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerEvent {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

pub(crate) mod sealed {
    /// Keeps [`super::EffectKind`] closed: a new way out is a change to this crate.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot be made a kind of outward effect outside `io-gate`",
        label = "the set of effects is sealed",
        note = "every way out of the machine is listed in `io-gate`, with its backend in `io-gate-host`; stage one of those, or add the kind there"
    )]
    pub trait Sealed {}
}

/// A kind of outward effect. The trait is sealed: this crate lists all kinds.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a kind of outward effect",
    label = "the gate issues tokens for `NetTx`, `BlockWrite`, `BlockFlush`, `BlockDiscard`, `BlockWriteZeroes`, `ConsoleTx` and `Power` only",
    note = "a device reaches the outside only through these; a new kind is added in `io-gate`, with its backend in `io-gate-host`"
)]
pub trait EffectKind: sealed::Sealed {}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl EffectKind for $name {}
    )+};
}

kinds! {
    /// Sends a network frame.
    NetTx,
    /// Writes sectors of a disk.
    BlockWrite,
    /// Makes completed writes durable.
    BlockFlush,
    /// Discards sectors.
    BlockDiscard,
    /// Zeroes sectors.
    BlockWriteZeroes,
    /// Shows bytes on a console.
    ConsoleTx,
    /// Powers the machine off or resets it.
    Power,
}

/// The id of one effect or input: unique and growing within a virtual machine, across failovers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct EffectId(pub u64);

/// Where an operation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A descriptor chain, to be completed when the operation has been performed.
    Chain {
        /// The device's slot in the machine.
        slot: u16,
        /// The virtqueue.
        queue: u16,
        /// The index of the chain's first descriptor.
        head: u16,
    },
    /// A register access or the device's own action. No chain waits for it.
    Detached {
        /// The device's slot in the machine.
        slot: u16,
    },
}

impl Origin {
    /// The slot of the device that asked.
    #[must_use]
    pub fn slot(&self) -> u16 {
        match *self {
            Self::Chain { slot, .. } | Self::Detached { slot } => slot,
        }
    }
}

/// An outward effect, as data. A sector has 512 bytes (virtio 1.2, 5.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EffectOp {
    /// Send a frame, virtio-net header first.
    NetTx {
        /// The backend.
        port: Port,
        /// Header and frame.
        #[serde(with = "payload_in_record")]
        frame: Payload<'static>,
    },
    /// Write to a disk.
    BlockWrite {
        /// The backend.
        port: Port,
        /// First sector.
        sector: u64,
        /// What to write: a multiple of 512 bytes.
        #[serde(with = "payload_in_record")]
        data: Payload<'static>,
    },
    /// Make a disk's completed writes durable.
    BlockFlush {
        /// The backend.
        port: Port,
    },
    /// Discard sectors.
    BlockDiscard {
        /// The backend.
        port: Port,
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
    },
    /// Make sectors read as zero.
    BlockWriteZeroes {
        /// The backend.
        port: Port,
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
        /// Whether the backend may deallocate the space.
        unmap: bool,
    },
    /// Show bytes on a console.
    ConsoleTx {
        /// The backend.
        port: Port,
        /// The bytes.
        #[serde(with = "payload_in_record")]
        bytes: Payload<'static>,
    },
    /// Power off or reset the machine.
    Power(PowerEvent),
}

impl EffectOp {
    /// The bytes that the effect carries, if it has any.
    #[must_use]
    pub fn payload(&self) -> Option<&Payload<'static>> {
        match self {
            Self::NetTx { frame: bytes, .. }
            | Self::BlockWrite { data: bytes, .. }
            | Self::ConsoleTx { bytes, .. } => Some(bytes),
            Self::BlockFlush { .. }
            | Self::BlockDiscard { .. }
            | Self::BlockWriteZeroes { .. }
            | Self::Power(_) => None,
        }
    }

    /// Whether it is an operation on a disk.
    #[must_use]
    pub fn is_of_disk(&self) -> bool {
        match self {
            Self::BlockWrite { .. }
            | Self::BlockFlush { .. }
            | Self::BlockDiscard { .. }
            | Self::BlockWriteZeroes { .. } => true,
            Self::NetTx { .. } | Self::ConsoleTx { .. } | Self::Power(_) => false,
        }
    }

    /// The backend of the effect; `None` for a power event.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        match *self {
            Self::NetTx { port, .. }
            | Self::BlockWrite { port, .. }
            | Self::BlockFlush { port }
            | Self::BlockDiscard { port, .. }
            | Self::BlockWriteZeroes { port, .. }
            | Self::ConsoleTx { port, .. } => Some(port),
            Self::Power(_) => None,
        }
    }
}

/// An input. It changes nothing outside, so it is performed at once. The far side writes its data
/// to guest memory and marks the pages dirty (P8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputOp {
    /// Read from a disk.
    BlockRead {
        /// The backend.
        port: Port,
        /// First sector.
        sector: u64,
        /// Room for the data.
        #[serde(with = "space_in_record")]
        into: Space<'static>,
    },
    /// Random bytes.
    Entropy {
        /// Room for the bytes.
        #[serde(with = "space_in_record")]
        into: Space<'static>,
    },
}

/// The number of an entry in the list of own disks. Numbers only grow while a machine runs, and
/// each is given once (R1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// An operation on an own disk: state of the machine, and no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnOp {
    /// The operation.
    pub op: EffectOp,
    /// Its place in the list; `None` until it has one. A checkpoint has the place of each.
    pub seq: Option<Seq>,
}

/// What a device asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Held until committed.
    Effect(EffectOp),
    /// Performed at once.
    Input(InputOp),
    /// Performed when it is recorded for the standby and its mark is durable. A takeover completes
    /// it, and does not perform it again (R1).
    Own(OwnOp),
}

/// One request in flight, as a checkpoint carries it and as a takeover performs it again, or
/// completes it if it is an operation on an own disk. The bytes
/// of a descriptor chain are not part of it: they are in the checkpoint's guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: EffectId,
    /// The epoch in which it was staged.
    pub epoch: Epoch,
    /// Where it comes from.
    pub origin: Origin,
    /// The operation.
    pub request: Request,
}
