//! Own disks: effects that leave the ledger without a proof of commitment, and the conditions for
//! performing them.
#![allow(clippy::unwrap_used)]

use io_gate::host::{
    DiskId, DurableCommitAuthority, EffectId, EffectOp, Epoch, GuestBytes, GuestRange,
    InFlightError, InputOp, Ledger, ListAuthority, Listable, MemoryFault, NotInSet, Origin,
    OwnGate, OwnOp, OwnPorts, OwnRequest, Performable, Place, Record, Recorded, Request, Seq, Term,
    check_in_flight, lend_chain, new_gate, new_gate_with_own_disks,
};
use io_gate::{BlockFlush, BlockWrite, DeviceError, NetTx, Payload, Port};
use proptest::prelude::*;

const DISK: u16 = 1;
const NET: u16 = 2;
const PORT: Port = Port(0);

fn ports() -> OwnPorts {
    OwnPorts::new(vec![(DISK, PORT)])
}

fn origin(slot: u16, head: u16) -> Origin {
    Origin::Chain { slot, queue: 0, head }
}

fn write(ledger: &mut Ledger, head: u16, bytes: &[u8]) {
    let data = Payload::inline(bytes.to_vec());
    let sector = u64::from(head);
    let staged = ledger.chain_session(origin(DISK, head), |gate| {
        Ok(gate.token::<BlockWrite>().stage(PORT, sector, data))
    });
    staged.unwrap();
}

fn flush(ledger: &mut Ledger, head: u16) {
    let staged =
        ledger.chain_session(origin(DISK, head), |gate| Ok(gate.token::<BlockFlush>().stage(PORT)));
    staged.unwrap();
}

fn send(ledger: &mut Ledger, head: u16) {
    let frame = Payload::inline(vec![0; 64]);
    let staged = ledger
        .chain_session(origin(NET, head), |gate| Ok(gate.token::<NetTx>().stage(PORT, frame)));
    staged.unwrap();
}

fn take(ledger: &mut Ledger) -> Vec<Listable> {
    let taken = ledger.take_own(|_| None).into_iter().map(|request| match request {
        OwnRequest::Operation(operation) => operation,
        OwnRequest::Read(read) => panic!("{read:?}"),
    });
    taken.collect()
}

fn record(gate: &mut OwnGate, operation: Listable, seq: u64) -> Recorded {
    let place = gate.list.listed(&operation, Seq(seq));
    gate.ledger.record_own(operation, place)
}

/// The only operation that is staged, recorded at this place.
fn record_one(gate: &mut OwnGate, seq: u64) -> Recorded {
    let mut taken = take(&mut gate.ledger);
    let operation = taken.remove(0);
    assert!(taken.is_empty());
    record(gate, operation, seq)
}

fn performable(list: &mut ListAuthority, recorded: Recorded) -> Performable {
    let marked = list.marked(&recorded);
    recorded.performable(marked)
}

fn recording() -> OwnGate {
    let mut gate = new_gate_with_own_disks(ports());
    gate.list.begin();
    gate
}

/// P1, R1: an operation on an own disk is not held, and a frame is. It needs its place and its mark
/// to be performed, and no proof of commitment.
#[test]
fn r1_an_own_disk_waits_for_its_place_and_its_mark_alone() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[7; 512]);
    send(&mut gate.ledger, 1);
    assert_eq!((gate.ledger.held(), gate.ledger.has_own()), (1, true));
    assert!(gate.ledger.take_ready().is_empty());

    let recorded = record_one(&mut gate, 5);
    assert_eq!((recorded.seq(), recorded.is_listed()), (Seq(5), true));
    assert_eq!(recorded.bytes(), Some(&[7; 512][..]));
    assert!(recorded.mark_of_flush().is_none(), "a write needs a mark");
    let sealed = gate.ledger.seal();
    let performable = performable(&mut gate.list, recorded);
    assert!(!performable.is_replay() && performable.gate() == gate.ledger.gate());
    gate.ledger.settle(performable);
    assert_eq!(gate.ledger.in_flight().len(), 1, "the frame");
    gate.ledger.seal();

    let durable = gate.commit.durable(sealed, Seq(5), Seq(5)).unwrap();
    let proof = gate.commit.acknowledged(durable);
    gate.ledger.release(proof).into_iter().for_each(|sent| gate.ledger.settle(sent));
    gate.ledger.seal();
    let counts = gate.ledger.counts();
    assert_eq!((counts.issued, counts.staged, counts.performed), (2, 1, 1));
    assert_eq!((counts.own.staged, counts.own.performed), (1, 1));
}

