//! A disk behind the gate: which effects are held, which are performed, and which survive a
//! takeover.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{
    DATA, DISK_FEATURES, DiskMachine, Driver, EVENT_IDX, MEMORY, RING, SECTORS, SLOT, VERSION_1,
    complete, disk_slot, guest_memory, image, is_readable, wait_readable,
};
use devices::{Block, BlockConfig};
use io_gate::Port;
use io_gate::host::{Epoch, Term, new_gate};
use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions};
use io_gate_host::disk_use::disk_fence::DiskFence;
use io_gate_host::{
    Backend, Fence, GateHost, GateOptions, GuestMemory, Permission, SlotState, Unfenced, VirtioSlot,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const UNTOUCHED: u8 = 0xaa;

/// P1: a write leaves and completes when its epoch is committed, and not before.
#[test]
fn a_write_is_held_until_its_epoch_is_committed() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[7; 1024]);
    let status = machine.write(8, DATA, 1024);
    let interrupt = machine.kick();
    assert!(!interrupt.any());
    assert_eq!(machine.gate.held(), 1);
    assert!(is_readable(machine.gate.held_event().as_raw_fd()));

    let sealed = machine.gate.seal();
    assert_eq!((sealed.epoch, sealed.staged, sealed.in_flight.len()), (Epoch(0), 1, 1));
    assert!(machine.gate.lanes_idle());
    assert_eq!(std::fs::read(image.path()).unwrap(), vec![0; SECTORS as usize * 512]);
    assert_eq!(machine.status(status), UNTOUCHED);
    assert!(machine.driver.used().is_empty());

    machine.commit(Epoch(0));
    let interrupt = machine.complete(1);
    assert!(interrupt.used);
    assert_eq!(machine.status(status), OK);
    assert_eq!(machine.driver.used(), [(0, 1)]);
    assert_eq!(std::fs::read(image.path()).unwrap()[8 * 512..10 * 512], [7; 1024]);
    assert_eq!(machine.gate.counts().performed, 1);
    assert_eq!(machine.gate.latencies()[0].count, 1);
}

/// P1: a commit releases its own epoch, and no effect of the next one.
#[test]
fn a_commit_releases_no_later_epoch() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[1; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    let _ = machine.gate.seal();
    machine.write(1, DATA, 512);
    let _ = machine.kick();
    assert_eq!(machine.gate.seal().staged, 1);

    machine.commit(Epoch(0));
    let _ = machine.complete(1);
    assert_eq!(machine.gate.held(), 1);
    machine.commit(Epoch(1));
    let _ = machine.complete(1);
    assert_eq!(machine.driver.used().len(), 2);
}

/// P6: when the machine runs alone, requests of every kind leave at once.
#[test]
fn requests_pass_straight_through_when_alone() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    machine.fill(DATA, &[5; 4096]);
    let write = machine.write(16, DATA, 4096);
    let (header, flushed) = machine.header(4, 0);
    machine.driver.add(&[header], &[flushed]);
    let read = machine.read(16, DATA + 0x10_000, 4096);
    let _ = machine.kick();
    let interrupt = machine.complete(3);
    assert!(interrupt.used);
    assert_eq!([machine.status(write), machine.status(flushed.0), machine.status(read)], [OK; 3]);
    assert_eq!(machine.bytes(DATA + 0x10_000, 4096), [5; 4096]);
    let lengths: Vec<u32> = machine.driver.used().iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [1, 1, 4097]);
}

