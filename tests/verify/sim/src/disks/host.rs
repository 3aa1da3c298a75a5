//! A host: what its disk keeps, and the part of a process that writes sidecar and marks.

use ft_core::disks::{
    Area, AreaLayout, DiskId, Extent, Generation, Geometry, ImageIdentity, Lineage, MARK_BLOCK,
    Marks, PairId, SLOT, Seq, Sidecar, SidecarError, Slots, State,
};

use super::MS;
use super::image::{Image, SECTOR, SECTORS};
use crate::random::Random;

pub(super) const GEOMETRY: Geometry = Geometry { coarse: 4 * SECTOR, fine: 2 * SECTOR };
const PAIR: PairId = PairId(77);
const SIZE: u64 = SECTORS as u64 * SECTOR;

fn layout() -> AreaLayout {
    AreaLayout::new(GEOMETRY, SIZE)
}

/// A write past the caches (`O_DIRECT|O_DSYNC`) that is under way.
#[derive(Clone)]
struct MetaWrite {
    bytes: Vec<u8>,
    due: u64,
}

/// What is on a host's storage.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) image: Image,
    slots: [Vec<u8>; 2],
    area: Vec<u8>,
    slot_write: Option<(usize, MetaWrite)>,
    area_write: Option<MetaWrite>,
    pub(super) hangs_until: u64,
}

impl Disk {
    /// A new image, all hole, and its sidecar.
    pub(super) fn new(random: &mut Random) -> Self {
        let mut disk = Self::default();
        disk.image.inode = random.next();
        let id = |random: &mut Random| u128::from(random.next()) + 1;
        let sidecar = Sidecar {
            pair: PAIR,
            disk: DiskId(id(random)),
            lineage: Lineage::new(Generation { term: 0, id: id(random) }),
            pending: None,
            durable: Seq(0),
            state: State::Whole,
            peer: None,
            image: disk.identity(),
        };
        disk.slots = [vec![0; SLOT], vec![0; SLOT]];
        let (at, bytes) = Slots::new(sidecar.clone()).next(&sidecar);
        disk.slots[at] = bytes;
        disk.area = layout().encode_all(&Area::default());
        disk
    }

    pub(super) fn identity(&self) -> ImageIdentity {
        ImageIdentity { inode: self.image.inode, filesystem: 1, size: SIZE }
    }

    /// Another file is in the place of the image.
    pub(super) fn is_swapped(&self) -> bool {
        self.sidecar().image != self.identity()
    }

    pub(super) fn read_slots(&self) -> Result<Slots, SidecarError> {
        let slots = Slots::read([&self.slots[0], &self.slots[1]])?;
        slots.sidecar().check_image(self.identity())?;
        Ok(slots)
    }

    pub(super) fn read_area(&self) -> Option<Area> {
        layout().decode(&self.area).ok()
    }

    /// What is durable of the sidecar now, whatever the processes believe.
    pub(super) fn sidecar(&self) -> Sidecar {
        let slots = Slots::read([&self.slots[0], &self.slots[1]]);
        slots.expect("R11: a torn write left no valid slot").sidecar().clone()
    }

    /// R3: the intent of a write is durable.
    pub(super) fn has_intent(&self, extent: &Extent) -> bool {
        let area = self.read_area().expect("a write while the marks are damaged");
        let all = extent.start / GEOMETRY.coarse..extent.end().div_ceil(GEOMETRY.coarse);
        all.into_iter().all(|coarse| area.coarse.contains(&coarse))
    }

    /// The process is gone. A write that was handed to the device ends, or did not begin.
    pub(super) fn process_ends(&mut self, random: &mut Random) {
        let kept = [random.one_in(2), random.one_in(2)];
        if let Some((at, write)) = self.slot_write.take().filter(|_| kept[0]) {
            self.slots[at] = write.bytes;
        }
        if let Some(write) = self.area_write.take().filter(|_| kept[1]) {
            self.area = write.bytes;
        }
    }

    /// The power is gone: a write that is under way is torn.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        self.image.lose_power(random);
        if let Some((at, write)) = self.slot_write.take() {
            tear(&mut self.slots[at], &write.bytes, random);
        }
        if let Some(write) = self.area_write.take() {
            tear(&mut self.area, &write.bytes, random);
        }
    }
}

