//! The list, the lanes and the queue (R1, R2, R5, R10, R12), and what outputs wait for (R4).

use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::{OwnPorts, new_gate_with_own_disks};

use super::*;
use crate::{Epoch, Time};

const LIMITS: Limits = Limits { bytes: 300, epoch: 200, drain: Duration::from_millis(50) };

/// The last epoch that may be released, and when it was sealed.
fn released(holds: &mut Holds) -> Option<(Epoch, Time)> {
    let authority = new_gate_with_own_disks(OwnPorts::none()).commit;
    holds.release(&authority).map(|(durable, sealed)| (durable.epoch(), sealed))
}

fn startable(queue: &Queue) -> Vec<Ticket> {
    queue.startable().collect()
}

fn list(operations: impl IntoIterator<Item = Operation>) -> Sealed {
    let mut list = List::new(LIMITS, Seq(0));
    list.begin();
    for operation in operations {
        list.record(operation);
    }
    list.seal()
}

fn committed(operations: impl IntoIterator<Item = Operation>) -> Queue {
    let mut queue = Queue::new(10_000, Seq(0));
    queue.receive(Some(Epoch(1)), list(operations).entries).unwrap();
    queue.commit(Epoch(1), &|_, _| None).unwrap();
    queue
}

#[test]
fn r1_overlapping_entries_never_swap_and_others_may() {
    let mut queue = committed([write(0, &[1; 16]), write(8, &[2; 16]), write(64, &[3; 8])]);
    assert_eq!(startable(&queue), [Ticket(1), Ticket(3)]);
    queue.start(Ticket(3));
    queue.done(Ticket(3));
    assert_eq!((startable(&queue), queue.performed()), (Vec::from([Ticket(1)]), Seq(0)));
    queue.start(Ticket(1));
    assert_eq!(startable(&queue), []);
    queue.done(Ticket(1));
    assert_eq!((startable(&queue), queue.performed()), (Vec::from([Ticket(2)]), Seq(1)));
    queue.start(Ticket(2));
    queue.done(Ticket(2));
    assert_eq!((queue.performed(), queue.durable()), (Seq(3), Seq(0)));
    assert!(queue.is_drained() && queue.wants_sync());
    queue.synced(Seq(3));
    assert_eq!((queue.durable(), queue.wants_sync()), (Seq(3), false));
}

#[test]
fn r1_nothing_is_written_past_a_flush_before_its_sync_has_ended() {
    let other = Operation::Zero { extent: Extent { disk: 1, start: 0, len: 8 } };
    let mut queue = committed([write(0, &[1; 8]), Operation::Flush, other]);
    assert_eq!(startable(&queue), [Ticket(1)]);
    queue.start(Ticket(1));
    assert_eq!(startable(&queue), []);
    queue.done(Ticket(1));
    assert_eq!(startable(&queue), [Ticket(2)]);
    queue.start(Ticket(2));
    assert_eq!(startable(&queue), []);
    queue.done(Ticket(2));
    assert_eq!((startable(&queue), queue.durable()), (Vec::from([Ticket(3)]), Seq(2)));
}

#[test]
fn r1_the_primary_does_not_wait_for_its_own_flush() {
    let mut lane = Lane::of_primary(Seq(0));
    lane.push(Some(Seq(1)), Reach::Flush, ());
    let write = lane.push(Some(Seq(2)), Reach::Changes(extent(0, 8)), ());
    let read = lane.push(None, Reach::Reads(extent(4, 8)), ());
    assert_eq!(lane.startable().collect::<Vec<_>>(), [Ticket(1), write]);
    assert!(lane.touches(&extent(7, 1)) && !lane.touches(&extent(8, 1)));
    lane.start(write);
    lane.done(write);
    assert_eq!(lane.startable().collect::<Vec<_>>(), [Ticket(1), read]);
    assert_eq!(lane.performed(), Seq(0));
}

#[test]
fn r5_the_first_failure_is_final() {
    let mut queue = committed([write(0, &[1; 8]), write(64, &[2; 8]), Operation::Flush]);
    queue.start(Ticket(1));
    queue.fail(Ticket(1));
    assert_eq!((startable(&queue), queue.performed()), (Vec::new(), Seq(0)));
}

