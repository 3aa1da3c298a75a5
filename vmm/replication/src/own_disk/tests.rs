//! Sidecars on a real file system, as power losses and operators leave them (R11).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ft_core::disks::resync::{self, Plan, Refusal, Side};
use ft_core::disks::{Area, DiskId, Generation, MARK_BLOCK, PairId, SLOT, Seq, State};
use io_gate_host::own_disk::OwnDiskError as FileError;

use super::*;

const MIB: u64 = 1 << 20;
/// Bytes of the slots and of an image's mark area: a head, and a block of marks of each kind.
const SIDECAR: u64 = 5 * 4096;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Makes an image of 64 MiB with a sidecar.
    fn init(&self, name: &str, pair: Option<PairId>) -> Made {
        let image = self.path(name);
        init(Init { image: &image, meta: None, pair, size: Some(64 * MIB) }).unwrap()
    }

    fn open(&self, name: &str) -> Result<OwnDisk, OwnDiskError> {
        OwnDisk::open(&self.path(name), None)
    }
}

/// Spoils bytes of a file.
fn spoil(path: &Path, at: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(&[0x5a; 600], at).unwrap();
}

fn area(cleared: u64, coarse: impl IntoIterator<Item = u64>) -> Area {
    let coarse = coarse.into_iter().collect();
    Area { cleared: Seq(cleared), coarse, ..Area::default() }
}

#[test]
fn r11_a_new_sidecar_says_what_was_asked_for_and_both_slots_are_valid() {
    let place = Place::new();
    let made = place.init("disk", Some(PairId(7)));
    assert!(made.image && made.path.ends_with("disk.kemari"));
    assert_eq!(place.names(), ["disk", "disk.kemari"].map(str::to_owned).into());
    assert_eq!(fs::metadata(place.path("disk.kemari")).unwrap().len(), SIDECAR);
    assert_eq!(fs::metadata(place.path("disk")).unwrap().len(), 64 * MIB);
    let look = Look::at(&place.path("disk"), None).unwrap();
    assert_eq!(look.slots, [SlotLook::Valid(2), SlotLook::Valid(1)]);
    assert!(look.fits() && !look.in_use);
    assert_eq!((look.sidecar.pair, look.sidecar.state), (PairId(7), State::Whole));
    assert_eq!(look.area, Some(Area::default()));
    let other = place.init("other", None).sidecar;
    assert!(other.pair != made.sidecar.pair && other.disk != made.sidecar.disk);
    assert!(other.lineage.current() != made.sidecar.lineage.current());
}

#[test]
fn r11_what_is_recorded_is_found_by_the_next_process() {
    let place = Place::new();
    place.init("disk", None);
    for round in 1..5 {
        let OwnDisk { image, mut store } = place.open("disk").unwrap();
        assert_eq!(store.sidecar().durable, Seq(round - 1));
        let pending = Some(Generation { term: round, id: 5 });
        let next =
            ft_core::disks::Sidecar { durable: Seq(round), pending, ..store.sidecar().clone() };
        store.record(&next).unwrap();
        let marks = area(round, [round, 15]);
        store.write_marks(&marks).unwrap();
        assert_eq!((store.sidecar(), store.area()), (&next, Some(&marks)));
        drop((image, store));
        let store = place.open("disk").unwrap().store;
        assert_eq!((store.sidecar(), store.area()), (&next, Some(&marks)));
    }
    assert_eq!(fs::metadata(place.path("disk.kemari")).unwrap().len(), SIDECAR, "it never grows");
}

/// Fails if a version is written over the slot that holds the version before.
#[test]
fn r11_a_torn_slot_leaves_the_version_before() {
    let place = Place::new();
    let sidecar = place.init("disk", None).sidecar;
    let mut store = place.open("disk").unwrap().store;
    for durable in 1..4 {
        store
            .record(&ft_core::disks::Sidecar { durable: Seq(durable), ..sidecar.clone() })
            .unwrap();
        let newer = (2 + durable) % 2;
        let copy = place.path(&format!("copy-{durable}"));
        fs::copy(place.path("disk.kemari"), &copy).unwrap();
        spoil(&copy, newer * SLOT as u64 + 20);
        let look = Look::at(&place.path("disk"), Some(&copy)).unwrap();
        assert_eq!(look.sidecar.durable, Seq(durable - 1));
        assert_eq!(look.slots[newer as usize], SlotLook::Damaged);
    }
}