/// R3: a flush changes no byte, so it needs no mark.
#[test]
fn r3_a_flush_needs_no_mark() {
    let mut gate = recording();
    flush(&mut gate.ledger, 0);
    let recorded = record_one(&mut gate, 1);
    let marked = recorded.mark_of_flush().unwrap();
    gate.ledger.settle(recorded.performable(marked));
    gate.ledger.seal();
    assert_eq!(gate.ledger.counts().own.performed, 1);
}

/// A gate without own disks has none of it.
#[test]
fn a_shared_disk_is_held_as_before() {
    let (mut ledger, _authority) = new_gate();
    write(&mut ledger, 0, &[0; 512]);
    assert_eq!((ledger.held(), ledger.has_own()), (1, false));
    // Another port of the same slot is shared.
    let mut gate = new_gate_with_own_disks(OwnPorts::new(vec![(DISK, Port(1))]));
    write(&mut gate.ledger, 0, &[0; 512]);
    assert_eq!((gate.ledger.held(), gate.ledger.has_own()), (1, false));
}

struct Memory([u8; 4096]);

impl GuestBytes for Memory {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        into.copy_from_slice(&self.0[addr as usize..][..into.len()]);
        Ok(())
    }

    fn write_at(&self, addr: u64, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault(addr))
    }
}

fn write_from_memory(ledger: &mut Ledger, memory: &Memory) {
    let readable = vec![GuestRange { addr: 512, len: 512 }];
    let mut chain = lend_chain(memory, readable, Vec::new());
    let staged = ledger.chain_session(origin(DISK, 0), |gate| {
        let data = chain.take_payload(512)?;
        Ok(gate.token::<BlockWrite>().stage(PORT, 0, data))
    });
    staged.unwrap();
}

/// R1: both sides perform the bytes of the staging. Fails if the copy is taken later.
#[test]
fn r1_an_operation_carries_its_bytes_as_they_were_staged() {
    let mut gate = recording();
    let mut memory = Memory([1; 4096]);
    write_from_memory(&mut gate.ledger, &memory);
    let taken = gate.ledger.take_own(|_| Some(memory.0[512..1024].to_vec()));
    memory.0.fill(2);
    let [OwnRequest::Operation(operation)] = <[_; 1]>::try_from(taken).unwrap() else {
        panic!("an operation")
    };
    assert_eq!(operation.bytes(), Some(&[1; 512][..]));
    let recorded = record(&mut gate, operation, 1);
    let performable = performable(&mut gate.list, recorded);
    assert_eq!(performable.copy(), Some(&[1; 512][..]));
}

#[test]
#[should_panic(expected = "R1: the payload of EffectId(1) cannot be copied")]
fn r1_an_operation_without_its_bytes_is_not_recorded() {
    let mut gate = recording();
    write_from_memory(&mut gate.ledger, &Memory([1; 4096]));
    let _ = gate.ledger.take_own(|_| None);
}