#[test]
fn r1_an_entry_that_is_missing_or_comes_again_is_refused() {
    let mut queue = Queue::new(10_000, Seq(4));
    let entry = |seq| Entry { seq: Seq(seq), operation: Operation::Flush };
    let gap = queue.receive(Some(Epoch(1)), Vec::from([entry(5), entry(7)]));
    assert_eq!(gap, Err(QueueError::Gap { expected: Seq(6), found: Seq(7) }));
    assert_eq!(queue.last(), Seq(4), "nothing was taken");
    queue.receive(Some(Epoch(1)), Vec::from([entry(5)])).unwrap();
    assert!(queue.receive(Some(Epoch(2)), Vec::from([entry(5)])).is_err());
}

#[test]
fn r1_what_is_not_committed_never_happened() {
    let mut queue = Queue::new(10_000, Seq(0));
    let sealed = list([write(0, &[1; 8])]);
    queue.receive(Some(Epoch(3)), sealed.entries.clone()).unwrap();
    queue.commit(Epoch(2), &|_, _| None).unwrap();
    assert!(queue.is_drained());
    queue.drop_uncommitted();
    assert_eq!(queue.last(), Seq(0));
    queue.receive(Some(Epoch(3)), sealed.entries).unwrap();
    queue.commit(Epoch(3), &|_, _| None).unwrap();
    assert!(!queue.is_drained());
}

#[test]
fn r2_payloads_are_copied_out_of_the_memory_of_their_checkpoint() {
    let mut queue = Queue::new(10_000, Seq(0));
    let by_reference = Operation::Write { extent: extent(0, 8), payload: Payload::Memory(4096) };
    let entries = list([by_reference]).entries;
    queue.receive(Some(Epoch(1)), entries.clone()).unwrap();
    let memory =
        |address, len: u64| (address == 4096).then(|| Vec::from([7; 8])).filter(|_| len == 8);
    queue.commit(Epoch(1), &memory).unwrap();
    let entry = queue.start(Ticket(1)).cloned();
    assert_eq!(entry.map(|entry| entry.operation), Some(write(0, &[7; 8])));
    let mut early = Queue::new(10_000, Seq(0));
    let missing = early.receive(None, entries);
    assert_eq!(missing, Err(QueueError::Memory { seq: Seq(1), address: 4096 }));
}

#[test]
fn r2_the_primary_stages_no_more_than_the_standby_can_hold() {
    let mut list = List::new(LIMITS, Seq(0));
    let operation = write(0, &[1; 36]);
    assert_eq!(operation.bytes(), 100);
    let mut queue = Queue::new(LIMITS.bytes, Seq(0));
    for _ in 0..9 {
        assert!(list.admits(&operation), "R12: without a standby nothing is listed");
        list.record(operation.clone());
    }
    assert_eq!(list.seal().entries, []);
    let mut list = List::new(LIMITS, Seq(0));
    list.begin();
    let huge = write(0, &[1; 1000]);
    assert!(list.admits(&huge), "an operation that is larger than the bound");
    for listed in 0..3 {
        assert!(list.admits(&operation), "{listed}");
        assert_eq!(list.wants_seal(), listed >= 2);
        list.record(operation.clone());
    }
    assert!(!list.admits(&operation) && !list.admits(&huge));
    queue.receive(Some(Epoch(1)), list.seal().entries).unwrap();
    assert!(!list.admits(&operation), "sent, and not performed");
    let full = queue.receive(Some(Epoch(1)), Vec::from([Entry { seq: Seq(4), operation: huge }]));
    assert!(matches!(full, Err(QueueError::Full { .. })));
    list.report(&Report { performed: Seq(1), ..Report::default() });
    assert!(list.admits(&operation));
    let slow = Duration::from_millis(51);
    list.report(&Report { performed: Seq(1), drain: slow, ..Report::default() });
    assert!(!list.admits(&operation), "the standby needs too long");
    list.end();
    assert!(list.admits(&operation));
}

