//! Writes of a driver that cannot flush are in the storage when they complete (virtio 1.2,
//! 5.2.6.2). The used length of a refused request counts only bytes that were written.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{DATA, DiskMachine, Driver, RING, SECTORS, VERSION_1, image, volatile_pages};
use io_gate::host::Term;
use io_gate_host::backend::disk::{Disk, DiskOptions};

const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const T_FLUSH: u32 = 4;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn alone(image: &tempfile::NamedTempFile, features: u64) -> DiskMachine {
    let mut machine =
        DiskMachine::with(Disk::open(image.path(), DiskOptions::default()).unwrap(), 1);
    machine.slot.reset();
    machine.driver = Driver::new(&machine.memory, RING);
    machine.driver.install(&mut machine.slot, 0);
    machine.slot.driver_ok(VERSION_1 | features).unwrap();
    let proof = machine.authority.alone(Term(1));
    machine.gate.run_alone(proof);
    machine
}

/// A file whose cached writes can be observed. If they cannot, reports that and returns `None`.
fn observable() -> Option<tempfile::NamedTempFile> {
    let image = image(SECTORS);
    image.as_file().sync_all().unwrap();
    std::os::unix::fs::FileExt::write_all_at(image.as_file(), &[1; 4096], 0).unwrap();
    if volatile_pages(image.as_file()) == Some(1) {
        image.as_file().sync_all().unwrap();
        return Some(image);
    }
    kemari_not_tested::not_tested(
        "this kernel or file system does not tell what is only in the page cache",
    );
    None
}

#[test]
fn p3_a_write_is_stable_when_it_completes_unless_the_driver_can_flush() {
    let Some(image) = observable() else { return };
    for features in [0, DISCARD | WRITE_ZEROES] {
        let mut machine = alone(&image, features);
        for sector in [0, 8, 100] {
            machine.fill(DATA, &[sector as u8 + 1; 4096]);
            let status = machine.write(sector, DATA, 4096);
            let _ = machine.kick();
            let _ = machine.complete(1);
            assert_eq!(machine.status(status), OK);
            assert_eq!(volatile_pages(image.as_file()), Some(0), "a completed write can be lost");
        }
    }
    // If the file system has no better way, zeroes are written as data. These are writes too.
    let mut machine = alone(&image, WRITE_ZEROES);
    let (header, status) = machine.header(T_WRITE_ZEROES, 0);
    machine.fill(DATA, &[&3_u64.to_le_bytes()[..], &5_u32.to_le_bytes(), &[0; 4]].concat());
    machine.driver.add(&[header, (DATA, 16)], &[status]);
    let _ = machine.kick();
    let _ = machine.complete(1);
    assert_eq!(machine.status(status.0), OK);
    assert_eq!(volatile_pages(image.as_file()), Some(0), "completed zeroes can be lost");
}

/// P3: the backends of a restored slot get the accepted features again.
#[test]
fn p3_a_write_is_stable_on_the_machine_that_takes_over() {
    let Some(image) = observable() else { return };
    let mut machine = alone(&image, 0);
    let status = machine.write(0, DATA, 4096);
    let saved = machine.slot.save();
    let (gate, mut authority, mut slot) =
        common::disk_slot(&machine.memory, &image, machine.fence.clone());
    slot.restore(&saved).unwrap();
    gate.run_alone(authority.alone(Term(2)));
    let _ = slot.retry_all();
    let _ = common::complete(&gate, &mut slot, 1);
    assert_eq!(machine.status(status), OK);
    assert_eq!(volatile_pages(image.as_file()), Some(0));
}

/// A request that needs a feature is not served if the feature was not negotiated (5.2.6.2, 2.2).
#[test]
fn requests_that_need_a_feature_are_not_served_without_it() {
    let image = image(SECTORS);
    let all = FLUSH | DISCARD | WRITE_ZEROES;
    for (kind, bit) in [(T_FLUSH, FLUSH), (T_DISCARD, DISCARD), (T_WRITE_ZEROES, WRITE_ZEROES)] {
        for (features, expected) in [(all, OK), (all & !bit, UNSUPP), (bit, OK), (0, UNSUPP)] {
            let mut machine = alone(&image, features);
            std::os::unix::fs::FileExt::write_all_at(image.as_file(), &[7; 4096], 0).unwrap();
            let (header, status) = machine.header(kind, 0);
            machine.fill(DATA, &[&0_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]].concat());
            let data: &[_] = if kind == T_FLUSH { &[] } else { &[(DATA, 16)] };
            machine.driver.add(&[&[header], data].concat(), &[status]);
            let _ = machine.kick();
            let _ = common::complete_sent(&machine.gate, &mut machine.slot);
            assert_eq!(machine.status(status.0), expected, "type {kind} with {features:#x}");
            let kept = std::fs::read(image.path()).unwrap()[0] == 7;
            assert_eq!(
                kept,
                kind == T_FLUSH || expected == UNSUPP,
                "type {kind} with {features:#x}"
            );
        }
    }
}

/// The used length counts the written bytes, from the first one without a gap (2.7.8.2).
#[test]
fn a_refused_read_has_written_what_it_says() {
    const POISON: u8 = 0xa5;
    const LEN: u32 = 1024;
    let image = image(SECTORS);
    // The requests: beyond the end; at an impossible sector; and two whose length is not a positive
    // number of whole sectors.
    for (sector, len) in [(SECTORS, LEN), (u64::MAX, LEN), (0, LEN - 1), (0, 0)] {
        let mut machine = alone(&image, 0);
        machine.fill(DATA, &[POISON; LEN as usize]);
        let (header, status) = machine.header(0, sector);
        let data = if len > 0 { vec![(DATA, len)] } else { vec![] };
        machine.driver.add(&[header], &[&data[..], &[status]].concat());
        let _ = machine.kick();
        assert_eq!(machine.status(status.0), IOERR);
        check_used(&mut machine, len);
    }
    // A read fails at the disk, because the image has been shortened.
    let mut machine = alone(&image, 0);
    image.as_file().set_len(512).unwrap();
    machine.fill(DATA, &[POISON; LEN as usize]);
    let status = machine.read(8, DATA, LEN);
    let _ = machine.kick();
    let _ = machine.complete(1);
    assert_eq!(machine.status(status), IOERR);
    check_used(&mut machine, LEN);

    fn check_used(machine: &mut DiskMachine, len: u32) {
        let used = machine.driver.used();
        let [(_, used)] = used.as_slice() else { panic!("{used:?}") };
        assert!(*used <= len + 1, "{used} bytes of {len} and a status");
        let data = machine.bytes(DATA, LEN as usize);
        let written = data.iter().take_while(|byte| **byte != POISON).count() as u32;
        assert!(written >= (*used).min(len), "{used} bytes used, {written} written");
        assert_eq!(*used, len + 1, "the status was written, and is not counted");
    }
}
