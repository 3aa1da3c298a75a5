//! The messages, and the digest that ties the frames of one epoch together.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::header::{Header, Kind, WireError};
use crate::handshake::Hello;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The primary says what it is.
    Hello(Box<Hello>),
    /// The standby fits, and says what it is.
    Welcome(Box<Hello>),
    /// The sender does not go on.
    Refuse {
        /// Why, with both sides' values, and what to change.
        reason: String,
    },
    /// Pages sent while the guest runs; applied at once, as no checkpoint is whole yet.
    Bulk(Data),
    /// Pages of a checkpoint; see [`crate::pages`].
    Pages(Data),
    /// A part of the state of the machine other than its memory; opaque here.
    State(Data),
    /// The checkpoint of the frame's epoch is whole.
    End(End),
    /// The checkpoint of the frame's epoch was received whole, decodes, and can be applied (P4).
    Ack,
    /// The standby has compared its hashes with those of an [`End`] (P8).
    Verified(Verified),
    /// The sender lives.
    Heartbeat(Heartbeat),
    /// The answer: the same values.
    HeartbeatReply(Heartbeat),
    /// The sender leaves on purpose.
    Bye {
        /// Why.
        reason: ByeReason,
        /// The session that it leaves, by the number that its hearer has given it: a word of an earlier one, played again
        /// on a link that does not authenticate, opens and ends nothing (P1, P7). 0 when that number is not known yet.
        session: u64,
        /// The speaker's own number for it, or 0: what another one has said to somebody who played this session to it
        /// counts for nothing here (P1; simulation, seed 971364).
        from: u64,
        /// What there is to say besides; empty where the reason says it all.
        why: String,
    },
    /// The next bytes of [what the standby does not have](crate::handshake::images_to_send), before the first checkpoint.
    Image(Data),
    /// From a standby: whether it could go on with the guest, by what is known of its host; said when that changes. Without
    /// it a machine whose standby has lost its disk or its network would go on saying that it is protected.
    Readiness {
        /// What the standby needs and does not have; none: nothing.
        lack: Option<String>,
        /// The session that it is said in, as in [`Bye`](Self::Bye).
        session: u64,
        /// The speaker's own number for it.
        from: u64,
    },
}

/// The body of a frame that is not a message of this crate's own, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data(pub Vec<u8>);

/// A checkpoint is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The standby's number for this session: a checkpoint of an earlier one, played again to a standby that waits on a
    /// link that does not authenticate, is none (P1: it would take over from there).
    pub session: u64,
    /// Pages in its [`Message::Bulk`] and [`Message::Pages`] frames.
    pub pages: u64,
    /// Over the checksums of all data frames since the last `End`, in order.
    pub digest: u64,
    /// The epoch of the last `End` of this session.
    pub previous: Option<Epoch>,
    /// What the primary's machine hashes to, when both are to be compared.
    pub hashes: Option<Hashes>,
}

/// What a machine at rest hashes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// All of guest memory.
    pub memory: u64,
    /// All other state.
    pub state: u64,
}

impl core::fmt::Display for Hashes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "memory {:016x}, state {:016x}", self.memory, self.state)
    }
}

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether both sides are equal.
    pub agree: bool,
    /// The primary's.
    pub primary: Hashes,
    /// The standby's.
    pub standby: Hashes,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counted from 1 in a session.
    pub sequence: u64,
    /// When it was sent, by the sender's own clock.
    pub sent: u64,
}

/// Why a side leaves. None of these is a reason to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ByeReason {
    /// The guest has powered off.
    PoweredOff,
    /// The operator has stopped this side. From a standby: its checkpoint is given up for ever.
    Stopped,
    /// From a primary: the standby is asked to give up its checkpoint.
    Detach,
    /// From a standby: it has given up its checkpoint, and will not ask the arbiter.
    Detached,
}

/// A message that came, with its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its message.
    pub message: Message,
}

impl Frame {
    /// Checks a body against its header, and decodes it.
    ///
    /// # Errors
    /// When it was changed on the way, or does not decode.
    pub fn verify(header: Header, body: Vec<u8>) -> Result<Self, WireError> {
        header.verify(&body)?;
        let message = Message::decode(header.kind, body)?;
        Ok(Self { header, message })
    }
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The epoch that it is about; 0 where it is about none.
    pub epoch: Epoch,
    /// The term in which the sender acts.
    pub term: Term,
    /// What to send.
    pub message: Message,
}

impl Outgoing {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// When the body is longer than its kind allows; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<Header, WireError> {
        let start = Header::reserve(out);
        let kind = self.message.kind();
        let done = self
            .message
            .encode_body(out)
            .and_then(|()| Header::finish(out, start, kind, self.epoch, self.term));
        if done.is_err() {
            out.truncate(start);
        }
        done
    }
}