/// Old, new, or the beginning of the new one with the rest of the old one.
fn tear(old: &mut Vec<u8>, new: &[u8], random: &mut Random) {
    let cut = match random.below(4) {
        0 => 0,
        1 => new.len(),
        // A slot or a block is mostly empty: its beginning is what counts.
        2 => random.index(new.len() / MARK_BLOCK) * MARK_BLOCK + random.index(257),
        _ => random.index(new.len() + 1),
    };
    let mut torn = new[..cut].to_vec();
    torn.extend(old.iter().skip(cut));
    if cut == new.len() {
        torn.truncate(cut);
    }
    *old = torn;
}

/// A process's view of sidecar and marks.
pub(super) struct Engine {
    pub(super) slots: Slots,
    /// What the sidecar is to be.
    pub(super) want: Sidecar,
    writing: Option<Sidecar>,
    pub(super) marks: Marks,
    /// The marks were damaged when the process began.
    pub(super) damaged: bool,
    /// Everything up to here is durable on the image.
    pub(super) durable: Seq,
    /// A sync of the process's own, and what it will make durable.
    pub(super) sync: Option<(Seq, usize, u64)>,
}

impl Engine {
    /// A process begins on a host.
    pub(super) fn open(disk: &Disk) -> Result<Self, SidecarError> {
        let slots = disk.read_slots()?;
        let area = disk.read_area();
        let (damaged, want) = (area.is_none(), slots.sidecar().clone());
        let marks = Marks::load(GEOMETRY, area.unwrap_or_default());
        Ok(Self { slots, want, writing: None, marks, damaged, durable: Seq(0), sync: None })
    }

    /// A claim is about to be made: the sidecar is to say so first. Returns its generation.
    pub(super) fn claims(&mut self, won: Option<Generation>, next: Generation) -> Generation {
        self.want = self.want.claiming(won, next);
        self.want.pending.expect("a claim has a generation")
    }

    /// Whether the sidecar says what it is to say.
    pub(super) fn is_recorded(&self) -> bool {
        *self.slots.sidecar() == self.want
    }

    /// Ends the writes that are due, and begins the next ones; returns whether one has ended.
    pub(super) fn write(&mut self, disk: &mut Disk, now: u64, random: &mut Random) -> bool {
        if disk.hangs_until > now {
            return false;
        }
        let mut ended = false;
        if let Some((at, write)) = disk.slot_write.take_if(|(_, write)| write.due <= now) {
            disk.slots[at] = write.bytes;
            ended = true;
            if let Some(written) = self.writing.take() {
                self.slots.written(written);
            }
        }
        if let Some(write) = disk.area_write.take_if(|write| write.due <= now) {
            disk.area = write.bytes;
            ended = true;
            self.marks.written();
        }
        let due = now + random.below(4 * MS);
        if self.writing.is_none() && !self.is_recorded() {
            let (at, bytes) = self.slots.next(&self.want);
            disk.slot_write = Some((at, MetaWrite { bytes, due }));
            self.writing = Some(self.want.clone());
        }
        if disk.area_write.is_none()
            && let Some(area) = self.marks.next_write()
        {
            disk.area_write = Some(MetaWrite { bytes: layout().encode_all(area), due });
        }
        ended
    }

    /// An operation on the image has failed (R5): the sidecar says so, if it can.
    pub(super) fn fails(&mut self, disk: &mut Disk, mut now: u64, random: &mut Random) {
        self.want.state = State::Failed;
        while disk.hangs_until <= now && !self.is_recorded() {
            now += MS;
            self.write(disk, now, random);
        }
    }

    /// Begins or ends a sync of the process's own.
    pub(super) fn sync(
        &mut self,
        disk: &mut Disk,
        performed: Seq,
        now: u64,
        random: &mut Random,
    ) -> Result<bool, String> {
        if let Some((seq, begun, _)) = self.sync.take_if(|(.., due)| *due <= now) {
            disk.image.sync_ends(begun)?;
            self.durable = self.durable.max(seq);
            return Ok(true);
        }
        if self.sync.is_none() && performed > self.durable && random.one_in(8) {
            let due = now + random.below(8 * MS);
            self.sync = Some((performed, disk.image.sync_begins(), due));
        }
        Ok(false)
    }
}
