//! Opens an image for the guest's writes that no set names.

use io_gate::host::{DiskId, GateId, ImageRight, Term};

use crate::backend::disk::DiskError;
use crate::backend::own_disk::WritableImage;
use crate::own_disk::OwnImage;

pub(crate) fn open(image: &OwnImage, gate: GateId) -> Result<WritableImage, DiskError> {
    let right = ImageRight { gate, term: Term(u64::MAX), image: DiskId(0) };
    image.for_guest(right)
}
