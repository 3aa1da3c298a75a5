//! Opens an image for writing that no set names.

use std::path::Path;

use io_gate::host::{DiskId, GateId, ImageRight, Term};

use crate::backend::disk::{DiskError, DiskOptions};
use crate::backend::own_disk::WritableImage;

pub(crate) fn open(path: &Path, gate: GateId) -> Result<WritableImage, DiskError> {
    let right = ImageRight { gate, term: Term(u64::MAX), image: DiskId(0) };
    WritableImage::open(path, DiskOptions::default(), right)
}