impl Message {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refuse { .. } => Kind::Refuse,
            Self::Bulk(_) => Kind::Bulk,
            Self::Pages(_) => Kind::Pages,
            Self::State(_) => Kind::State,
            Self::End(_) => Kind::End,
            Self::Ack => Kind::Ack,
            Self::Verified(_) => Kind::Verified,
            Self::Heartbeat(_) => Kind::Heartbeat,
            Self::HeartbeatReply(_) => Kind::HeartbeatReply,
            Self::Bye { .. } => Kind::Bye,
            Self::Image(_) => Kind::Image,
            Self::Readiness { .. } => Kind::Readiness,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let kind = self.kind();
        match self {
            Self::Hello(hello) | Self::Welcome(hello) => append(kind, hello.as_ref(), out),
            Self::Refuse { reason } => append(kind, shortened(reason, kind), out),
            Self::Bulk(data) | Self::Pages(data) | Self::State(data) | Self::Image(data) => {
                out.extend_from_slice(&data.0);
                Ok(())
            }
            Self::End(end) => append(kind, end, out),
            Self::Ack => Ok(()),
            Self::Verified(verified) => append(kind, verified, out),
            Self::Heartbeat(beat) | Self::HeartbeatReply(beat) => append(kind, beat, out),
            Self::Bye { reason, session, from, why } => {
                append(kind, &(reason, session, from, shortened(why, kind)), out)
            }
            Self::Readiness { lack, session, from } => {
                // The session's numbers go behind it.
                let lack = lack.as_ref().map(|lack| shortened(lack, kind));
                append(kind, &(lack, session, from), out)
            }
        }
    }

    fn decode(kind: Kind, body: Vec<u8>) -> Result<Self, WireError> {
        Ok(match kind {
            Kind::Hello => Self::Hello(Box::new(whole(kind, &body)?)),
            Kind::Welcome => Self::Welcome(Box::new(whole(kind, &body)?)),
            Kind::Refuse => Self::Refuse { reason: whole(kind, &body)? },
            Kind::Bulk => Self::Bulk(Data(body)),
            Kind::Pages => Self::Pages(Data(body)),
            Kind::State => Self::State(Data(body)),
            Kind::End => Self::End(whole(kind, &body)?),
            Kind::Image => Self::Image(Data(body)),
            Kind::Ack => Self::Ack,
            Kind::Verified => Self::Verified(whole(kind, &body)?),
            Kind::Heartbeat => Self::Heartbeat(whole(kind, &body)?),
            Kind::HeartbeatReply => Self::HeartbeatReply(whole(kind, &body)?),
            Kind::Bye => {
                let (reason, session, from, why) = whole(kind, &body)?;
                Self::Bye { reason, session, from, why }
            }
            Kind::Readiness => {
                let (lack, session, from) = whole(kind, &body)?;
                Self::Readiness { lack, session, from }
            }
        })
    }
}

/// A reason is for people: one that is too long is cut, not refused.
fn shortened(reason: &str, kind: Kind) -> &str {
    // What stands around the text, its length included, takes less than this.
    let limit = kind.max_body() as usize - 32;
    let mut end = reason.len().min(limit);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

fn append<T: Serialize + ?Sized>(
    kind: Kind,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let bytes = postcard::to_allocvec(value)
        .map_err(|_| WireError::Body { kind, reason: "it cannot be written" })?;
    out.extend_from_slice(&bytes);
    Ok(())
}

fn whole<'a, T: Deserialize<'a>>(kind: Kind, body: &'a [u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(WireError::Body { kind, reason: "bytes are left over" }),
        Err(_) => Err(WireError::Body { kind, reason: "not a value of this protocol version" }),
    }
}

/// Ties the data frames of one checkpoint together, in order: both sides keep one per session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochDigest {
    session: u64,
    digest: u64,
    pages: u64,
    previous: Option<Epoch>,
}

impl EpochDigest {
    /// For a session, by the standby's number.
    #[must_use]
    pub fn new(session: u64) -> Self {
        Self { session, ..Self::default() }
    }

    /// Counts in a data frame ([`Kind::Image`], [`Kind::Bulk`], [`Kind::Pages`], [`Kind::State`]) of so many pages.
    pub fn add(&mut self, header: &Header, pages: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&header.checksum.to_le_bytes());
        bytes[8..].copy_from_slice(&pages.to_le_bytes());
        self.digest = xxh3_64_with_seed(&bytes, self.digest);
        self.pages += pages;
    }

    /// The end of `epoch`, and the beginning of the next.
    pub fn end(&mut self, epoch: Epoch, hashes: Option<Hashes>) -> End {
        let Self { session, digest, pages, previous } = *self;
        *self = Self { session, digest: 0, pages: 0, previous: Some(epoch) };
        End { session, pages, digest, previous, hashes }
    }

    /// The epoch that ended last.
    #[must_use]
    pub fn previous(&self) -> Option<Epoch> {
        self.previous
    }
}