#[test]
fn r8_a_block_that_is_not_read_yet_keeps_its_place() {
    let mut list = List::new(LIMITS, Seq(0));
    list.begin();
    list.record(write(0, &[1; 8]));
    let copy = list.reserve(80);
    list.record(write(0, &[2; 8]));
    assert!(!list.may_seal());
    assert_eq!(list.seal().entries.len(), 1);
    list.fill(copy, Operation::Copy { extent: extent(0, 16), bytes: Vec::from([1; 16]) });
    assert!(list.may_seal());
    let entries = list.seal().entries;
    assert_eq!(entries.iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [2, 3]);
    assert!(matches!(entries[0].operation, Operation::Copy { .. }));
}

#[test]
fn r10_a_reset_takes_nothing_from_the_list() {
    let mut list = List::new(LIMITS, Seq(0));
    list.begin();
    list.record(write(0, &[1; 8]));
    list.reset();
    let sealed = list.seal();
    assert_eq!((sealed.entries.len(), sealed.end), (1, Seq(1)));
}

#[test]
fn r1_a_takeover_performs_what_is_queued_before_the_guests_new_writes() {
    let mut queue = committed([write(0, &[1; 8]), Operation::Flush]);
    queue
        .receive(Some(Epoch(2)), Vec::from([Entry { seq: Seq(3), operation: Operation::Flush }]))
        .unwrap();
    let mut lane = queue.into_lane();
    assert_eq!(lane.len(), 2, "epoch 2 is not committed");
    let entry = Entry { seq: Seq(3), operation: write(0, &[2; 8]) };
    let new = lane.push(Some(Seq(3)), Reach::Changes(extent(0, 8)), entry.clone());
    for ticket in [Ticket(1), Ticket(2), new] {
        assert_eq!(lane.startable().collect::<Vec<_>>(), [ticket]);
        lane.start(ticket);
        lane.done(ticket);
    }
    // From now on it is a primary's lane.
    lane.push(None, Reach::Flush, entry.clone());
    let write = lane.push(Some(Seq(4)), Reach::Changes(extent(0, 8)), entry);
    assert_eq!(lane.startable().last(), Some(write));
}

#[test]
fn r4_outputs_wait_for_the_standbys_images_and_for_the_set() {
    let mut holds = Holds::new(FlushMode::Both);
    holds.listed(Epoch(1), Seq(10), Seq(4));
    holds.listed(Epoch(2), Seq(12), Seq(4));
    holds.listed(Epoch(3), Seq(15), Seq(14));
    holds.acknowledged(Epoch(1), Time(1));
    assert!(!holds.is_covered());
    holds.durable(Seq(9));
    assert!(!holds.is_covered(), "the first checkpoint ends with entry 10");
    holds.durable(Seq(10));
    assert!(holds.is_covered());
    assert_eq!((released(&mut holds), holds.oldest()), (None, Some((Epoch(1), Time(1)))));
    holds.enlarged();
    holds.acknowledged(Epoch(2), Time(2));
    holds.acknowledged(Epoch(3), Time(3));
    assert_eq!(released(&mut holds), Some((Epoch(2), Time(1))));
    assert_eq!((released(&mut holds), holds.oldest()), (None, Some((Epoch(3), Time(3)))));
    holds.durable(Seq(13));
    assert_eq!(released(&mut holds), None);
    holds.durable(Seq(14));
    assert_eq!(released(&mut holds), Some((Epoch(3), Time(3))));
    holds.session_ended();
    assert!(!holds.is_covered() && !holds.is_in_set());
}

#[test]
fn r4_the_weaker_mode_waits_for_no_standbys_image() {
    let mut holds = Holds::new(FlushMode::Memory);
    holds.listed(Epoch(1), Seq(0), Seq(0));
    holds.listed(Epoch(2), Seq(12), Seq(12));
    holds.acknowledged(Epoch(1), Time(1));
    holds.enlarged();
    holds.acknowledged(Epoch(2), Time(2));
    assert_eq!(released(&mut holds), Some((Epoch(2), Time(2))));
    assert!(!Holds::after_takeover(FlushMode::Memory, Seq(3)).holds_takeover());
}

#[test]
fn r5_after_a_failed_sync_no_other_one_counts() {
    let mut queue = committed([write(0, &[1; 8]), write(64, &[2; 8])]);
    queue.start(Ticket(1));
    queue.done(Ticket(1));
    queue.sync_failed();
    queue.synced(Seq(1));
    assert_eq!((queue.durable(), startable(&queue)), (Seq(0), Vec::new()));
    assert!(queue.into_lane().has_failed());
}

