//! Disks with several request queues.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DATA, DiskMachine, Driver, EVENT_IDX, SECTORS, VERSION_1, disk_slot_of, image};
use io_gate::host::Term;
use io_gate_host::SlotError;
use io_gate_host::backend::disk::{Disk, DiskOptions};

const MQ: u64 = 1 << 12;
const QUEUES: u16 = 4;

/// A machine whose driver uses the first queue and the last one.
fn machine(image: &tempfile::NamedTempFile) -> (DiskMachine, Driver) {
    let disk = Disk::open(image.path(), DiskOptions::default()).unwrap();
    let mut machine = DiskMachine::with(disk, QUEUES);
    machine.slot.reset();
    machine.driver = Driver::new(&machine.memory, common::RING);
    machine.driver.install(&mut machine.slot, 0);
    let last = Driver::new(&machine.memory, 0x8000);
    last.install(&mut machine.slot, QUEUES - 1);
    machine.slot.driver_ok(VERSION_1 | MQ | EVENT_IDX).unwrap();
    (machine, last)
}

/// A request returns on its own queue, and the interrupt is for that queue.
#[test]
fn each_queue_gets_its_own_back() {
    let image = image(SECTORS);
    let (mut machine, mut last) = machine(&image);
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.fill(DATA, &[1; 512]);
    machine.fill(DATA + 512, &[2; 512]);
    machine.write(1, DATA, 512);
    let (header, status) = machine.header(1, 2);
    last.add(&[header, (DATA + 512, 512)], &[status]);
    let _ = machine.slot.kick(QUEUES - 1);
    assert!(machine.complete(1).used);
    assert_eq!((last.used(), machine.driver.used()), (vec![(0, 1)], vec![]));
    let _ = machine.slot.kick(0);
    assert!(machine.complete(1).used);
    assert_eq!((last.used(), machine.driver.used()), (vec![], vec![(0, 1)]));
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!((bytes[512], bytes[1024]), (1, 2));
}

/// P3: requests in flight on several queues continue on another machine, on the same queues.
#[test]
fn requests_in_flight_survive_on_their_queues() {
    let image = image(SECTORS);
    let (mut machine, mut last) = machine(&image);
    machine.write(1, DATA, 512);
    let (header, status) = machine.header(1, 2);
    last.add(&[header, (DATA + 512, 512)], &[status]);
    let _ = machine.slot.kick(QUEUES - 1);
    let _ = machine.slot.kick(0);
    let sealed = machine.gate.seal();
    assert_eq!(sealed.in_flight.len(), 2);
    let saved = machine.slot.save();
    let DiskMachine { memory, slot, gate, mut driver, fence, .. } = machine;
    drop((slot, gate));

    let disk = || Disk::open(image.path(), DiskOptions::default()).unwrap();
    // A machine whose disk has another number of queues refuses the state.
    let (_, _, mut other) = disk_slot_of(&memory, disk(), fence.clone(), 1);
    let refused = other.restore(&saved).unwrap_err();
    assert!(matches!(refused, SlotError::QueueCount { expected: 1, found: 4, .. }), "{refused}");

    let (gate, mut authority, mut slot) = disk_slot_of(&memory, disk(), fence, QUEUES);
    slot.restore(&saved).unwrap();
    gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    gate.run_alone(authority.alone(Term(2)));
    assert!(common::complete(&gate, &mut slot, 2).used);
    assert_eq!((last.used(), driver.used()), (vec![(0, 1)], vec![(0, 1)]));
}

/// Requests that end together cause one interrupt, if the driver has asked for one.
#[test]
fn a_batch_is_one_interrupt() {
    let image = image(SECTORS);
    let (mut machine, _) = machine(&image);
    let used_event = machine.driver.avail_ring() + 4 + 2 * u64::from(common::QUEUE_SIZE);
    machine.fill(used_event, &4_u16.to_le_bytes());
    for sector in 0..5 {
        machine.write(sector, DATA, 512);
    }
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    machine.gate.drain();
    let mut done = machine.gate.take_completions();
    assert_eq!(done.len(), 5);
    let rest = done.split_off(4);
    assert!(!machine.slot.complete_all(done).any(), "it asked for the fifth");
    assert!(machine.slot.complete_all(rest).used);
    assert_eq!(machine.driver.used().len(), 5);
    let _ = machine.gate.seal();
}