#[test]
fn r11_after_a_torn_slot_the_next_version_takes_its_place() {
    let place = Place::new();
    place.init("disk", None);
    spoil(&place.path("disk.kemari"), 0);
    let mut store = place.open("disk").unwrap().store;
    let next = ft_core::disks::Sidecar { durable: Seq(9), ..store.sidecar().clone() };
    store.record(&next).unwrap();
    drop(store);
    let look = Look::at(&place.path("disk"), None).unwrap();
    assert_eq!(look.slots, [SlotLook::Valid(2), SlotLook::Valid(1)]);
    assert_eq!(look.sidecar.durable, Seq(9));
}

#[test]
fn r11_without_a_valid_slot_nothing_begins_and_the_file_stays() {
    let place = Place::new();
    place.init("disk", None);
    let path = place.path("disk.kemari");
    spoil(&path, 0);
    spoil(&path, SLOT as u64);
    let kept = fs::read(&path).unwrap();
    let image = place.path("disk");
    let again = init(Init { image: &image, meta: None, pair: None, size: None });
    for error in [place.open("disk").unwrap_err(), again.unwrap_err()] {
        assert!(matches!(error, OwnDiskError::NoSlot { .. }), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), kept);
}

/// R3: a torn block says nothing about its marks, so any block of the image may differ.
#[test]
fn r11_a_torn_mark_block_counts_as_all_marked_until_all_is_written_anew() {
    for block in 0..3_u64 {
        let place = Place::new();
        place.init("disk", None);
        let mut store = place.open("disk").unwrap().store;
        store.write_marks(&area(1, [3])).unwrap();
        drop(store);
        spoil(&place.path("disk.kemari"), (2 + block) * MARK_BLOCK as u64 + 30);
        let mut store = place.open("disk").unwrap().store;
        assert_eq!(store.area(), None, "block {block}");
        // One mark more does not make the others known: the new head names no peer.
        store.write_marks(&area(0, [4])).unwrap();
        drop(store);
        let store = place.open("disk").unwrap().store;
        assert_eq!(store.area(), Some(&area(0, [4])));
    }
}

#[test]
fn r11_a_mark_area_that_is_cut_off_counts_as_damaged_and_is_written_again() {
    let place = Place::new();
    place.init("disk", None);
    let path = place.path("disk.kemari");
    File::options().write(true).open(&path).unwrap().set_len(SIDECAR - 4097).unwrap();
    let mut store = place.open("disk").unwrap().store;
    assert_eq!(store.area(), None);
    store.write_marks(&area(0, [1])).unwrap();
    drop(store);
    assert_eq!(place.open("disk").unwrap().store.area(), Some(&area(0, [1])));
    assert_eq!(fs::metadata(&path).unwrap().len(), SIDECAR);
}

/// R3. Fails if other blocks are written before the head, or with it in one call.
#[test]
fn r3_the_head_of_the_marks_is_written_by_itself_and_first() {
    let runs = |blocks: &[u64]| super::store::runs(&blocks.iter().copied().collect());
    assert_eq!(runs(&[0, 1, 2, 4, 5, 9]), [0..1, 1..3, 4..6, 9..10]);
    assert_eq!(runs(&[1, 3]), [1..2, 3..4]);
    assert_eq!(runs(&[]), []);
}

/// R11: with its own inode, size and file system, another file is another image.
#[test]
fn r11_a_replaced_or_resized_image_is_refused_and_kept() {
    let place = Place::new();
    place.init("disk", None);
    let (image, copy) = (place.path("disk"), place.path("copy"));
    fs::copy(&image, &copy).unwrap();
    fs::rename(&copy, &image).unwrap();
    let error = place.open("disk").unwrap_err();
    assert!(matches!(error, OwnDiskError::OtherImage { .. }), "{error}");
    assert!(!Look::at(&image, None).unwrap().fits());

    place.init("second", None);
    let second = place.path("second");
    File::options().write(true).open(&second).unwrap().set_len(65 * MIB).unwrap();
    let error = place.open("second").unwrap_err().to_string();
    assert!(error.contains("68157440") && error.contains("67108864"), "{error}");
    assert_eq!(fs::metadata(&second).unwrap().len(), 65 * MIB);
}