#[test]
fn discards_zeroes_and_identity() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    machine.fill(DATA, &[9; 8192]);
    machine.write(0, DATA, 8192);
    let segment = |machine: &DiskMachine, at: u64, sector: u64, sectors: u32, flags: u32| {
        machine.memory.write_obj(sector, GuestAddress(at)).unwrap();
        machine.memory.write_obj(sectors, GuestAddress(at + 8)).unwrap();
        machine.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    };
    segment(&machine, DATA + 0x8000, 0, 4, 0);
    let (header, zeroes) = machine.header(13, 0);
    machine.driver.add(&[header, (DATA + 0x8000, 16)], &[zeroes]);
    segment(&machine, DATA + 0x8010, 8, 8, 0);
    let (header, discard) = machine.header(11, 0);
    machine.driver.add(&[header, (DATA + 0x8010, 16)], &[discard]);
    let (header, id) = machine.header(8, 0);
    machine.driver.add(&[header], &[(DATA + 0x9000, 20), id]);
    let _ = machine.kick();
    let _ = machine.complete(3);
    assert_eq!(machine.status(zeroes.0), OK);
    // A file system without holes answers "unsupported".
    assert!([OK, UNSUPP].contains(&machine.status(discard.0)));
    assert_eq!(machine.status(id.0), OK);
    assert_eq!(&machine.bytes(DATA + 0x9000, 20), b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    let disk = std::fs::read(image.path()).unwrap();
    assert!(disk[..2048] == [0; 2048]);
    assert!(disk[2048..4096] == [9; 2048]);
    if machine.status(discard.0) == OK {
        assert!(disk[4096..8192] == [0; 4096]);
    }
}

/// P3: requests in flight at a checkpoint are performed and completed after a takeover, from the
/// checkpoint's own memory.
#[test]
fn requests_in_flight_survive_a_crash() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[3; 512]);
    std::fs::write(image.path(), vec![4; SECTORS as usize * 512]).unwrap();
    let write = machine.write(2, DATA, 512);
    let read = machine.read(5, DATA + 0x1000, 512);
    let _ = machine.kick();
    // The lane has performed the read, but the slot has not completed it: it stays in flight.
    wait_readable(machine.gate.completions_event().as_raw_fd());
    let sealed = machine.gate.seal();
    assert_eq!(sealed.in_flight.len(), 2);
    let saved: SlotState = machine.slot.save();
    let memory = machine.memory.clone();
    let mut driver = machine.driver;
    drop((machine.slot, machine.gate));

    let (gate, mut authority, mut slot) = disk_slot(&memory, &image, Arc::new(Unfenced));
    slot.restore(&saved).unwrap();
    gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    assert_eq!(gate.held(), 1);
    gate.run_alone(authority.alone(Term(2)));
    assert!(complete(&gate, &mut slot, 2).used);
    let status = |addr| memory.read_obj::<u8>(GuestAddress(addr)).unwrap();
    assert_eq!([status(write), status(read)], [OK; 2]);
    assert_eq!(driver.used().len(), 2);
    assert_eq!(std::fs::read(image.path()).unwrap()[1024..1536], [3; 512]);
    let mut got = [0; 512];
    memory.read_slice(&mut got, GuestAddress(DATA + 0x1000)).unwrap();
    assert_eq!(got, [4; 512]);
    assert_eq!((gate.counts().replayed, gate.counts().performed), (1, 0));
    // The ids continue after those of the former owner.
    assert_eq!(gate.seal().next_id, sealed.next_id);
}

/// P3: a takeover while the guest changes a buffer in flight (docs/not-claimed.md). The repeated
/// write has the buffer as of the checkpoint, in every sector. The dead side wrote the buffer as it
/// was staged. Neither write contains bytes from after the checkpoint. Fails if the dead side
/// performs the write from guest memory too.
#[test]
fn p3_a_write_that_is_performed_again_is_the_checkpoints_in_every_sector() {
    const LEN: usize = 64 * 512;
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    let (staged, checkpoint, later) = ([1; LEN], [2; LEN], [3; LEN]);
    machine.fill(DATA, &staged);
    let status = machine.write(0, DATA, LEN as u32);
    let _ = machine.kick();
    machine.fill(DATA, &checkpoint);
    let sealed = machine.gate.seal();
    let saved = machine.slot.save();
    // The standby has the memory of the checkpoint.
    let memory = guest_memory();
    let mut copy = vec![0; MEMORY];
    machine.memory.read_slice(&mut copy, GuestAddress(0)).unwrap();
    memory.write_slice(&copy, GuestAddress(0)).unwrap();
    machine.fill(DATA, &later);
    machine.commit(sealed.epoch);
    machine.gate.drain();
    assert!(
        std::fs::read(image.path()).unwrap()[..LEN] == staged,
        "the primary's is what was staged"
    );
    // The primary dies before the standby learns that the write is done.
    drop((machine.slot, machine.gate));

    let (gate, mut authority, mut slot) = disk_slot(&memory, &image, Arc::new(Unfenced));
    slot.restore(&saved).unwrap();
    gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    gate.run_alone(authority.alone(Term(2)));
    let _ = complete(&gate, &mut slot, 1);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(status)).unwrap(), OK);
    assert!(
        std::fs::read(image.path()).unwrap()[..LEN] == checkpoint,
        "all of it is the checkpoint's"
    );
}