/// R1: reads keep their place among the operations. They are not recorded.
#[test]
fn r1_reads_of_an_own_disk_stay_in_order() {
    let mut gate = recording();
    let memory = Memory([0; 4096]);
    write(&mut gate.ledger, 0, &[0; 512]);
    let mut chain = lend_chain(&memory, Vec::new(), vec![GuestRange { addr: 0, len: 512 }]);
    let asked = gate.ledger.chain_session(origin(DISK, 1), |gate| {
        let into = chain.take_space(512)?;
        Ok(gate.block_read(PORT, 0, into))
    });
    asked.unwrap();
    flush(&mut gate.ledger, 2);
    assert!(!gate.ledger.has_ready());
    let taken = gate.ledger.take_own(|_| None);
    let ids: Vec<u64> = taken.iter().map(|request| request.record().id.0).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert!(matches!(
        &taken[1],
        OwnRequest::Read(read) if matches!(read.record().request, Request::Input(InputOp::BlockRead { .. }))
    ));
}

/// R1: an epoch is not sealed before everything that was staged in it has its place: the standby
/// would neither perform it nor complete it.
#[test]
#[should_panic(expected = "R1: 1 operations on own disks without a place in the list at the end")]
fn r1_an_epoch_is_not_sealed_with_an_operation_that_is_not_recorded() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[0; 512]);
    let _taken = take(&mut gate.ledger);
    gate.ledger.seal();
}

/// R10: after a takeover, too, a reset drops the completion only.
#[test]
fn r10_a_request_of_a_checkpoint_is_settled_after_a_reset() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[0; 512]);
    let _recorded = record_one(&mut gate, 1);
    let (epoch, next) = (gate.ledger.seal(), gate.ledger.next_id());
    let in_flight = gate.ledger.in_flight();
    let mut heir = new_gate_with_own_disks(ports());
    heir.ledger.adopt(epoch, next, in_flight);
    let mut completable = heir.ledger.take_completable();
    let request = completable.remove(0);
    heir.ledger.cancel_chains_of(DISK);
    heir.ledger.abandon_chains_of(DISK);
    heir.ledger.settle_completed(request);
    heir.ledger.seal();
    assert_eq!(heir.ledger.counts().own.cancelled, 1);
}

fn moved(in_flight: &[Record]) -> Vec<Record> {
    postcard::from_bytes(&postcard::to_allocvec(in_flight).unwrap()).unwrap()
}

/// R1: a takeover completes the operations in flight when their entries are performed. No proof
/// makes them performable again.
#[test]
fn r1_a_takeover_completes_and_does_not_perform_again() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[1; 512]);
    let first = record_one(&mut gate, 8);
    flush(&mut gate.ledger, 1);
    let second = record_one(&mut gate, 9);
    let sealed = gate.ledger.seal();
    let in_flight = moved(&gate.ledger.in_flight());
    let placed = |record: &Record| match &record.request {
        Request::Own(OwnOp { seq, .. }) => *seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(in_flight.iter().map(placed).collect::<Vec<_>>(), [Some(Seq(8)), Some(Seq(9))]);
    drop((first, second));

    let mut heir = new_gate_with_own_disks(ports());
    heir.ledger.adopt(sealed, gate.ledger.next_id(), in_flight);
    assert!(heir.ledger.run_alone(heir.commit.alone(Term(2))).is_empty());
    assert!(heir.ledger.take_ready().is_empty() && !heir.ledger.has_own());
    heir.ledger.seal();
    let completable = heir.ledger.take_completable();
    assert!(heir.ledger.take_completable().is_empty(), "taken once");
    let seqs: Vec<Seq> = completable.iter().map(|request| request.seq()).collect();
    assert_eq!(seqs, [Seq(8), Seq(9)]);
    completable.into_iter().for_each(|request| heir.ledger.settle_completed(request));
    heir.ledger.seal();
    let own = heir.ledger.counts().own;
    assert_eq!((own.staged, own.performed, own.completed), (0, 0, 2));
    assert_eq!((heir.ledger.in_flight().len(), heir.ledger.load().memory), (0, 0));
}