#[test]
fn r11_the_sidecar_of_another_image_is_refused() {
    let place = Place::new();
    place.init("one", None);
    place.init("two", None);
    fs::copy(place.path("one.kemari"), place.path("two.kemari")).unwrap();
    let error = place.open("two").unwrap_err();
    assert!(matches!(error, OwnDiskError::OtherImage { .. }), "{error}");
}

fn plan_of(ours: &Store, theirs: &Store) -> Result<Plan, Refusal> {
    let side = |store: &'_ Store| (store.sidecar().clone(), store.area().cloned());
    let ((ours, our_area), (theirs, their_area)) = (side(ours), side(theirs));
    resync::plan(
        Side { sidecar: &ours, area: our_area.as_ref() },
        Side { sidecar: &theirs, area: their_area.as_ref() },
    )
}

#[test]
fn r11_a_sidecar_of_another_pair_is_refused_by_the_other_host() {
    let place = Place::new();
    place.init("a", Some(PairId(1)));
    place.init("b", Some(PairId(1)));
    place.init("c", Some(PairId(2)));
    let [a, b, c] = ["a", "b", "c"].map(|name| place.open(name).unwrap().store);
    assert!(matches!(plan_of(&a, &b), Ok(Plan::Full { .. })), "a new pair compares all");
    assert!(matches!(plan_of(&a, &c), Err(Refusal::OtherPair { .. })));
}

/// R8, R11: image and sidecar of one host are restored to an earlier copy, in place.
#[test]
fn r8_an_image_that_was_set_back_with_its_sidecar_is_compared_in_full() {
    let place = Place::new();
    let point = 77;
    let ids = ["a", "b"].map(|name| place.init(name, Some(PairId(1))).sidecar.disk);
    let lineage = place.open("a").unwrap().store.sidecar().lineage.clone();
    let equal = |name: &str, peer: DiskId, durable: u64| {
        let mut store = place.open(name).unwrap().store;
        let peered = ft_core::disks::Sidecar {
            lineage: lineage.clone(),
            peer: Some(peer),
            durable: Seq(durable),
            ..store.sidecar().clone()
        };
        store.record(&peered).unwrap();
        let cleared = Seq(durable);
        store.write_marks(&Area { peer: Some(peer), point, cleared, ..Area::default() }).unwrap();
    };
    equal("a", ids[1], 10);
    equal("b", ids[0], 10);
    let earlier = fs::read(place.path("b.kemari")).unwrap();
    equal("a", ids[1], 20);
    equal("b", ids[0], 20);
    let plan = || {
        let [a, b] = ["a", "b"].map(|name| place.open(name).unwrap().store);
        plan_of(&a, &b).unwrap()
    };
    assert!(matches!(plan(), Plan::Marked { .. }));
    fs::write(place.path("b.kemari"), earlier).unwrap();
    assert!(matches!(plan(), Plan::Full { why } if why.contains("set back")));
}

/// R11, P2: a process that was stopped keeps its locks. Fails if either file is not locked.
#[test]
fn r11_no_second_process_opens_an_image_or_a_sidecar_that_is_in_use() {
    let place = Place::new();
    place.init("disk", None);
    let first = place.open("disk").unwrap();
    let error = place.open("disk").unwrap_err();
    assert!(matches!(error, OwnDiskError::File(FileError::Image(_))), "{error}");
    assert!(Look::at(&place.path("disk"), None).unwrap().in_use);
    // The image by another name, with a sidecar of its own.
    fs::hard_link(place.path("disk"), place.path("again")).unwrap();
    assert!(place.open("again").is_err());
    let OwnDisk { image, store } = first;
    drop(image);
    let error = place.open("disk").unwrap_err();
    assert!(matches!(error, OwnDiskError::File(FileError::Locked { .. })), "{error}");
    drop(store);
    place.open("disk").unwrap();
}

#[test]
fn r11_a_sidecar_that_was_replaced_while_it_is_in_use_is_noticed() {
    let place = Place::new();
    place.init("disk", None);
    let store = place.open("disk").unwrap().store;
    store.check_place().unwrap();
    let path = place.path("disk.kemari");
    fs::copy(&path, place.path("copy")).unwrap();
    fs::rename(place.path("copy"), &path).unwrap();
    let error = store.check_place().unwrap_err();
    assert!(matches!(error, OwnDiskError::File(FileError::Replaced { .. })), "{error}");
}