/// P2: after the fence has refused, no effect is performed or reported as performed.
#[test]
fn nothing_is_performed_when_the_fence_says_no() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[6; 512]);
    let status = machine.write(0, DATA, 512);
    let _ = machine.kick();
    let _ = machine.gate.seal();
    machine.write(1, DATA, 512);
    let _ = machine.kick();
    machine.fence.0.store(false, Ordering::SeqCst);
    machine.commit(Epoch(0));
    wait_readable(machine.gate.fenced_event().as_raw_fd());
    machine.gate.drain();
    assert!(machine.gate.is_fenced_off());
    assert_eq!(machine.gate.held(), 0);
    assert_eq!(machine.gate.counts().cancelled, 1);

    // The gate stays fenced off, even if the fence grants again.
    machine.fence.0.store(true, Ordering::SeqCst);
    let proof = machine.authority.alone(Term(9));
    machine.gate.run_alone(proof);
    machine.write(2, DATA, 512);
    let _ = machine.kick();
    machine.gate.drain();
    assert!(machine.gate.take_completions().is_empty());
    assert_eq!(machine.status(status), UNTOUCHED);
    assert!(machine.driver.used().is_empty());
    assert_eq!(std::fs::read(image.path()).unwrap(), vec![0; SECTORS as usize * 512]);
}

/// A fence that always grants in its term, as an arbiter's outdated answer would.
struct Stale(u64);

impl Fence for Stale {
    fn ask(&self) -> Permission {
        Permission::Granted
    }

    fn term(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// P2, the second line of defence: the record beside the disk stops a machine that has been
/// replaced, even if its own fence grants. Flushes and reads change nothing, so the record is not
/// read for them.
#[test]
fn a_later_term_on_the_disk_stops_an_earlier_one() {
    let image = image(SECTORS);
    let record = DiskFence::beside(image.path());
    let open = |term| {
        let memory = common::guest_memory();
        let (ledger, mut authority) = new_gate();
        let gate =
            GateHost::new(ledger, memory.clone(), Arc::new(Stale(term)), GateOptions::default())
                .unwrap();
        assert!(gate.has_term());
        let disk = Disk::open(image.path(), DiskOptions::default()).unwrap();
        let disk = disk.fenced_by(DiskFence::open(&record, "vm").unwrap());
        let config =
            BlockConfig { sectors: SECTORS, read_only: false, serial: Vec::new(), queues: 1 };
        gate.attach(SLOT, Port(0), Backend::Disk(disk)).unwrap();
        let mut slot = VirtioSlot::new(SLOT, Box::new(Block::new(config)), gate.clone());
        let driver = Driver::new(&memory, RING);
        driver.install(&mut slot, 0);
        slot.driver_ok(DISK_FEATURES).unwrap();
        gate.run_alone(authority.alone(Term(term)));
        let fence = Arc::new(common::Switch(true.into(), false.into()));
        DiskMachine::of(memory, gate, authority, slot, driver, fence)
    };
    let (mut old, mut new) = (open(1), open(2));
    for (machine, byte) in [(&mut old, 1), (&mut new, 2)] {
        machine.fill(DATA, &[byte; 512]);
        let status = machine.write(0, DATA, 512);
        let _ = machine.kick();
        let _ = machine.complete(1);
        assert_eq!(machine.status(status), OK);
    }
    let late = old.write(0, DATA, 512);
    let _ = old.kick();
    wait_readable(old.gate.fenced_event().as_raw_fd());
    old.gate.drain();
    assert_eq!(old.status(late), UNTOUCHED);
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [2; 512]);
    std::fs::remove_file(record).unwrap();
}

/// P2: while the fence gives no answer, no effect is performed and none is dropped. When the
/// arbiter answers again, all are performed in order.
#[test]
fn effects_wait_for_a_fence_that_cannot_tell() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[6; 512]);
    machine.fence.1.store(true, Ordering::SeqCst);
    let status = machine.write(0, DATA, 512);
    let _ = machine.kick();
    let _ = machine.gate.seal();
    machine.commit(Epoch(0));
    while !machine.gate.waits_for_fence() {
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [0; 512]);
    assert!(!machine.gate.is_fenced_off());
    assert_eq!(machine.gate.counts().cancelled, 0);

    machine.fence.1.store(false, Ordering::SeqCst);
    assert!(machine.complete(1).used);
    assert_eq!(machine.status(status), OK);
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [6; 512]);
    assert!(!machine.gate.waits_for_fence());
}