fn huge() -> Operation {
    write(0, &[1; 1000])
}

fn recording() -> List {
    let mut list = List::new(LIMITS, Seq(0));
    list.begin();
    list
}

/// An entry that takes 100 bytes of a bound.
fn entry(seq: u64) -> Entry {
    Entry { seq: Seq(seq), operation: write(64 * seq, &[1; 36]) }
}

#[test]
fn r1_entries_without_a_common_byte_do_not_wait_for_each_other() {
    let other_disk = Operation::Zero { extent: Extent { disk: 1, start: 0, len: 8 } };
    let queue = committed([write(0, &[1; 8]), write(8, &[2; 8]), other_disk]);
    assert_eq!(startable(&queue), [Ticket(1), Ticket(2), Ticket(3)]);
    let queue = committed([write(8, &[1; 8]), write(0, &[2; 8])]);
    assert_eq!(startable(&queue), [Ticket(1), Ticket(2)]);
}

#[test]
fn r1_a_write_a_zeroing_and_a_copied_block_change_the_image() {
    let extent = extent(0, 8);
    let copy = Operation::Copy { extent, bytes: Vec::from([1; 8]) };
    for operation in [write(0, &[1; 8]), Operation::Zero { extent }, copy] {
        assert!(operation.changes(), "{operation:?}");
    }
    for operation in [Operation::Flush, Operation::Compare { extent, hash: 1 }] {
        assert!(!operation.changes(), "{operation:?}");
    }
}

#[test]
fn r2_an_operation_without_bytes_takes_as_much_of_the_bound_as_an_empty_write() {
    let extent = extent(0, 8);
    let compare = Operation::Compare { extent, hash: 1 };
    for operation in [Operation::Zero { extent }, Operation::Flush, compare] {
        assert_eq!(operation.bytes(), write(0, &[]).bytes(), "{operation:?}");
    }
}

#[test]
fn r1_a_takeover_completes_only_the_requests_that_are_not_performed() {
    let mut lane = Lane::of_primary(Seq(0));
    let read = lane.push(None, Reach::Reads(extent(0, 8)), 'r');
    let first = lane.push(Some(Seq(1)), Reach::Changes(extent(8, 8)), 'a');
    let second = lane.push(Some(Seq(2)), Reach::Changes(extent(16, 8)), 'b');
    assert_eq!((lane.get(second), lane.seq(second)), (Some(&'b'), Some(Seq(2))));
    assert_eq!((lane.seq(first), lane.seq(read)), (Some(Seq(1)), None));
    lane.done(first);
    assert_eq!(lane.unfinished().collect::<Vec<_>>(), [(read, None), (second, Some(Seq(2)))]);
    assert_eq!(lane.startable().collect::<Vec<_>>(), [read, second], "each is performed once");
    assert_eq!(lane.performed(), Seq(1), "a read is no entry");
    assert!(!lane.touches(&extent(8, 8)) && lane.touches(&extent(16, 8)));
}

#[test]
fn r12_alone_nothing_is_listed_and_no_epoch_is_full() {
    let mut list = List::new(Limits { epoch: 1, ..LIMITS }, Seq(0));
    list.record(huge());
    assert!(!list.wants_seal());
    let nothing = Sealed { entries: Vec::new(), end: Seq(1), flushed: Seq(0) };
    assert_eq!(list.seal(), nothing);
}

#[test]
fn r12_nothing_of_the_session_before_is_listed_or_counts() {
    let restart: [fn(&mut List); 2] = [List::begin, |list| {
        list.end();
        list.record(huge());
        assert_eq!(list.seal().entries, []);
        list.begin();
    }];
    for restart in restart {
        let mut list = recording();
        list.record(huge());
        list.seal();
        list.reserve(1000);
        let slow = LIMITS.drain + Duration::from_millis(1);
        list.report(&Report { drain: slow, ..Report::default() });
        restart(&mut list);
        assert!(list.may_seal() && !list.wants_seal());
        assert!(list.admits(&huge()), "nothing is listed or sent");
        let first = list.record(entry(1).operation);
        assert!(list.admits(&entry(2).operation));
        let entries = list.seal().entries;
        assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [first]);
        assert!(!list.admits(&huge()), "one entry is sent");
    }
}

