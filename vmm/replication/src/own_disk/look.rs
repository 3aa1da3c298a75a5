//! What an own disk's files say. Nothing is locked or written: another process may be using them.

use std::path::{Path, PathBuf};

use ft_core::disks::{Area, AreaLayout, ImageIdentity, Sidecar, SidecarError, Slots};
use io_gate_host::own_disk::{ImageId, SidecarFile};

use super::store::{read_area, read_slots};
use super::{OwnDiskError, identity, place};

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLook {
    /// It is whole, and has this version of the sidecar.
    Valid(u64),
    /// It is of another release.
    OtherRelease,
    /// It is torn or damaged.
    Damaged,
}

/// An image and its sidecar, as they were found.
#[derive(Debug)]
pub struct Look {
    /// Where the sidecar is.
    pub path: PathBuf,
    /// Whether another process uses it.
    pub in_use: bool,
    /// Its slots.
    pub slots: [SlotLook; 2],
    /// What the newer valid slot says.
    pub sidecar: Sidecar,
    /// The image, as it is.
    pub found: ImageIdentity,
    /// Where the marks are in their area.
    pub layout: AreaLayout,
    /// The marks; `None` if their area is damaged.
    pub area: Option<Area>,
}

impl Look {
    /// Looks at an image and its sidecar, which is at `meta` or beside the image.
    ///
    /// # Errors
    /// When a file cannot be read, or the sidecar has no valid slot.
    pub fn at(image: &Path, meta: Option<&Path>) -> Result<Self, OwnDiskError> {
        if !io_gate_host::own_disk::OwnImage::exists(image)? {
            return Err(OwnDiskError::NoImage { image: image.to_owned() });
        }
        let id = ImageId::look(image)?;
        let path = place(image, id, meta)?;
        let mut file = SidecarFile::look(&path)?;
        let in_use = file.is_in_use();
        let slots = file.read_slots()?.map(|slot| match Slots::read([&slot, &[]]) {
            Ok(slots) => SlotLook::Valid(slots.number()),
            Err(SidecarError::Version { .. }) => SlotLook::OtherRelease,
            Err(_) => SlotLook::Damaged,
        });
        let sidecar = read_slots(&mut file)?.sidecar().clone();
        let (layout, area) = read_area(&mut file, sidecar.image.size)?;
        Ok(Self { path, in_use, slots, sidecar, found: identity(id), layout, area })
    }

    /// Whether the sidecar describes this image.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.sidecar.check_image(self.found).is_ok()
    }
}
