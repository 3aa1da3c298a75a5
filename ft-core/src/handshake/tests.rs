//! What fits, and what is said where it does not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::string::{String, ToString};
use std::vec::Vec;

use io_gate::host::Term;

use super::*;
use crate::wire::PROTOCOL;

extern crate std;

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        release: "0.1.0".into(),
        name: "vm".into(),
        term: Term(1),
        session: 7,
        standby_session: 8,
        holder: "primary@a (pid 1, 11)".into(),
        arbiter: ArbiterView {
            kind: "file".into(),
            place: "file:/a".into(),
            id: "id 1".into(),
            mark: "mark 1".into(),
            counter_mark: String::new(),
        },
        layout: MachineLayout {
            memory: Vec::from([MemoryRegion { start: 0, len: 512 << 20 }]),
            cpus: 2,
            page_size: 4096,
            devices: Vec::from([DeviceLayout {
                slot: 2,
                kind: "virtio-net".into(),
                state_version: 1,
                features: 0x20,
                detail: "mac=02:00:00:00:00:01".into(),
            }]),
        },
        disks: Vec::from([DiskStorage {
            slot: 3,
            storage: Storage::Shared { mark: "mark 1".into() },
            fence: Some(FenceView { place: "/a/fence".into(), says: "term 3".into() }),
            counter_marks: Vec::new(),
        }]),
        boot: Some(BootSource {
            kernel: ImageId { size: 1000, sha256: [1; 32] },
            initrd: Some(ImageId { size: 2000, sha256: [2; 32] }),
            cmdline: "quiet".into(),
        }),
        images: Vec::new(),
        facts: Vec::from([("cpu".into(), "avx2".into())]),
        options: SessionOptions::default(),
    }
}

fn standby() -> Hello {
    let mut other = hello();
    other.holder = "standby@b (pid 2, 22)".into();
    other.arbiter.place = "file:/b".into();
    other
}

fn refused(change: impl FnOnce(&mut Hello)) -> String {
    let mut other = standby();
    change(&mut other);
    compare(&hello(), &other).unwrap_err().to_string()
}

#[test]
fn equal_machines_of_different_releases_fit() {
    let mut other = standby();
    other.release = "0.1.1".into();
    other.term = Term(9);
    assert_eq!(compare(&hello(), &other), Ok(()));
}

#[test]
fn each_difference_names_both_values_and_what_to_change() {
    let text = refused(|other| other.protocol = 10);
    assert!(text.contains("primary 9, standby 10: run the same release"), "{text}");
    let text = refused(|other| other.name = "web".into());
    assert!(text.contains("primary `vm`, standby `web`") && text.contains("--name"), "{text}");
    let text = refused(|other| other.arbiter = ArbiterView::none());
    assert!(
        text.contains("primary `file`, standby `none`: give both the same --arbiter"),
        "{text}"
    );
    let text = refused(|other| other.arbiter.id = "id 2".into());
    assert!(text.contains("primary file:/a (id id 1,"), "{text}");
    assert!(text.contains("standby file:/b (id id 2,"), "{text}");
    let text = refused(|other| other.arbiter.mark = "mark 2".into());
    assert!(text.contains("mark mark 2): they differ"), "{text}");
    let text = refused(|other| other.layout.memory[0].len = 256 << 20);
    assert!(text.contains("512 MiB at 0x0, standby 256 MiB at 0x0"), "{text}");
    let text = refused(|other| other.layout.cpus = 1);
    assert!(text.contains("cpus: primary 2, standby 1") && text.contains("--cpus"), "{text}");
    let text = refused(|other| other.layout.page_size = 16384);
    assert!(text.contains("page size: primary 4096, standby 16384"), "{text}");
    let text = refused(|other| other.layout.devices[0].kind = "virtio-blk".into());
    assert!(
        text.contains(
            "device slot 2: primary virtio-net v1 (mac=02:00:00:00:00:01, features 0x20)"
        ) && text.contains("standby virtio-blk v1"),
        "{text}"
    );
    let text = refused(|other| other.layout.devices.clear());
    assert!(text.contains("standby none"), "{text}");
    let text = refused(|other| other.layout.devices[0].state_version = 2);
    assert!(text.contains("virtio-net v2"), "{text}");
    let text = refused(|other| other.layout.devices[0].features = 0);
    assert!(text.contains("features 0x0"), "{text}");
    let text = refused(|other| {
        let Storage::Shared { mark } = &mut other.disks[0].storage;
        *mark = "mark 2".into();
    });
    assert!(
        text.contains("disk in slot 3: primary shared, mark 1; standby shared, mark 2")
            && text.contains("not a copy"),
        "{text}"
    );
    let text = refused(|other| other.disks.clear());
    assert!(text.contains("mark 1; standby none"), "{text}");
    let text = refused(|other| other.facts[0].1 = "sse2".into());
    assert!(text.contains("cpu: primary has avx2, standby has sse2"), "{text}");
    let text = refused(|other| other.facts.clear());
    assert!(text.contains("standby has nothing"), "{text}");
}