#[test]
fn r12_recording_has_ended_when_the_standby_is_gone() {
    let mut list = recording();
    list.reserve(1000);
    list.end();
    assert!(list.may_seal() && !list.wants_seal() && !list.is_recording());
}

#[test]
fn r2_a_standby_that_needs_just_as_long_as_it_may_is_no_reason_to_wait() {
    let mut list = recording();
    list.record(entry(1).operation);
    list.report(&Report { drain: LIMITS.drain, ..Report::default() });
    assert!(list.admits(&entry(2).operation));
}

#[test]
fn r8_each_block_is_filled_in_at_its_own_place() {
    let mut list = recording();
    let places = [list.reserve(8), list.reserve(8)];
    list.fill(places[1], write(8, &[2; 8]));
    assert!(list.seal().entries.is_empty(), "the first block is not read");
    list.fill(places[0], write(0, &[1; 8]));
    let operations: Vec<_> = list.seal().entries.into_iter().map(|entry| entry.operation).collect();
    assert_eq!(operations, [write(0, &[1; 8]), write(8, &[2; 8])]);
}

#[test]
fn r4_a_list_says_which_flush_the_guest_has_seen_last() {
    let mut list = recording();
    assert_eq!((list.flushed(), list.seal().flushed), (Seq(0), Seq(0)));
    // Flushes complete in any order.
    list.flush_completed(Seq(3));
    list.flush_completed(Seq(2));
    assert_eq!((list.flushed(), list.seal().flushed), (Seq(3), Seq(3)));
    let mut after_takeover = List::new(LIMITS, Seq(20));
    after_takeover.adopt_flushed(Seq(12));
    assert_eq!(after_takeover.seal().flushed, Seq(12));
}

#[test]
fn r2_the_queue_takes_as_much_as_the_list_and_has_room_again_when_it_is_performed() {
    let mut queue = Queue::new(300, Seq(0));
    queue.receive(None, Vec::from([entry(1)])).unwrap();
    queue.receive(None, Vec::from([entry(2), entry(3)])).unwrap();
    let full = QueueError::Full { limit: 300, found: 400 };
    assert_eq!(queue.receive(None, Vec::from([entry(4)])), Err(full));
    assert_eq!(queue.get(Ticket(2)), Some(&entry(2)));
    queue.start(Ticket(2));
    queue.done(Ticket(2));
    queue.receive(None, Vec::from([entry(4)])).unwrap();
}

#[test]
fn r2_the_first_entry_has_room_on_both_sides() {
    assert!(recording().admits(&huge()));
    let mut queue = Queue::new(LIMITS.bytes, Seq(0));
    queue.receive(None, Vec::from([Entry { seq: Seq(1), operation: huge() }])).unwrap();
}

#[test]
fn r2_what_is_dropped_with_its_checkpoint_takes_no_room() {
    let mut queue = Queue::new(300, Seq(0));
    queue.receive(None, Vec::from([entry(1)])).unwrap();
    queue.receive(Some(Epoch(1)), Vec::from([entry(2), entry(3)])).unwrap();
    queue.drop_uncommitted();
    queue.receive(Some(Epoch(1)), Vec::from([entry(2), entry(3)])).unwrap();
}

#[test]
fn r6_each_session_begins_without_a_cover_and_with_nothing_durable() {
    let mut holds = Holds::new(FlushMode::Both);
    for _ in 0..2 {
        holds.listed(Epoch(7), Seq(1), Seq(1));
        holds.acknowledged(Epoch(7), Time(1));
        assert!(!holds.is_covered());
        holds.enlarged();
        assert_eq!((released(&mut holds), holds.oldest()), (None, Some((Epoch(7), Time(1)))));
        holds.durable(Seq(1));
        assert!(holds.is_covered());
        // One epoch waits for its acknowledgement when the session ends, one for its flush.
        holds.listed(Epoch(8), Seq(9), Seq(9));
        holds.acknowledged(Epoch(8), Time(2));
        holds.listed(Epoch(9), Seq(10), Seq(9));
        holds.session_ended();
        assert_eq!(holds.oldest(), None);
    }
}
