//! Performs one request of a disk, on the disk's lane.

use io_gate::host::{EffectOp, InputOp, Performable, Request};
use io_gate::{Outcome, Space};

use super::disk::Disk;
use crate::guest_memory::{GuestMemory, fits};
use crate::out::{Refused, Released};
use crate::work::Work;

/// The outcome of a request, and the data of an input.
type Performed = (Outcome, Vec<u8>);

/// Performs a disk request. The data of an input is returned and not written to guest memory, since
/// this is not the device thread. `NotPermitted` means that the effect is no longer permitted (P2).
/// A part of it may have been written; the holder of the right writes all of it again.
pub(super) fn perform(
    work: &mut Work<'_>,
    disk: &Disk,
    request: &Performable,
) -> Result<Performed, Refused> {
    match (Released::of(request), &request.record().request) {
        (Some(released), _) => Ok((effect(work, disk, released)?, Vec::new())),
        (None, Request::Input(InputOp::BlockRead { sector, into, .. })) => {
            Ok(read(&work.far_side.memory, disk, *sector, into))
        }
        (None, _) => Ok((Outcome::Unsupported, Vec::new())),
    }
}

fn read(memory: &GuestMemory, disk: &Disk, sector: u64, into: &Space<'_>) -> (Outcome, Vec<u8>) {
    // Check before allocating: the space may come from another host's checkpoint.
    if !fits(memory, into) {
        return (Outcome::Failed, Vec::new());
    }
    let mut data = vec![0; into.len()];
    match disk.read(sector, &mut data) {
        Ok(()) => (Outcome::Success(data.len() as u32), data),
        Err(error) => (disk.failed("read", sector, &error), Vec::new()),
    }
}

fn effect(work: &mut Work<'_>, disk: &Disk, released: Released<'_>) -> Result<Outcome, Refused> {
    let Work { far_side, permits, .. } = work;
    let may = &mut || permits.next_write(disk.fence().map(|record| &**record));
    let (what, sector, result) = match released.op() {
        EffectOp::BlockWrite { sector, .. } => {
            let Ok(bytes) = released.bytes(&far_side.memory) else {
                return Ok(Outcome::Failed);
            };
            ("write", *sector, disk.write(*sector, bytes, may))
        }
        EffectOp::BlockFlush { .. } => ("flush", 0, disk.flush(may)),
        EffectOp::BlockDiscard { sector, sectors, .. } => {
            ("discard", *sector, disk.discard(released, *sector, *sectors, may))
        }
        EffectOp::BlockWriteZeroes { sector, sectors, unmap, .. } => {
            ("write zeroes", *sector, disk.write_zeroes(released, *sector, *sectors, *unmap, may))
        }
        EffectOp::NetTx { .. } | EffectOp::ConsoleTx { .. } | EffectOp::Power(_) => {
            return Ok(Outcome::Unsupported);
        }
    };
    match result {
        Ok(()) => Ok(Outcome::Success(0)),
        Err(Refused::Io(error)) => Ok(disk.failed(what, sector, &error)),
        Err(Refused::NotPermitted) => Err(Refused::NotPermitted),
    }
}
