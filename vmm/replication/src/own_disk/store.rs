//! A sidecar that is in use (R3, R11).

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use ft_core::disks::{Area, AreaLayout, Geometry, Sidecar, SidecarError, Slots};
use io_gate_host::own_disk::{OwnImage, SidecarFile};

use super::{OwnDiskError, identity, place};

/// A sidecar, locked. One thread uses it: a call returns when the change is durable.
#[derive(Debug)]
pub struct Store {
    file: SidecarFile,
    slots: Slots,
    layout: AreaLayout,
    /// The marks on the medium. `None`: the area is damaged, or a write of it has failed.
    area: Option<Area>,
}

/// An image that is open for writing, and its sidecar. Both are locked.
#[derive(Debug)]
pub struct OwnDisk {
    /// The image.
    pub image: OwnImage,
    /// The sidecar.
    pub store: Store,
}

impl OwnDisk {
    /// Opens and locks an image and its sidecar, which is at `meta` or beside the image.
    ///
    /// # Errors
    /// When a file cannot be used, or the sidecar describes another image.
    pub fn open(image: &Path, meta: Option<&Path>) -> Result<Self, OwnDiskError> {
        let opened = OwnImage::open(image)?;
        let path = place(image, opened.id(), meta)?;
        let store = Store::open(SidecarFile::open(&path)?)?;
        let (sidecar, found) = (store.sidecar(), identity(opened.id()));
        if sidecar.check_image(found).is_err() {
            let (image, pair, expected) = (image.to_owned(), sidecar.pair, sidecar.image);
            return Err(OwnDiskError::OtherImage { image, path, pair, expected, found });
        }
        Ok(Self { image: opened, store })
    }
}

/// What the slots say.
pub(super) fn read_slots(file: &mut SidecarFile) -> Result<Slots, OwnDiskError> {
    let [first, second] = file.read_slots()?;
    Slots::read([&first, &second]).map_err(|error| {
        let (path, found) = (file.path().to_owned(), file.description());
        match error {
            error @ SidecarError::Version { .. } => OwnDiskError::Release { path, error },
            _ => OwnDiskError::NoSlot { path, found },
        }
    })
}

/// What the mark area of an image of this size says; `None` if it is damaged.
pub(super) fn read_area(
    file: &mut SidecarFile,
    size: u64,
) -> Result<(AreaLayout, Option<Area>), OwnDiskError> {
    let layout = AreaLayout::new(Geometry::PRODUCT, size);
    let bytes = file.read_marks(layout.blocks())?;
    Ok((layout, layout.decode(&bytes).ok()))
}

impl Store {
    /// Reads the content of a sidecar.
    ///
    /// # Errors
    /// When it cannot be read, or has no valid slot.
    pub fn open(mut file: SidecarFile) -> Result<Self, OwnDiskError> {
        let slots = read_slots(&mut file)?;
        let (layout, area) = read_area(&mut file, slots.sidecar().image.size)?;
        Ok(Self { file, slots, layout, area })
    }

    /// What the sidecar says, durably.
    #[must_use]
    pub fn sidecar(&self) -> &Sidecar {
        self.slots.sidecar()
    }

    /// The marks, as they are on the medium; `None` if they are damaged: any block may differ.
    #[must_use]
    pub fn area(&self) -> Option<&Area> {
        self.area.as_ref()
    }

    /// Checks that the sidecar's name still leads to the file that is in use.
    ///
    /// # Errors
    /// When another file has the name.
    pub fn check_place(&self) -> Result<(), OwnDiskError> {
        Ok(self.file.check_place()?)
    }

    /// Writes a new version of the sidecar over the older slot.
    ///
    /// # Errors
    /// When the storage fails; the version before is valid then.
    pub fn record(&mut self, sidecar: &Sidecar) -> Result<(), OwnDiskError> {
        let (slot, bytes) = self.slots.next(sidecar);
        self.file.write_slot(slot, &bytes)?;
        self.slots.written(sidecar.clone());
        Ok(())
    }

    /// Writes the blocks of the mark area that change, or all of them if it is damaged.
    ///
    /// # Errors
    /// When the storage fails. Which blocks were written is then unknown, and any may be torn.
    pub fn write_marks(&mut self, area: &Area) -> Result<(), OwnDiskError> {
        let blocks = match self.area.take() {
            Some(from) => self.layout.changed(&from, area),
            None => (0..self.layout.blocks()).collect(),
        };
        for run in runs(&blocks) {
            let first = run.start;
            let bytes: Vec<u8> = run.flat_map(|block| self.layout.encode(area, block)).collect();
            self.file.write_marks(first, &bytes)?;
        }
        self.area = Some(area.clone());
        Ok(())
    }
}

/// Blocks that are written by one call. The head is alone: it is durable before the others
/// (`ft_core::disks::AreaLayout::changed`).
pub(super) fn runs(blocks: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in blocks.iter().copied() {
        match runs.last_mut() {
            Some(run) if run.end == block && run.start > 0 => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}