/// P1: a guest that changes a buffer after its request does not change the committed bytes.
#[test]
fn a_held_write_is_what_it_was_when_it_was_staged() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[1; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    machine.fill(DATA, &[2; 512]);
    let _ = machine.gate.seal();
    machine.commit(Epoch(0));
    let _ = machine.complete(1);
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [1; 512]);
}

/// P8: a completion marks the pages that it writes as dirty, and no others.
#[test]
fn a_completion_marks_exactly_what_it_wrote() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let status = machine.read(0, DATA + 100, 8192);
    // Clear the marks of the driver's own writes.
    take_dirty(&machine.memory);
    let _ = machine.kick();
    machine.gate.drain();
    let used = machine.driver.used_ring();
    // The lane has read the data, but only the slot copies it into guest memory. So far the slot
    // has written only to the used ring, to stop notifications.
    assert_eq!(take_dirty(&machine.memory), [used / 4096]);
    let _ = complete(&machine.gate, &mut machine.slot, 1);
    let mut expected = vec![used / 4096, status / 4096];
    expected.extend((DATA / 4096)..=((DATA + 100 + 8191) / 4096));
    expected.sort_unstable();
    assert_eq!(take_dirty(&machine.memory), expected);
}

/// The pages marked dirty since the last call.
fn take_dirty(memory: &GuestMemory) -> Vec<u64> {
    let region = memory.iter().next().unwrap();
    let mut dirty = Vec::new();
    (**region).bitmap().take(|group, bits| {
        dirty.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| group as u64 * 64 + bit));
    });
    dirty
}

/// After a reset none of the driver's former requests is in flight, and no completion of them
/// writes to the new rings. Committed requests are performed, and held ones are not.
#[test]
fn a_reset_ends_the_requests_in_flight() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[1; 512]);
    let committed = machine.write(0, DATA, 512);
    let _ = machine.kick();
    let _ = machine.gate.seal();
    let held = machine.write(1, DATA, 512);
    let _ = machine.kick();
    machine.commit(Epoch(0));
    // One completion is already on its way to the slot.
    let late = common::wait_completions(&machine.gate, 1);

    machine.slot.reset();
    machine.driver = Driver::new(&machine.memory, RING);
    machine.driver.install(&mut machine.slot, 0);
    machine.slot.driver_ok(DISK_FEATURES).unwrap();
    for completion in late {
        assert!(!machine.slot.complete(completion).any());
    }
    assert!(machine.gate.take_completions().is_empty());
    assert!(machine.gate.seal().in_flight.is_empty());
    assert_eq!([machine.status(committed), machine.status(held)], [UNTOUCHED; 2]);
    assert!(machine.driver.used().is_empty());
    let disk = std::fs::read(image.path()).unwrap();
    assert_eq!((disk[0], disk[512]), (1, 0));

    machine.write(3, DATA, 512);
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    assert!(machine.complete(1).used);
    assert_eq!(machine.driver.used(), [(0, 1)]);
}