/// Each part is compared with its counterpart and reported once, in whatever order the sides
/// list them.
#[test]
fn parts_are_compared_slot_by_slot_and_reported_in_order() {
    let device = |slot, features| {
        let like = hello().layout.devices.remove(0);
        DeviceLayout { slot, features, ..like }
    };
    let disk = |slot, mark: &str, says: &str| DiskStorage {
        slot,
        storage: Storage::Shared { mark: mark.into() },
        fence: Some(FenceView { place: "/a".into(), says: says.into() }),
        counter_marks: Vec::new(),
    };
    let fact = |name: &str, value: &str| (name.to_string(), value.to_string());
    let (mut ours, mut theirs) = (hello(), standby());
    ours.layout.devices = Vec::from([device(9, 1), device(2, 1), device(5, 1)]);
    theirs.layout.devices = Vec::from([device(5, 1), device(9, 2), device(2, 3)]);
    ours.disks = Vec::from([disk(8, "a", "1"), disk(3, "b", "2"), disk(6, "c", "3")]);
    theirs.disks = Vec::from([disk(3, "x", "2"), disk(8, "y", "1"), disk(6, "c", "4")]);
    ours.facts = Vec::from([fact("b", "1"), fact("a", "2"), fact("c", "3")]);
    theirs.facts = Vec::from([fact("a", "0"), fact("c", "3"), fact("b", "0")]);
    let Refusal(reasons) = compare(&ours, &theirs).unwrap_err();
    let of: Vec<&str> =
        reasons.iter().filter_map(|reason| reason.split(": primary").next()).collect();
    let expected = [
        "device slot 2",
        "device slot 9",
        "disk in slot 3",
        "fence record of the disk in slot 6",
        "disk in slot 8",
        "a",
        "b",
    ];
    assert_eq!(of, expected);
    let marked = |slot, word: &str| DiskStorage {
        counter_marks: Vec::from([CounterMark { place: "/b".into(), word: word.into() }]),
        ..disk(slot, "a", "1")
    };
    let (ours, theirs) = ([marked(3, "x"), marked(8, "y")], [marked(8, "y"), marked(3, "x")]);
    assert_eq!(compare_disk_counter_marks(&ours, &theirs), Ok(()));
    let text = refused(|other| other.layout.memory.clear());
    assert!(text.contains("512 MiB at 0x0, standby none"), "{text}");
}

/// P9: the images to send may be exactly as large as guest memory. A file that is both kernel
/// and initrd is sent once.
#[test]
fn images_are_sent_once_and_never_more_than_memory() {
    let boot = |size, initrd| BootSource {
        kernel: ImageId { size, sha256: [1; 32] },
        initrd,
        cmdline: String::new(),
    };
    let mut ours = hello();
    for (beyond, fits) in [(0, true), (1, false)] {
        ours.boot = Some(boot((512 << 20) + beyond, None));
        assert_eq!(compare(&ours, &Hello { boot: None, ..standby() }).is_ok(), fits);
    }
    ours.boot = Some(boot(5, Some(ImageId { size: 5, sha256: [1; 32] })));
    assert_eq!(images_to_send(&ours, &Hello { boot: None, ..standby() }).len(), 1);
}

/// P2: a standby that has left no mark has proved nothing.
#[test]
fn the_primary_finds_what_the_standby_has_left() {
    let left = |place: &str, word: &str| ArbiterView {
        place: place.into(),
        counter_mark: word.into(),
        ..hello().arbiter
    };
    let compared = |found: &str, said: &str| {
        compare_counter_marks(&left("file:/a", found), &left("file:/b", said))
    };
    assert_eq!(compared("word 1", "word 1"), Ok(()));
    assert!(compared("", "").is_err());
    let text = compared("none", "word 1").unwrap_err().to_string();
    assert!(text.contains("wrote the counter-mark `word 1` to file:/b"), "{text}");
    assert!(text.contains("the primary found `none` in file:/a"), "{text}");
}

