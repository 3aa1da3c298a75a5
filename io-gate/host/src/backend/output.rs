//! The half of a backend on which its lane performs effects.

use std::io;
use std::time::Instant;

use io_gate::Outcome;
use io_gate::host::{EffectOp, Performable};

use super::{console, disk, disk_requests, net, own_disk};
use crate::out::{Refused, Released};
use crate::work::Work;

/// See the module. Only the lane's thread uses it.
pub(crate) enum Output {
    Disk(disk::Disk),
    OwnDisk(own_disk::WritableImage),
    Net(net::Output),
    Console(console::Output),
    /// The machine itself: power events.
    Power,
}

impl Output {
    /// Performs one request. Called by the lane.
    pub(crate) fn perform(&mut self, work: &mut Work<'_>, request: Performable) {
        if work.begin(&request).is_err() {
            return work.not_permitted(request);
        }
        if let Self::OwnDisk(disk) = self {
            return disk.perform(work, request);
        }
        if let Self::Console(console) = self {
            return console.perform(work, request);
        }
        let performed = match self {
            Self::Disk(disk) => disk_requests::perform(work, disk, &request),
            _ => match Released::of(&request) {
                Some(released) => self.send(work, released).map(|outcome| (outcome, Vec::new())),
                None => Ok((Outcome::Unsupported, Vec::new())),
            },
        };
        match performed {
            Ok((outcome, data)) => work.done(request, outcome, data),
            Err(Refused::NotPermitted) => work.withheld(request),
            Err(Refused::Io(error)) => {
                log::warn!("an effect has failed: {error}");
                work.done(request, Outcome::Failed, Vec::new());
            }
        }
    }

    fn send(&mut self, work: &mut Work<'_>, released: Released<'_>) -> Result<Outcome, Refused> {
        match (self, released.op()) {
            (Self::Net(net), EffectOp::NetTx { .. }) => match released.bytes(&work.far_side.memory)
            {
                Ok(frame) => net.send(&mut work.permits, frame),
                Err(_) => Ok(Outcome::Failed),
            },
            // The device thread handles the event and settles it then: it stays in flight until it
            // has taken effect.
            (Self::Power, EffectOp::Power(_)) => {
                work.permits.next()?.spend()?;
                Ok(Outcome::Success(0))
            }
            _ => Ok(Outcome::Unsupported),
        }
    }

    /// Whether one request may take as long as a disk request.
    pub(crate) fn is_slow(&self) -> bool {
        matches!(self, Self::Disk(_) | Self::OwnDisk(_))
    }

    /// Sends queued data and reconnects. Called by the lane.
    pub(crate) fn attend(&mut self, work: &mut Work<'_>) {
        match self {
            Self::Net(net) => net.attend(&mut work.permits),
            Self::Console(console) => console.attend(work),
            Self::Disk(_) | Self::OwnDisk(_) | Self::Power => {}
        }
    }

    pub(crate) fn announce(&mut self, work: &mut Work<'_>) {
        if let Self::Net(net) = self {
            net.announce(&mut work.permits);
        }
    }

    /// Makes later writes durable when they complete, and syncs earlier ones. Called by the lane.
    pub(crate) fn write_through(&mut self, work: &mut Work<'_>) -> io::Result<()> {
        let Self::Disk(disk) = self else { return Ok(()) };
        let refused = || io::Error::other("this machine may no longer write");
        match disk.write_through_from_now_on(&mut || work.permits.next()) {
            Ok(()) => Ok(()),
            Err(Refused::Io(error)) => Err(error),
            Err(Refused::NotPermitted) => Err(refused()),
        }
    }

    /// Gives a console's reader time to read the output, until `until`. Called by the lane.
    pub(crate) fn finish(&mut self, work: &mut Work<'_>, until: Instant) {
        if let Self::Console(console) = self {
            console.finish(work, until);
        }
    }
}