/// R10: a reset of the device takes no operation from the list. The chain is completed no more.
#[test]
fn r10_a_reset_drops_the_completion_only() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[1; 512]);
    let recorded = record_one(&mut gate, 1);
    assert!(gate.ledger.cancel_chains_of(DISK).is_empty());
    assert!(gate.ledger.abandon_chains_of(DISK).is_empty(), "it is no effect");
    assert!(gate.ledger.in_flight().is_empty());
    gate.ledger.seal();
    let performable = performable(&mut gate.list, recorded);
    assert_eq!(performable.record().id, EffectId(1));
    gate.ledger.settle(performable);
    gate.ledger.seal();
    let own = gate.ledger.counts().own;
    assert_eq!((own.staged, own.performed, own.cancelled), (1, 0, 1));
    assert_eq!(gate.ledger.load().memory, 0);
}

/// R10: a reset between staging and recording takes nothing from the list either.
#[test]
fn r10_an_operation_that_was_taken_is_recorded_after_a_reset_too() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[1; 512]);
    let mut taken = take(&mut gate.ledger);
    gate.ledger.abandon_chains_of(DISK);
    let recorded = record(&mut gate, taken.remove(0), 1);
    assert_eq!((recorded.seq(), recorded.bytes()), (Seq(1), Some(&[1; 512][..])));
    gate.ledger.settle(performable(&mut gate.list, recorded));
    gate.ledger.seal();
}

/// What a device stages before it refuses the chain never leaves the ledger.
#[test]
fn what_a_refused_chain_staged_is_not_recorded() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[1; 512]);
    let refused = gate.ledger.chain_session(origin(DISK, 1), |gate| {
        let _ = gate.token::<BlockFlush>().stage(PORT);
        Err(DeviceError::Malformed("no"))
    });
    assert!(refused.is_err());
    write(&mut gate.ledger, 2, &[1; 512]);
    assert!(gate.ledger.cancel_held().is_empty());
    let ids: Vec<u64> = take(&mut gate.ledger).iter().map(|one| one.record().id.0).collect();
    assert_eq!(ids, [1, 3]);
    assert_eq!(gate.ledger.counts().own.cancelled, 1);
}

#[test]
fn what_was_not_taken_is_cancelled_with_its_chains() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[1; 512]);
    assert!(gate.ledger.cancel_chains_of(DISK).is_empty(), "it is no effect");
    assert!(!gate.ledger.has_own());
    gate.ledger.seal();
    assert_eq!(gate.ledger.counts().own.cancelled, 1);
}

fn two(gate: &mut OwnGate) -> (Listable, Listable) {
    write(&mut gate.ledger, 0, &[0; 512]);
    write(&mut gate.ledger, 1, &[0; 512]);
    let mut taken = take(&mut gate.ledger);
    let second = taken.pop().unwrap();
    (taken.pop().unwrap(), second)
}

#[test]
#[should_panic(expected = "R1: expected the place of operation 2, found that of 1")]
fn r1_a_place_is_for_one_operation() {
    let mut gate = recording();
    let (first, second) = two(&mut gate);
    let place = gate.list.listed(&first, Seq(1));
    let _ = gate.ledger.record_own(second, place);
}

#[test]
#[should_panic(expected = "R3: expected the mark of operation 2, found that of 1")]
fn r3_a_mark_is_for_one_operation() {
    let mut gate = recording();
    let (first, second) = two(&mut gate);
    let first = record(&mut gate, first, 1);
    let second = record(&mut gate, second, 2);
    let marked = gate.list.marked(&first);
    let _ = second.performable(marked);
}

#[test]
#[should_panic(expected = "R1: operation 1 gets the number 2, after Some(EffectId(2))")]
fn r1_the_order_of_the_list_is_that_of_the_requests() {
    let mut gate = recording();
    let (first, second) = two(&mut gate);
    let _: Place = gate.list.listed(&second, Seq(1));
    let _ = gate.list.listed(&first, Seq(2));
}

#[test]
#[should_panic(expected = "R1: operation 2 gets the number 4")]
fn r1_a_number_is_given_once() {
    let mut gate = recording();
    let (first, second) = two(&mut gate);
    let _: Place = gate.list.listed(&first, Seq(4));
    let _ = gate.list.listed(&second, Seq(4));
}