/// P3: the same for each place beside each disk.
#[test]
fn the_primary_finds_what_the_standby_has_left_beside_each_disk() {
    let beside = |words: &[&str]| {
        let mark = |word: &&str| CounterMark { place: "/b".into(), word: (*word).into() };
        let counter_marks = words.iter().map(mark).collect();
        Vec::from([DiskStorage { counter_marks, ..hello().disks.remove(0) }])
    };
    let compared =
        |found: &[&str], said: &[&str]| compare_disk_counter_marks(&beside(found), &beside(said));
    assert_eq!(compared(&[], &[]), Ok(()));
    assert_eq!(compared(&["1", "1"], &["1", "1"]), Ok(()));
    for (found, said) in [(&["1", "2"][..], &["1", "1"][..]), (&[""], &[""]), (&["1"], &[])] {
        assert!(compared(found, said).is_err(), "{found:?}, {said:?}");
    }
    let text = compared(&["none"], &["word 1"]).unwrap_err().to_string();
    assert!(
        text.contains("wrote the counter-mark `word 1` to /b, the primary found `none`"),
        "{text}"
    );
}

/// P2: the places may differ, since each host may have its own name for the file.
#[test]
fn fence_records_say_the_same_on_both_sides() {
    let mut other = hello();
    other.disks[0].fence.as_mut().unwrap().place = "/b/fence".into();
    assert_eq!(compare(&hello(), &other), Ok(()));
    let text = refused(|other| {
        let says = "term 2".into();
        other.disks[0].fence = Some(FenceView { place: "/b/fence".into(), says });
    });
    assert!(text.contains("primary /a/fence: term 3; standby /b/fence: term 2"), "{text}");
    let text = refused(|other| other.disks[0].fence = None);
    assert!(text.contains("standby none: they are different files"), "{text}");
}

#[test]
fn a_standby_takes_the_primarys_kernel_or_has_the_same() {
    let mut other = hello();
    other.boot = None;
    assert_eq!(compare(&hello(), &other), Ok(()));
    assert_eq!(images_to_send(&hello(), &other).len(), 2);
    other.images = hello().boot.unwrap().images().skip(1).collect();
    let missing = images_to_send(&hello(), &other);
    assert_eq!(missing, [ImageId { size: 1000, sha256: [1; 32] }]);

    let boot = |change: fn(&mut BootSource)| refused(|other| change(other.boot.as_mut().unwrap()));
    let text = boot(|boot| boot.kernel.sha256 = [0xab; 32]);
    assert!(
        text.contains("kernel: primary 1000 bytes, sha256 0101") && text.contains("--kernel"),
        "{text}"
    );
    assert!(text.contains("standby 1000 bytes, sha256 abab"), "{text}");
    let text = boot(|boot| boot.initrd = None);
    assert!(text.contains("initrd: primary 2000 bytes, sha256 0202"), "{text}");
    assert!(text.contains("standby none: give the standby the same --initrd"), "{text}");
    let text = boot(|boot| boot.cmdline.clear());
    assert!(text.contains("cmdline: primary `quiet`, standby ``"), "{text}");
}

#[test]
fn p9_images_that_are_larger_than_the_guest_are_not_sent() {
    let (mut ours, mut theirs) = (hello(), hello());
    theirs.boot = None;
    ours.boot.as_mut().unwrap().kernel.size = u64::MAX;
    let text = compare(&ours, &theirs).unwrap_err().to_string();
    assert!(text.contains("expected at most the 536870912 bytes of guest memory"), "{text}");
    theirs.images = ours.boot.as_ref().unwrap().images().collect();
    assert_eq!(
        compare(&ours, &theirs),
        Ok(()),
        "what need not be sent may be as large as it likes"
    );
}

#[test]
fn all_differences_are_reported_at_once() {
    let text = refused(|other| {
        other.layout.cpus = 1;
        other.name = "web".into();
    });
    assert!(text.contains("cpus") && text.contains("name"), "{text}");
}
