//! An own disk: an image that no other host writes to. Its lane performs what the driver of the
//! list hands over, in that order.
//!
//! - Nothing asks the fence: a late write of a machine that was replaced lands on its own image
//!   only, and the new primary's resync undoes it (R8).
//! - A flush makes the image durable whatever the cache mode (R4). A discard writes zeroes, so that
//!   both images read the same (R5).
//! - The first failure is final for all own disks of the machine (R5): nothing is tried again, and
//!   no later operation begins.

use std::io;

use io_gate::Outcome;
use io_gate::host::{DiskId, EffectOp, GateId, ImageRight, Performable, Request};

use super::disk::Disk;
use super::disk_requests;
use crate::out::{Refused, Released};
use crate::work::Work;

/// An image that is open for the guest's writes, by the right to it:
///
/// ```compile_fail,E0061
/// # use io_gate_host::backend::disk::DiskError;
/// # use io_gate_host::backend::own_disk::WritableImage;
/// # use io_gate_host::own_disk::OwnImage;
/// fn hurry(image: &OwnImage) -> Result<WritableImage, DiskError> { image.for_guest() }
/// ```
#[derive(Debug)]
pub struct WritableImage {
    disk: Disk,
    image: DiskId,
    gate: GateId,
}

impl WritableImage {
    /// See [`OwnImage::for_guest`](crate::own_disk::OwnImage::for_guest).
    pub(crate) fn new(disk: Disk, right: ImageRight) -> Self {
        Self { disk, image: right.image(), gate: right.gate() }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> DiskId {
        self.image
    }

    /// The disk's size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    /// The gate whose machine has the right to write to it.
    pub(crate) fn gate(&self) -> GateId {
        self.gate
    }

    pub(crate) fn input(&self) -> super::disk::Input {
        self.disk.input()
    }

    /// Performs one request. Lane.
    pub(super) fn perform(&self, work: &mut Work<'_>, request: Performable) {
        if let Request::Input(_) = request.record().request {
            let performed = disk_requests::perform(work, &self.disk, &request);
            work.far_side.own().performed(request.record(), false);
            let (outcome, data) = performed.unwrap_or((Outcome::Failed, Vec::new()));
            return work.done(request, outcome, data);
        }
        let Some(released) = Released::of(&request) else {
            return work.done(request, Outcome::Unsupported, Vec::new());
        };
        let own = work.far_side.own();
        if own.failure().is_some() {
            return work.not_permitted(request);
        }
        match self.change(work, released) {
            Ok(()) => {
                let is_flush = matches!(released.op(), EffectOp::BlockFlush { .. });
                own.performed(request.record(), is_flush || self.disk.completes_durably());
                work.done(request, Outcome::Success(0), Vec::new());
            }
            // The machine has ended, or was replaced: the list has the operation.
            Err(Refused::NotPermitted) => work.not_permitted(request),
            // R5: whether it reached the image is unknown. The request stays in flight.
            Err(Refused::Io(error)) => {
                own.failed(format!("disk {}: {error}", self.disk.path().display()));
                work.not_permitted(request);
            }
        }
    }

    fn change(&self, work: &mut Work<'_>, released: Released<'_>) -> Result<(), Refused> {
        let may = &mut || work.permits.next_own();
        match released.op() {
            EffectOp::BlockWrite { sector, .. } => {
                let bytes = released.bytes(&work.far_side.memory);
                let bytes = bytes.map_err(|_| io::Error::other("its bytes are not in memory"))?;
                self.disk.write(*sector, bytes, may)
            }
            EffectOp::BlockFlush { .. } => self.disk.flush(may),
            EffectOp::BlockDiscard { sector, sectors, .. } => {
                self.disk.write_zeroes(released, *sector, *sectors, true, may)
            }
            EffectOp::BlockWriteZeroes { sector, sectors, unmap, .. } => {
                self.disk.write_zeroes(released, *sector, *sectors, *unmap, may)
            }
            EffectOp::NetTx { .. } | EffectOp::ConsoleTx { .. } | EffectOp::Power(_) => {
                Err(io::Error::other("no operation of a disk").into())
            }
        }
    }
}