/// A reset waits for the requests in the lane.
#[test]
fn a_reset_waits_for_what_is_being_performed() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    machine.fill(DATA, &[1; 4096]);
    for sector in 0..4 {
        machine.write(sector * 8, DATA, 4096);
    }
    let _ = machine.kick();
    machine.slot.reset();
    assert!(machine.gate.lanes_idle());
    assert!(machine.gate.take_completions().is_empty());
    assert!(machine.gate.seal().in_flight.is_empty());
    // The driver may reuse the buffer now.
    machine.fill(DATA, &[2; 4096]);
    assert_eq!(std::fs::read(image.path()).unwrap()[..4 * 4096], [1; 4 * 4096]);
}

/// Invalid chains of a hostile guest return with length 0.
#[test]
fn bad_chains_go_back_empty() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let far = common::MEMORY as u64;
    // The ranges: outside memory; across its end; around the end of the address space; and two of a
    // huge length.
    for (addr, len) in
        [(far, 16), (far - 8, 16), (u64::MAX - 4, 16), (DATA, u32::MAX), (u64::MAX, u32::MAX)]
    {
        let head = machine.driver.add(&[(addr, len)], &[(DATA, 1)]);
        let _ = machine.kick();
        assert_eq!(machine.driver.used(), [(u32::from(head), 0)], "{addr:#x}+{len:#x}");
    }
    // A chain that is a loop.
    machine.driver.descriptor(15, DATA, 16, NEXT, 15);
    machine.driver.offer(15);
    // A next index outside the table.
    machine.driver.descriptor(14, DATA, 16, NEXT, 999);
    machine.driver.offer(14);
    // Writable before readable.
    machine.driver.descriptor(13, DATA, 16, WRITE | NEXT, 12);
    machine.driver.descriptor(12, DATA, 16, 0, 0);
    machine.driver.offer(13);
    let _ = machine.kick();
    assert_eq!(machine.driver.used(), [(15, 0), (14, 0), (13, 0)]);
    // Indirect tables: of an odd length, empty, outside memory, and too long.
    for (addr, len) in [(DATA, 17), (DATA, 0), (far, 32), (DATA, 1 << 24)] {
        machine.driver.descriptor(11, addr, len, 4, 0);
        machine.driver.offer(11);
        let _ = machine.kick();
        assert_eq!(machine.driver.used(), [(11, 0)], "indirect {addr:#x}+{len:#x}");
    }
    // An indirect table in an indirect table.
    machine.fill(DATA, &[0; 64]);
    machine.memory.write_obj(DATA + 32, GuestAddress(DATA)).unwrap();
    machine.memory.write_obj(16_u32, GuestAddress(DATA + 8)).unwrap();
    machine.memory.write_obj(4_u16, GuestAddress(DATA + 12)).unwrap();
    machine.driver.descriptor(11, DATA, 16, 4, 0);
    machine.driver.offer(11);
    let _ = machine.kick();
    assert_eq!(machine.driver.used(), [(11, 0)]);
    // The device still works.
    assert!(!machine.slot.needs_reset());
    machine.driver.descriptor(0, 0, 0, 0, 0);
    let status = machine.read(0, DATA, 512);
    let _ = machine.kick();
    let _ = machine.complete(1);
    assert_eq!(machine.status(status), OK);
}

#[test]
fn indirect_chains_work() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    machine.fill(DATA, &[8; 1024]);
    let (header, status) = machine.header(1, 4);
    machine.driver.add_indirect(
        DATA + 0x4000,
        &[(header.0, 16, false), (DATA, 512, false), (DATA + 512, 512, false), (status.0, 1, true)],
    );
    let _ = machine.kick();
    let _ = machine.complete(1);
    assert_eq!(machine.status(status.0), OK);
    assert_eq!(std::fs::read(image.path()).unwrap()[2048..3072], [8; 1024]);
}

