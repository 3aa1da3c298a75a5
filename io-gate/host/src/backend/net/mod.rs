//! Networks: a tap interface, or frames over a Unix socket.

mod dgram;
mod outbox;
mod socket;
mod stream;
mod tap;

use std::io;
use std::path::Path;

use io_gate::Outcome;
use vmm_sys_util::epoll::EventSet;

use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Role, Token};
use crate::own_files::PlaceError;
use dgram::Dgram;
use stream::Stream;
use tap::Tap;

/// The header in front of every frame between device and gate (virtio 1.2, 5.1.6, version 1).
pub const VNET_HEADER: usize = 12;
/// The longest frame, without header: what an offloading driver sends at most, with some slack.
pub const MAX_FRAME: usize = 65550;
/// The shortest Ethernet frame without its checksum: what an announcement is filled up to.
const MIN_FRAME: usize = 60;

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
        /// What to do about it.
        hint: &'static str,
    },
    /// The path of a Unix socket cannot be used.
    #[error("--net: {0}")]
    Place(#[from] PlaceError),
    /// The process is out of something.
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
    /// Opens a tap interface, which may exist already. `mac` is the guest's address.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn tap(name: &str, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Tap(Tap::open(name)?), mac })
    }

    /// Frames over a Unix stream, each behind its length (QEMU's `-netdev stream`, passt). The
    /// listening side need not be there yet.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn stream(path: &Path, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Stream(Stream::new(path)?), mac })
    }

    /// A frame per datagram between two Unix sockets (QEMU's `-netdev dgram`).
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn dgram(local: &Path, peer: &Path, mac: [u8; 6]) -> Result<Self, NetError> {
        Ok(Self { kind: Kind::Dgram(Dgram::open(local, peer)?), mac })
    }

    /// Whether checksums and segmentation can be left to it.
    #[must_use]
    pub fn has_offloads(&self) -> bool {
        matches!(self.kind, Kind::Tap(_))
    }

    /// The guest's address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Tap(tap) => tap.attach(inputs, token),
            Kind::Stream(stream) => stream.attach(inputs, token),
            Kind::Dgram(dgram) => dgram.attach(inputs, token),
        }
    }

    /// Sends a frame, header first. A frame that cannot leave is dropped and counted, like one on
    /// an unplugged cable: the guest is not told.
    pub(crate) fn send(&mut self, mut frame: Gather<'_>) -> Outcome {
        let len = frame.len();
        if len <= VNET_HEADER || len > VNET_HEADER + MAX_FRAME {
            log::debug!("net: a frame of {len} bytes with its header is dropped");
            return Outcome::Failed;
        }
        match &mut self.kind {
            Kind::Tap(tap) => tap.send(&frame),
            Kind::Stream(stream) => {
                frame.advance(VNET_HEADER);
                stream.send(frame);
            }
            Kind::Dgram(dgram) => {
                frame.advance(VNET_HEADER);
                dgram.send(&frame);
            }
        }
        Outcome::Success(0)
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        match &mut self.kind {
            Kind::Tap(tap) => tap.receive(into),
            Kind::Stream(stream) => stream.receive(into),
            Kind::Dgram(dgram) => dgram.receive(into),
        }
    }

    /// An event: whether the lane has to attend to it, and whether input waits.
    pub(crate) fn handle(&mut self, role: Role, events: EventSet) -> (bool, bool) {
        match &mut self.kind {
            Kind::Tap(_) => (false, true),
            Kind::Stream(stream) => stream.handle(role, events),
            Kind::Dgram(dgram) => dgram.handle(events),
        }
    }

    /// Sends what is queued, connects again. Lane.
    pub(crate) fn attend(&mut self) {
        match &mut self.kind {
            Kind::Tap(_) => {}
            Kind::Stream(stream) => stream.attend(),
            Kind::Dgram(dgram) => dgram.attend(),
        }
    }

    /// Whether a read has found that the connection is of no use any more: the lane is to replace
    /// it.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(&self.kind, Kind::Stream(stream) if stream.is_broken())
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        match &mut self.kind {
            Kind::Tap(tap) => tap.want_input(wanted),
            Kind::Stream(stream) => stream.want_input(wanted),
            Kind::Dgram(dgram) => dgram.want_input(wanted),
        }
    }

    pub(crate) fn negotiated(&mut self, features: u64) {
        if let Kind::Tap(tap) = &mut self.kind {
            tap.set_offloads(features);
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        match &self.kind {
            Kind::Tap(tap) => tap.dropped(),
            Kind::Stream(stream) => stream.dropped(),
            Kind::Dgram(dgram) => dgram.dropped(),
        }
    }

    /// Broadcasts a RARP frame from the guest's address: switches learn the new way to it.
    pub(crate) fn announce(&mut self) {
        let frame = rarp(self.mac);
        if self.send(Gather::of_slice(&frame)) != Outcome::Success(0) {
            log::warn!("net: the announcement of a MAC address could not be sent");
        }
    }
}

/// A reverse ARP request (RFC 903) behind an empty virtio-net header.
fn rarp(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(0x8035_u16.to_be_bytes());
    // Ethernet, IPv4, address lengths 6 and 4, operation 3: request reverse.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.resize(VNET_HEADER + MIN_FRAME, 0);
    frame
}