#[test]
fn a_file_of_the_users_at_the_sidecars_name_is_kept_byte_for_byte() {
    let place = Place::new();
    let (image, sidecar) = (place.path("disk"), place.path("disk.kemari"));
    let long = vec![7; 20_000];
    for content in [&b""[..], b"notes\n", &long] {
        fs::write(&sidecar, content).unwrap();
        let made = init(Init { image: &image, meta: None, pair: None, size: Some(MIB) });
        assert!(matches!(made, Err(OwnDiskError::NoSlot { .. })), "{made:?}");
        assert_eq!(fs::read(&sidecar).unwrap(), content);
        assert_eq!(place.names(), ["disk.kemari".to_owned()].into(), "no image was made");
    }
    fs::write(&image, vec![0; 512]).unwrap();
    fs::remove_file(&sidecar).unwrap();
    fs::create_dir(&sidecar).unwrap();
    for error in [
        init(Init { image: &image, meta: None, pair: None, size: None }).unwrap_err(),
        place.open("disk").unwrap_err(),
    ] {
        assert!(matches!(error, OwnDiskError::File(FileError::Taken { .. })), "{error}");
    }
    fs::remove_dir(&sidecar).unwrap();
    std::os::unix::fs::symlink(place.path("elsewhere"), &sidecar).unwrap();
    let error = init(Init { image: &image, meta: None, pair: None, size: None }).unwrap_err();
    assert!(error.to_string().contains("a symbolic link"), "{error}");
    assert_eq!(place.names(), ["disk", "disk.kemari"].map(str::to_owned).into());
}

#[test]
fn an_image_that_exists_is_taken_as_it_is() {
    let place = Place::new();
    let image = place.path("disk");
    let content: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    fs::write(&image, &content).unwrap();
    let wanted = Init { image: &image, meta: None, pair: None, size: None };
    let other = init(Init { size: Some(2 * MIB), ..wanted }).unwrap_err();
    assert!(matches!(other, OwnDiskError::OtherSize { .. }), "{other}");
    let made = init(Init { size: Some(MIB), ..wanted }).unwrap();
    assert!(!made.image);
    assert_eq!(fs::read(&image).unwrap(), content);
    let again = init(wanted).unwrap_err();
    assert!(matches!(again, OwnDiskError::HasSidecar { pair, .. } if pair == made.sidecar.pair));
}

#[test]
fn what_is_no_raw_image_gets_no_sidecar() {
    let place = Place::new();
    let image = place.path("disk");
    let refused = |content: &[u8]| {
        fs::write(&image, content).unwrap();
        let error = init(Init { image: &image, meta: None, pair: None, size: None }).unwrap_err();
        assert_eq!(fs::read(&image).unwrap(), content);
        assert_eq!(place.names(), ["disk".to_owned()].into());
        error.to_string()
    };
    assert!(refused(&[1; 1000]).contains("multiple of 512"));
    assert!(refused(&[1; 100]).contains("at least 512"));
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(4096, 0);
    assert!(refused(&qcow2).contains("qemu-img convert"));
}

#[test]
fn the_image_reads_back_what_was_written_and_never_grows() {
    let place = Place::new();
    place.init("disk", None);
    let OwnDisk { image, .. } = place.open("disk").unwrap();
    let end = 64 * MIB;
    image.write(end - 512, &[7; 512]).unwrap();
    image.write(4096, &[9; 8192]).unwrap();
    image.zero(4096, 4096).unwrap();
    image.sync().unwrap();
    let mut bytes = vec![1; 8192];
    image.read(4096, &mut bytes).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 0) && bytes[4096..].iter().all(|b| *b == 9));
    for (at, len) in [(end, 1), (end - 511, 512), (u64::MAX, 512)] {
        let len = usize::try_from(len).unwrap();
        assert!(image.write(at, &vec![1; len]).is_err());
        assert!(image.zero(at, len as u64).is_err());
        assert!(image.read(at, &mut vec![1; len]).is_err());
    }
    assert_eq!(fs::metadata(place.path("disk")).unwrap().len(), end);
}