/// R12. Without a standby nothing is listed, and the operation has its number all the same.
#[test]
fn r12_alone_an_operation_is_performed_without_being_listed() {
    let mut gate = new_gate_with_own_disks(ports());
    write(&mut gate.ledger, 0, &[0; 512]);
    let operation = take(&mut gate.ledger).remove(0);
    let place = gate.list.not_recording(&operation, Seq(3));
    let recorded = gate.ledger.record_own(operation, place);
    assert_eq!((recorded.seq(), recorded.is_listed()), (Seq(3), false));
    gate.ledger.settle(performable(&mut gate.list, recorded));
    gate.ledger.seal();
}

#[test]
#[should_panic(expected = "R1: operation 1 is not listed, but the standby expects it")]
fn r1_with_a_standby_each_operation_is_listed() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[0; 512]);
    let operation = take(&mut gate.ledger).remove(0);
    let _ = gate.list.not_recording(&operation, Seq(1));
}

#[test]
#[should_panic(expected = "R12: operation 1 is listed, but nothing is recorded")]
fn r12_after_the_end_of_the_recording_nothing_is_listed() {
    let mut gate = recording();
    gate.list.end();
    write(&mut gate.ledger, 0, &[0; 512]);
    let operation = take(&mut gate.ledger).remove(0);
    let _ = gate.list.listed(&operation, Seq(1));
}

#[test]
#[should_panic(expected = "R1: an operation of another gate is recorded")]
fn r1_another_gates_list_records_nothing() {
    let (mut gate, mut other) = (recording(), recording());
    write(&mut gate.ledger, 0, &[0; 512]);
    let operation = take(&mut gate.ledger).remove(0);
    let _ = other.list.listed(&operation, Seq(1));
}

#[test]
#[should_panic(expected = "R3: the mark of another gate's operation")]
fn r3_another_gates_list_marks_nothing() {
    let (mut gate, mut other) = (recording(), recording());
    write(&mut gate.ledger, 0, &[0; 512]);
    let recorded = record_one(&mut gate, 1);
    let _ = other.list.marked(&recorded);
}

/// R4: outputs after a flush wait until the standby is durable up to it.
#[test]
fn r4_an_epoch_with_a_flush_is_committed_when_the_standby_is_durable() {
    let mut authority: DurableCommitAuthority = recording().commit;
    assert!(authority.durable(Epoch(0), Seq(8), Seq(7)).is_none());
    let durable = authority.durable(Epoch(0), Seq(8), Seq(8)).unwrap();
    assert_eq!(durable.epoch(), Epoch(0));
    assert_eq!(authority.acknowledged(durable).epoch(), Epoch(0));
}

#[test]
#[should_panic(expected = "R4: a durable epoch of another gate")]
fn r4_another_gates_durable_epoch_commits_nothing() {
    let (mut authority, other) = (recording().commit, recording().commit);
    let durable = other.durable(Epoch(0), Seq(0), Seq(0)).unwrap();
    let _ = authority.acknowledged(durable);
}

#[test]
#[should_panic(expected = "P1: epoch 3 acknowledged after")]
fn p1_durable_epochs_are_acknowledged_once_and_in_order() {
    let mut authority = recording().commit;
    for _ in 0..2 {
        let durable = authority.durable(Epoch(3), Seq(0), Seq(0)).unwrap();
        let _ = authority.acknowledged(durable);
    }
}

/// R7: a won term gives a right to the images of its set, and to no other.
#[test]
fn r7_an_image_outside_of_the_set_is_not_opened_for_writing() {
    let mut gate = recording();
    let won = gate.terms.won(Term(4), vec![DiskId(1), DiskId(2)]);
    let right = won.right_to(DiskId(2)).unwrap();
    assert_eq!((right.image(), right.term(), won.term()), (DiskId(2), Term(4), Term(4)));
    assert_eq!(right.gate(), gate.ledger.gate());
    let outside = won.right_to(DiskId(3)).unwrap_err();
    assert_eq!(outside, NotInSet { term: Term(4), image: DiskId(3) });
    assert!(outside.to_string().contains("image 00000003 in the set of term 4"), "{outside}");
}

