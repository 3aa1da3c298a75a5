//! Makes the right to write to an image that no set names.

use io_gate::host::{DiskId, GateId, ImageRight, Term};

pub(crate) fn right(gate: GateId) -> ImageRight {
    ImageRight { gate, term: Term(u64::MAX), image: DiskId(0) }
}
