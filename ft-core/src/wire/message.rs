//! The messages, and the digest that binds the frames of one epoch together.

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
    /// The primary's description of itself.
    Hello(Box<Hello>),
    /// The standby accepts, and describes itself.
    Welcome(Box<Hello>),
    /// The sender does not continue.
    Refuse {
        /// Why, with the values of both sides and advice.
        reason: String,
    },
    /// Pages sent while the guest runs. They are applied at once, since there is no whole
    /// checkpoint yet.
    Bulk(Data),
    /// Pages of a checkpoint; see [`crate::pages`].
    Pages(Data),
    /// A part of the machine's state other than its memory; opaque here.
    State(Data),
    /// The checkpoint of the frame's epoch is whole.
    End(End),
    /// The checkpoint of the frame's epoch was received whole, decodes, and can be applied (P4).
    Ack,
    /// The standby has compared its hashes with those of an [`End`] (P8).
    Verified(Verified),
    /// The sender is alive.
    Heartbeat(Heartbeat),
    /// The reply to a heartbeat, with the same values.
    HeartbeatReply(Heartbeat),
    /// The sender leaves intentionally.
    Bye {
        /// Why.
        reason: ByeReason,
        /// The session that it leaves, by the receiver's number. A message of an earlier session,
        /// replayed on a link without authentication, opens and ends nothing (P1, P7). 0 while that
        /// number is not known.
        session: u64,
        /// The sender's own number for the session, or 0. A message that another standby sent to an
        /// attacker who replayed this session has no effect here (P1; simulation, seed 971364).
        from: u64,
        /// Further explanation; empty if the reason is enough.
        why: String,
    },
    /// The next bytes of [the images that the standby lacks](crate::handshake::images_to_send),
    /// before the first checkpoint.
    Image(Data),
    /// From a standby: whether it could continue the guest, as far as its host is known. Sent when
    /// that changes. Without it, a machine whose standby has lost its disk or its network would
    /// still report that it is protected.
    Readiness {
        /// What the standby needs and lacks; `None` if nothing.
        lack: Option<String>,
        /// The session in which it is sent, as in [`Bye`](Self::Bye).
        session: u64,
        /// The sender's own number for the session.
        from: u64,
    },
}

/// The body of a frame that this crate does not decode, as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data(pub Vec<u8>);

/// The end of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The standby's number for this session. It makes a checkpoint of an earlier session invalid
    /// if it is replayed to a waiting standby on a link without authentication (P1: the standby
    /// would take over from it).
    pub session: u64,
    /// Pages in its [`Message::Bulk`] and [`Message::Pages`] frames.
    pub pages: u64,
    /// Digest over the checksums of all data frames since the last `End`, in order.
    pub digest: u64,
    /// The epoch of the last `End` of this session.
    pub previous: Option<Epoch>,
    /// The hashes of the primary's machine, if both machines are to be compared.
    pub hashes: Option<Hashes>,
}

/// The hashes of a paused machine.
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

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether both sides are equal.
    pub agree: bool,
    /// The primary's hashes.
    pub primary: Hashes,
    /// The standby's hashes.
    pub standby: Hashes,
}

/// A sign of life without other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its number in the session, from 1.
    pub sequence: u64,
    /// When it was sent, by the sender's own clock.
    pub sent: u64,
}

/// Why a side leaves. None of these is a reason to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ByeReason {
    /// The guest has powered off.
    PoweredOff,
    /// The operator has stopped this side. From a standby: its checkpoint is given up for good.
    Stopped,
    /// From a primary: asks the standby to give up its checkpoint.
    Detach,
    /// From a standby: it has given up its checkpoint, and will not ask the arbiter.
    Detached,
}

/// A received message with its header.
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
    /// When it was altered on the way, or does not decode.
    pub fn verify(header: Header, body: Vec<u8>) -> Result<Self, WireError> {
        header.verify(&body)?;
        let message = Message::decode(header.kind, body)?;
        Ok(Self { header, message })
    }
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The epoch of the message; 0 if it concerns none.
    pub epoch: Epoch,
    /// The term in which the sender acts.
    pub term: Term,
    /// The message.
    pub message: Message,
}

impl Outgoing {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// When the body is longer than its kind allows. `out` is then unchanged.
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
                // Leave room for the session's numbers after the text.
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

/// A reason is for people: a text that is too long is cut, not refused.
fn shortened(reason: &str, kind: Kind) -> &str {
    // The other fields, and the length of the text, take less than this.
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

/// Binds the data frames of one checkpoint together, in order. Each side keeps one per session.
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

    /// Adds a data frame ([`Kind::Image`], [`Kind::Bulk`], [`Kind::Pages`], [`Kind::State`]) with
    /// this many pages.
    pub fn add(&mut self, header: &Header, pages: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&header.checksum.to_le_bytes());
        bytes[8..].copy_from_slice(&pages.to_le_bytes());
        self.digest = xxh3_64_with_seed(&bytes, self.digest);
        self.pages += pages;
    }

    /// Ends `epoch` and begins the next one.
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