#[test]
#[should_panic(expected = "P2: term 3 was won after 4")]
fn p2_terms_of_images_only_grow() {
    let mut gate = recording();
    let _ = gate.terms.won(Term(4), Vec::new());
    let _ = gate.terms.won(Term(3), Vec::new());
}

/// P4: the two sides must have the same disks as own ones.
#[test]
fn p4_a_checkpoint_of_a_machine_with_other_own_disks_is_refused() {
    let mut gate = recording();
    write(&mut gate.ledger, 0, &[0; 512]);
    let _recorded = record_one(&mut gate, 1);
    let own = gate.ledger.in_flight();
    let (mut shared, _authority) = new_gate();
    write(&mut shared, 0, &[0; 512]);
    let shared = shared.in_flight();
    let check = |list: &[Record], own: &OwnPorts| check_in_flight(Epoch(0), EffectId(9), list, own);
    assert_eq!(check(&own, &ports()), Ok(()));
    assert_eq!(check(&shared, &OwnPorts::none()), Ok(()));
    let refused = Err(InFlightError::Own(EffectId(1)));
    assert_eq!(check(&own, &OwnPorts::none()), refused);
    assert_eq!(check(&shared, &ports()), refused);
    let mut unplaced = own.clone();
    if let Request::Own(own) = &mut unplaced[0].request {
        own.seq = None;
    }
    assert_eq!(check(&unplaced, &ports()), refused);
    let mut frame = own;
    if let Request::Own(own) = &mut frame[0].request {
        own.op = EffectOp::NetTx { port: PORT, frame: Payload::inline(Vec::new()) };
    }
    assert_eq!(check(&frame, &ports()), refused);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write,
    Flush,
    Send,
    Perform,
    Settle,
    Reset,
    Seal,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Write),
        2 => Just(Step::Flush),
        2 => Just(Step::Send),
        5 => Just(Step::Perform),
        5 => Just(Step::Settle),
        1 => Just(Step::Reset),
        3 => Just(Step::Seal),
        1 => Just(Step::Move),
    ]
}

proptest! {
    /// P5, R1: in any history the counts are balanced (seal asserts it), and each operation is
    /// performed by one machine, once.
    #[test]
    fn p5_no_history_loses_an_operation(steps in prop::collection::vec(step(), 1..200)) {
        let mut gate = recording();
        let (mut recorded, mut performing) = (Vec::new(), Vec::new());
        let mut seq = 0;
        let mut performed = std::collections::BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            let head = at as u16;
            match step {
                Step::Write => write(&mut gate.ledger, head, &[0; 512]),
                Step::Flush => flush(&mut gate.ledger, head),
                Step::Send => send(&mut gate.ledger, head),
                Step::Perform if !recorded.is_empty() => {
                    let next = performable(&mut gate.list, recorded.remove(0));
                    prop_assert!(performed.insert(next.record().id), "performed twice");
                    performing.push(next);
                }
                Step::Settle if !performing.is_empty() => {
                    gate.ledger.settle(performing.remove(0));
                }
                Step::Reset => {
                    gate.ledger.cancel_chains_of(DISK);
                    gate.ledger.abandon_chains_of(DISK);
                }
                Step::Seal => { gate.ledger.seal(); }
                Step::Move => {
                    let epoch = gate.ledger.seal();
                    let (next, list) = (gate.ledger.next_id(), moved(&gate.ledger.in_flight()));
                    let mut heir = new_gate_with_own_disks(ports());
                    heir.ledger.adopt(epoch, next, list);
                    heir.list.begin();
                    for request in heir.ledger.take_completable() {
                        heir.ledger.settle_completed(request);
                    }
                    (gate, seq) = (heir, 0);
                    recorded.clear();
                    performing.clear();
                }
                Step::Perform | Step::Settle => {}
            }
            for operation in take(&mut gate.ledger) {
                seq += 1;
                recorded.push(record(&mut gate, operation, seq));
            }
        }
        gate.ledger.seal();
    }
}
