//! Whether the requests in flight of a checkpoint can be adopted.

use super::own;
use crate::commit::Epoch;
use crate::effect::{EffectId, Record};
use crate::own::OwnPorts;

/// Why a list of requests in flight is not valid for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlightError {
    /// The ids do not grow, or one of them is not below the next id.
    Order(EffectId),
    /// A request has a later epoch than the checkpoint.
    Epoch(EffectId),
    /// The next id is larger than a machine can reach by counting.
    Next(EffectId),
    /// An operation on a shared disk is listed like one on an own disk, or the other way round; or
    /// one on an own disk has no place in the list.
    Own(EffectId),
}

/// Upper bound of ids in a checkpoint, so that a machine that continues from it does not run out of
/// ids.
const MAX_ID: EffectId = EffectId(1 << 62);

impl core::fmt::Display for InFlightError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Order(EffectId(id)) => {
                write!(f, "expected growing numbers of requests in flight, found {id} out of order")
            }
            Self::Epoch(EffectId(id)) => {
                write!(f, "expected requests of the sealed epoch or before, found {id} of a later")
            }
            Self::Next(EffectId(id)) => {
                write!(f, "expected a next request below {}, found {id}", MAX_ID.0)
            }
            Self::Own(EffectId(id)) => write!(
                f,
                "expected a place in the disks' list for each operation on an own disk and for no \
                 other request, found request {id}: declare the same disks as own on both sides"
            ),
        }
    }
}

impl core::error::Error for InFlightError {}

/// Checks that the requests in flight of a checkpoint can be adopted by a machine with these own
/// disks. Call this before acknowledging the checkpoint (P4):
/// [`Ledger::adopt`](super::Ledger::adopt) panics on any other list.
///
/// # Errors
/// See [`InFlightError`].
pub fn check_in_flight(
    epoch: Epoch,
    next_id: EffectId,
    in_flight: &[Record],
    own: &OwnPorts,
) -> Result<(), InFlightError> {
    if next_id >= MAX_ID {
        return Err(InFlightError::Next(next_id));
    }
    let mut last = None;
    for record in in_flight {
        if last.is_some_and(|last| record.id <= last) || record.id >= next_id {
            return Err(InFlightError::Order(record.id));
        }
        if record.epoch > epoch {
            return Err(InFlightError::Epoch(record.id));
        }
        if !own::fits(record, own) {
            return Err(InFlightError::Own(record.id));
        }
        last = Some(record.id);
    }
    Ok(())
}
