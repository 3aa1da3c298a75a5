//! Networks: a tap interface, or frames over a Unix socket.

mod dgram;
mod outbox;
mod socket;
mod stream;
mod tap;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io_gate::Outcome;
use vmm_sys_util::epoll::EventSet;

use super::Handled;
use crate::inputs::{Inputs, Role, Token};
use crate::out::{Kept, Outgoing, Refused};
use crate::own_files::PlaceError;
use crate::permit::Permits;
use dgram::Dgram;
use stream::Stream;
use tap::Tap;

/// Length in bytes of the header in front of every frame between device and gate (virtio 1.2,
/// 5.1.6, version 1).
pub const VNET_HEADER: usize = 12;
/// Upper bound of a frame's length in bytes, without its header: the most that an offloading driver
/// sends, with some reserve.
pub const MAX_FRAME: usize = 65550;

/// Why a network cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The tap interface cannot be opened.
    #[error("net tap={name}: {what}: {error}; {hint}")]
    Tap {
        /// The interface.
        name: String,
        /// What failed.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The path of a Unix socket cannot be used.
    #[error("--net: {0}")]
    Place(#[from] PlaceError),
    /// The process is out of a resource.
    #[error("net: {0}")]
    System(#[from] io::Error),
}

/// An open network backend.
#[derive(Debug)]
pub struct Net {
    kind: Kind,
    mac: [u8; 6],
}

#[derive(Debug)]
enum Kind {
    Tap(Tap),
    Stream(Stream),
    Dgram(Dgram),
}

impl Net {
    /// Opens a tap interface, which may already exist. `mac` is the guest's address.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn tap(name: &str, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Tap(Tap::open(name)?), mac })
    }

    /// Frames over a Unix stream, each after its length (QEMU's `-netdev stream`, passt). The
    /// listening side may appear later.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn stream(path: &Path, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Stream(Stream::new(path)?), mac })
    }

    /// Frames as datagrams between two Unix sockets, one per datagram (QEMU's `-netdev dgram`).
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn dgram(local: &Path, peer: &Path, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Dgram(Dgram::open(local, peer)?), mac })
    }

    /// Whether the backend computes checksums and splits segments for the guest.
    #[must_use]
    pub fn has_offloads(&self) -> bool {
        matches!(self.kind, Kind::Tap(_))
    }

    /// The guest's address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Splits the network into its two halves, and watches its descriptor.
    pub(crate) fn attach(self, inputs: &Inputs, token: Token) -> io::Result<(Output, Input)> {
        let dropped = Arc::new(AtomicU64::new(0));
        let (out, input) = match self.kind {
            Kind::Tap(tap) => {
                let (out, input) = tap.attach(inputs, token)?;
                (Out::Tap(out), In::Tap(input))
            }
            Kind::Stream(stream) => {
                let (out, input) = stream.attach(inputs, token, dropped.clone())?;
                (Out::Stream(out), In::Stream(input))
            }
            Kind::Dgram(dgram) => {
                let (out, input) = dgram.attach(inputs, token, dropped.clone())?;
                (Out::Dgram(out), In::Dgram(input))
            }
        };
        let output = Output { out, mac: self.mac, dropped: dropped.clone() };
        Ok((output, Input { input, dropped }))
    }
}

/// The lane's half of a network.
pub(crate) struct Output {
    out: Out,
    mac: [u8; 6],
    dropped: Arc<AtomicU64>,
}

enum Out {
    Tap(tap::Output),
    Stream(stream::Output),
    Dgram(dgram::Output),
}

impl Output {
    /// Sends a frame, header first. A frame that cannot leave is dropped and counted, as with an
    /// unplugged cable: the guest does not notice.
    pub(crate) fn send(
        &mut self,
        permits: &mut Permits<'_>,
        mut frame: Outgoing<'_>,
    ) -> Result<Outcome, Refused> {
        let len = frame.len();
        if len <= VNET_HEADER || len > VNET_HEADER + MAX_FRAME {
            log::debug!("net: a frame of {len} bytes with its header is dropped");
            return Ok(Outcome::Failed);
        }
        let sent = match &mut self.out {
            Out::Tap(tap) => tap.send(permits, &frame),
            Out::Stream(stream) => {
                frame.advance(VNET_HEADER);
                stream.send(permits, frame)
            }
            Out::Dgram(dgram) => {
                frame.advance(VNET_HEADER);
                dgram.send(permits, &frame)
            }
        };
        match sent {
            Ok(()) => Ok(Outcome::Success(0)),
            Err(Refused::NotPermitted) => Err(Refused::NotPermitted),
            Err(Refused::Io(error)) => {
                log::debug!("net: a frame is dropped: {error}");
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(Outcome::Success(0))
            }
        }
    }

    /// Sends queued frames and reconnects.
    pub(crate) fn attend(&mut self, permits: &mut Permits<'_>) {
        match &mut self.out {
            Out::Tap(tap) => tap.attend(),
            Out::Stream(stream) => stream.attend(permits),
            Out::Dgram(dgram) => dgram.attend(permits),
        }
    }

    /// Broadcasts a RARP frame from the guest's address, so that switches learn its new port.
    pub(crate) fn announce(&mut self, permits: &mut Permits<'_>) {
        let frame = Kept::announcement(self.mac, VNET_HEADER);
        match self.send(permits, frame.rest(0)) {
            Ok(Outcome::Success(_)) | Err(Refused::NotPermitted) => {}
            _ => log::warn!("net: cannot send the announcement of a MAC address"),
        }
    }
}

/// The half of a network that other threads use.
pub(crate) struct Input {
    input: In,
    dropped: Arc<AtomicU64>,
}

enum In {
    Tap(tap::Input),
    Stream(stream::Input),
    Dgram(dgram::Input),
}

impl Input {
    /// Takes a frame. Returns whether there was one, and whether the lane must replace the
    /// connection or interface.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> (bool, bool) {
        match &self.input {
            In::Tap(tap) => tap.receive(into),
            In::Stream(stream) => stream.receive(into),
            In::Dgram(dgram) => (dgram.receive(into), false),
        }
    }

    pub(crate) fn handle(&self, role: Role, events: EventSet) -> Handled {
        match &self.input {
            In::Tap(tap) => tap.handle(role, events),
            In::Stream(stream) => stream.handle(role, events),
            In::Dgram(dgram) => dgram.handle(role, events),
        }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        match &self.input {
            In::Tap(tap) => tap.want_input(wanted),
            In::Stream(stream) => stream.want_input(wanted),
            In::Dgram(dgram) => dgram.want_input(wanted),
        }
    }

    /// Sets the driver's features. Returns whether the lane has work to do for them.
    pub(crate) fn negotiated(&self, features: u64) -> bool {
        match &self.input {
            In::Tap(tap) => tap.negotiated(features),
            In::Stream(_) | In::Dgram(_) => false,
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