/// A guest that rewrites its descriptors while the request is in flight harms only itself.
#[test]
fn a_chain_that_was_changed_in_flight_goes_back() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fill(DATA, &[1; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    machine.driver.descriptor(0, u64::MAX - 7, 64, 1, 0);
    let _ = machine.gate.seal();
    machine.commit(Epoch(0));
    let _ = machine.complete(1);
    assert_eq!(machine.driver.used(), [(0, 0)]);
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [1; 512]);
}

/// An impossible index in the available ring stops the device until a reset. The VMM continues.
#[test]
fn a_broken_ring_needs_a_reset() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let idx = GuestAddress(machine.driver.avail_ring() + 2);
    machine.memory.write_obj(5000_u16, idx).unwrap();
    let interrupt = machine.kick();
    assert!(interrupt.config);
    assert!(machine.slot.needs_reset());
    assert!(!machine.kick().any());
    machine.slot.reset();
    assert!(!machine.slot.needs_reset());
}

#[test]
fn requests_beyond_the_disk_fail() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let beyond = [
        machine.write(SECTORS, DATA, 512),
        machine.read(SECTORS - 1, DATA, 1024),
        machine.write(u64::MAX, DATA, 512),
        // Not a multiple of the sector size.
        machine.write(0, DATA, 100),
    ];
    let _ = machine.kick();
    assert_eq!(beyond.map(|status| machine.status(status)), [IOERR; 4]);
    assert_eq!(std::fs::metadata(image.path()).unwrap().len(), SECTORS * 512);
}

/// Event indexes: the driver sets the used buffer after which it wants an interrupt.
#[test]
fn interrupts_follow_the_event_index() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    machine.slot.reset();
    machine.driver = Driver::new(&machine.memory, RING);
    machine.driver.install(&mut machine.slot, 0);
    machine.slot.driver_ok(VERSION_1 | EVENT_IDX).unwrap();
    let used_event =
        GuestAddress(machine.driver.avail_ring() + 4 + 2 * u64::from(common::QUEUE_SIZE));
    machine.memory.write_obj(1_u16, used_event).unwrap();
    machine.read(0, DATA, 512);
    let _ = machine.kick();
    assert!(!machine.complete(1).used, "the driver asked for the second");
    machine.read(0, DATA, 512);
    let _ = machine.kick();
    assert!(machine.complete(1).used);
}

#[test]
fn a_locked_image_is_refused_by_name() {
    let image = image(SECTORS);
    let options = DiskOptions { lock: true, ..DiskOptions::default() };
    let first = Disk::open(image.path(), options).unwrap();
    let error = Disk::open(image.path(), options).unwrap_err();
    assert!(matches!(&error, DiskError::Locked { .. }));
    assert!(error.to_string().contains(image.path().to_str().unwrap()), "{error}");
    drop(first);
    Disk::open(image.path(), options).unwrap();
}

/// P4: an invalid saved state is refused, with a reason.
#[test]
fn an_impossible_state_is_refused() {
    let image = image(SECTORS);
    let machine = DiskMachine::alone(&image);
    let good = machine.slot.save();
    let (_, _, mut slot) = disk_slot(&machine.memory, &image, Arc::new(Unfenced));
    let mut bad = good.clone();
    bad.queues.clear();
    assert!(slot.restore(&bad).is_err());
    let mut bad = good.clone();
    bad.queues[0].desc_table = common::MEMORY as u64;
    assert!(slot.restore(&bad).unwrap_err().to_string().contains("slot 3: virtqueue 0"));
    let mut bad = good.clone();
    bad.queues[0].size = 1000;
    assert!(slot.restore(&bad).is_err());
    let mut bad = good.clone();
    bad.queues[0].event_idx = true;
    assert!(slot.restore(&bad).unwrap_err().to_string().contains("event indexes"));
    let mut bad = good.clone();
    bad.active = false;
    assert!(slot.restore(&bad).is_err(), "features of a driver that is down");
    let mut bad = good.clone();
    bad.features |= 1 << 60;
    assert!(slot.restore(&bad).is_err());
    slot.restore(&good).unwrap();
    assert_eq!(slot.save(), good);
    assert_eq!(slot.slot(), SLOT);
}

