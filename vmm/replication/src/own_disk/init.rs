//! A new sidecar, and a new image if wanted.

use std::path::{Path, PathBuf};

use ft_core::disks::{
    Area, AreaLayout, DiskId, Generation, Geometry, Lineage, PairId, Seq, Sidecar, Slots, State,
};
use io_gate_host::own_disk::{OwnDiskError as FileError, OwnImage, SidecarFile};
use kemari_support::random::random_number;

use super::store::read_slots;
use super::{OwnDiskError, identity, place};

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Init<'a> {
    /// The image. It is made if it does not exist and `size` is given.
    pub image: &'a Path,
    /// The place of the sidecar, if not beside the image.
    pub meta: Option<&'a Path>,
    /// The machine; a new one if not given.
    pub pair: Option<PairId>,
    /// The size in bytes.
    pub size: Option<u64>,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// Where the sidecar is.
    pub path: PathBuf,
    /// What it says.
    pub sidecar: Sidecar,
    /// Whether the image was made, too.
    pub image: bool,
}

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Makes a sidecar for an image, and the image if it does not exist.
///
/// # Errors
/// When a file is in the way or cannot be made. Then nothing is left behind, and no file changes.
pub fn init(wanted: Init<'_>) -> Result<Made, OwnDiskError> {
    let (image, is_new) = open_or_make(wanted)?;
    let made = sidecar_for(&image, wanted);
    match made {
        Ok((path, sidecar)) => Ok(Made { path, sidecar, image: is_new }),
        Err(error) => {
            if is_new {
                image.take_back();
            }
            Err(error)
        }
    }
}

fn open_or_make(wanted: Init<'_>) -> Result<(OwnImage, bool), OwnDiskError> {
    let Init { image, size, .. } = wanted;
    let is_new = !OwnImage::exists(image)?;
    if is_new {
        let Some(size) = size else {
            return Err(OwnDiskError::NoImage { image: image.to_owned() });
        };
        let place = wanted.meta.map_or_else(|| SidecarFile::beside(image), Path::to_owned);
        check_free(&place)?;
        OwnImage::create(image, size)?;
    }
    Ok((OwnImage::open(image)?, is_new))
}

fn sidecar_for(image: &OwnImage, wanted: Init<'_>) -> Result<(PathBuf, Sidecar), OwnDiskError> {
    let (id, path) = (image.id(), place(wanted.image, image.id(), wanted.meta)?);
    check_free(&path)?;
    let (name, found) = (wanted.image.to_owned(), id.size);
    if let Some(format) = image.format()? {
        let (found, advice) = (format.name, format.to_raw.command(&name));
        return Err(OwnDiskError::Format { image: name, found, advice });
    }
    match wanted.size {
        Some(expected) if expected != found => {
            return Err(OwnDiskError::OtherSize { image: name, expected, found });
        }
        _ if !found.is_multiple_of(SECTOR) => {
            return Err(OwnDiskError::Sectors { image: name, found });
        }
        _ => {}
    }
    let sidecar = Sidecar {
        pair: wanted.pair.unwrap_or_else(|| PairId(random_id())),
        disk: DiskId(random_id()),
        lineage: Lineage::new(Generation { term: 0, id: random_id() }),
        pending: None,
        durable: Seq(0),
        state: State::Whole,
        peer: None,
        image: identity(id),
    };
    SidecarFile::create(&path, &content(&sidecar))?;
    Ok((path, sidecar))
}

/// A new sidecar's bytes: both slots are valid, so that one torn slot never leaves none.
fn content(sidecar: &Sidecar) -> Vec<u8> {
    let mut slots = Slots::new(sidecar.clone());
    let mut written = [Vec::new(), Vec::new()];
    for _ in 0..written.len() {
        let (slot, bytes) = slots.next(sidecar);
        written[slot] = bytes;
        slots.written(sidecar.clone());
    }
    let layout = AreaLayout::new(Geometry::PRODUCT, sidecar.image.size);
    [written.concat(), layout.encode_all(&Area::default())].concat()
}

/// Checks that nothing is at the sidecar's name, and says what is.
fn check_free(path: &Path) -> Result<(), OwnDiskError> {
    let mut file = match SidecarFile::look(path) {
        Err(FileError::NoSidecar { .. }) => return Ok(()),
        file => file?,
    };
    let slots = read_slots(&mut file)?;
    let Sidecar { pair, disk, .. } = *slots.sidecar();
    Err(OwnDiskError::HasSidecar { path: path.to_owned(), pair, disk })
}

fn random_id() -> u128 {
    u128::from(random_number()) << 64 | u128::from(random_number())
}