/// P7: whatever a guest writes to its virtqueue settings, another machine can restore the state.
/// The state of an active driver must meet more conditions.
#[test]
fn whatever_a_driver_sets_up_can_be_taken_on() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let nowhere = |slot: &mut VirtioSlot| {
        slot.set_queue_ready(0, false);
        slot.set_queue_avail(0, None, Some(7));
        slot.set_queue_ready(0, true);
    };
    let moves_on = |machine: &DiskMachine| {
        let saved = machine.slot.save();
        let (_gate, _authority, mut slot) =
            disk_slot(&machine.memory, &common::image(SECTORS), machine.fence.clone());
        slot.restore(&saved).unwrap();
        assert_eq!(slot.save(), saved);
    };
    // The device does not enable this virtqueue, whether the driver is active or not, and reports
    // the error to the driver.
    nowhere(&mut machine.slot);
    assert!(!machine.slot.queue_ready(0) && machine.slot.needs_reset());
    moves_on(&machine);
    machine.slot.reset();
    assert!(!machine.slot.needs_reset());
    machine.driver.install(&mut machine.slot, 0);
    moves_on(&machine);
    nowhere(&mut machine.slot);
    assert!(!machine.slot.queue_ready(0) && machine.slot.needs_reset());
    moves_on(&machine);
    machine.slot.driver_ok(DISK_FEATURES).unwrap_err();
    moves_on(&machine);
}

/// A restored slot finds available requests whose notification was lost.
#[test]
fn a_restored_slot_finds_lost_notifications() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    let status = machine.read(0, DATA, 512);
    let saved = machine.slot.save();
    let (gate, mut authority, mut slot) = disk_slot(&machine.memory, &image, Arc::new(Unfenced));
    slot.restore(&saved).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    let _ = slot.retry_all();
    let _ = complete(&gate, &mut slot, 1);
    assert_eq!(machine.status(status), OK);
}

/// P7: a guest whose output is held cannot make the machine buffer without limit. Its queue waits,
/// and continues after a release.
#[test]
fn a_queue_waits_when_too_much_is_held() {
    const LARGE: u32 = 16_646_144;
    let image = image(u64::from(LARGE) / 512);
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap());
    let (gate, mut authority, mut slot) = disk_slot(&memory, &image, Arc::new(Unfenced));
    let mut driver = Driver::new(&memory, RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(DISK_FEATURES).unwrap();
    memory.write_slice(&[1, 0, 0, 0], GuestAddress(0x8000)).unwrap();
    // All chains share one indirect table. A guest may do that.
    let mut held = Vec::new();
    for _ in 0..40 {
        driver
            .add_indirect(0x9000, &[(0x8000, 16, false), (DATA, LARGE, false), (0x8100, 1, true)]);
        let _ = slot.kick(0);
        held.push(gate.held());
        if held.len() > 1 && held[held.len() - 2] == gate.held() {
            break;
        }
    }
    assert!(gate.held() < 5, "held: {held:?}");
    let before = gate.held();
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    // A released effect is settled when the driver has its chain back. Only then is its memory
    // free, and the queue continues.
    let _ = complete(&gate, &mut slot, before);
    let _ = complete(&gate, &mut slot, 1);
    assert_eq!(gate.held(), 1, "the chain that had to wait");
}

/// P3: the data of a completed write is not only in the page cache, which is lost with this host.
#[test]
fn p3_a_disk_that_is_written_through_is_opened_so() {
    for write_through in [true, false] {
        let image = image(SECTORS);
        let options = DiskOptions { write_through, ..DiskOptions::default() };
        let _disk = Disk::open(image.path(), options).unwrap();
        let flags = flags_of(image.path());
        let through = flags.iter().filter(|flags| *flags & libc::O_DSYNC != 0).count();
        assert_eq!(through, usize::from(write_through), "{flags:x?}");
    }
}

/// The flags of each of this process's descriptors of the file.
fn flags_of(path: &std::path::Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = std::path::Path::new("/proc/self/fdinfo").join(entry.file_name());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            found.push(i32::from_str_radix(flags.trim(), 8).unwrap());
        }
    }
    found
}
