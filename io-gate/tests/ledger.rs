//! The ledger's invariants: counts of tokens, order of epochs, proofs, replays, bounds.
#![allow(clippy::unwrap_used)]

use io_gate::host::{
    Alone, ChainOutcome, CommitAuthority, Committed, EffectId, EffectOp, Epoch, GuestBytes,
    InFlightError, Ledger, MAX_MEMORY, MAX_RECORDED, MemoryFault, Origin, OwnPorts, Performable,
    Record, Request, Term, check_in_flight, new_gate,
};
use io_gate::{
    BlockFlush, BlockWrite, ConsoleTx, DeviceError, NetTx, Payload, Port, Power, PowerEvent,
    Verdict,
};
use proptest::prelude::*;

const PORT: Port = Port(0);

fn origin(head: u16) -> Origin {
    Origin::Chain { slot: 1, queue: 0, head }
}

/// Stages a frame for a chain.
fn stage(ledger: &mut Ledger, head: u16) -> EffectId {
    let outcome = ledger
        .chain_session(origin(head), |gate| {
            Ok(gate.token::<NetTx>().stage(PORT, Payload::inline(vec![head as u8])))
        })
        .unwrap();
    match outcome {
        ChainOutcome::Waiting(id) => id,
        ChainOutcome::Done(_) => panic!("a staged effect waits"),
    }
}

fn ids(batch: &[Performable]) -> Vec<u64> {
    batch.iter().map(|request| request.record().id.0).collect()
}

#[test]
fn tokens_are_counted() {
    let (mut ledger, _authority) = new_gate();
    stage(&mut ledger, 0);
    // A token that is issued and dropped unspent.
    let outcome = ledger.chain_session(origin(1), |gate| {
        drop(gate.token::<BlockWrite>());
        Ok(Verdict::Done(1))
    });
    assert_eq!(outcome.unwrap(), ChainOutcome::Done(1));
    ledger.detached_session(2, |gate| {
        gate.token::<ConsoleTx>().emit(PORT, b"x".to_vec());
        gate.token::<Power>().emit(PowerEvent::Off);
    });
    let counts = ledger.counts();
    assert_eq!((counts.issued, counts.staged, counts.returned), (4, 3, 1));
    assert_eq!(ledger.held(), 3);
    assert_eq!(ledger.seal(), Epoch(0));
}

/// P5: a forgotten token makes the counts wrong, so the ledger panics.
#[test]
#[should_panic(expected = "P5: 1 tokens issued, 0 staged, 0 returned")]
fn forgetting_a_token_panics() {
    let (mut ledger, _authority) = new_gate();
    ledger.detached_session(0, |gate| std::mem::forget(gate.token::<NetTx>()));
}

#[test]
#[should_panic(expected = "P5: a chain must wait for one request")]
fn a_chain_that_stages_twice_panics() {
    let (mut ledger, _authority) = new_gate();
    let _ = ledger.chain_session(origin(0), |gate| {
        let _ = gate.token::<BlockFlush>().stage(PORT);
        Ok(gate.token::<BlockFlush>().stage(PORT))
    });
}

#[test]
#[should_panic(expected = "P5: a chain was reported as done with 1 in flight")]
fn a_chain_that_stages_and_is_called_done_panics() {
    let (mut ledger, _authority) = new_gate();
    let _ = ledger.chain_session(origin(0), |gate| {
        let _ = gate.token::<BlockFlush>().stage(PORT);
        Ok(Verdict::Done(0))
    });
}

/// Effects that a device staged before it returned an error do not leave.
#[test]
fn an_error_cancels_what_was_staged() {
    let (mut ledger, mut authority) = new_gate();
    let result = ledger.chain_session(origin(0), |gate| {
        let _ = gate.token::<BlockFlush>().stage(PORT);
        Err(DeviceError::Malformed("no"))
    });
    assert!(result.is_err());
    assert_eq!((ledger.held(), ledger.counts().cancelled), (0, 1));
    assert!(ledger.in_flight().is_empty());
    ledger.seal();
    assert!(ledger.release(authority.acknowledged(Epoch(0))).is_empty());
}

/// P1: a proof covers its epoch and all epochs before it. Effects leave in the order of staging.
#[test]
fn effects_leave_in_epoch_order() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    stage(&mut ledger, 1);
    assert_eq!(ledger.seal(), Epoch(0));
    stage(&mut ledger, 2);
    assert_eq!(ledger.held_in(Epoch(1)), 1);
    assert_eq!(ledger.seal(), Epoch(1));
    stage(&mut ledger, 3);
    assert!(ledger.take_ready().is_empty());
    // The proof for epoch 1 covers epoch 0, too.
    assert_eq!(ids(&ledger.release(authority.acknowledged(Epoch(1)))), [1, 2, 3]);
    assert_eq!(ledger.held(), 1);
    // Released effects that are not settled are still in flight.
    assert_eq!(ledger.in_flight().len(), 4);
}

#[test]
#[should_panic(expected = "P1: a proof for another gate")]
fn another_gates_commit_opens_nothing() {
    let (mut ledger, _authority) = new_gate();
    let (_, mut other): (Ledger, CommitAuthority) = new_gate();
    let proof: Committed = other.acknowledged(Epoch(0));
    let _ = ledger.release(proof);
}

#[test]
#[should_panic(expected = "P2: a proof for another gate")]
fn another_gates_right_to_run_alone_opens_nothing() {
    let (mut ledger, _authority) = new_gate();
    let (_, mut other) = new_gate();
    let proof: Alone = other.alone(Term(1));
    let _ = ledger.run_alone(proof);
}

#[test]
#[should_panic(expected = "P1: epoch 3 acknowledged after")]
fn epochs_are_acknowledged_once_and_in_order() {
    let (_ledger, mut authority) = new_gate();
    let _ = authority.acknowledged(Epoch(3));
    let _ = authority.acknowledged(Epoch(3));
}

#[test]
fn alone_everything_passes_until_the_gate_holds_again() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    assert!(ledger.holds());
    assert_eq!(ids(&ledger.run_alone(authority.alone(Term(1)))), [1]);
    assert!(!ledger.holds());
    assert!(!ledger.has_ready());
    stage(&mut ledger, 1);
    assert!(ledger.has_ready());
    assert_eq!(ids(&ledger.take_ready()), [2]);
    ledger.hold();
    stage(&mut ledger, 2);
    assert!(!ledger.has_ready());
    assert!(ledger.take_ready().is_empty());
}

/// P1: a payload is copied once, at the first call of `copy_held`, and the copy stays.
#[test]
fn a_held_payload_is_copied_once() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    ledger.copy_held(|_| Some(vec![1]));
    stage(&mut ledger, 1);
    let mut asked = Vec::new();
    ledger.copy_held(|record: &Record| {
        asked.push(record.id.0);
        Some(vec![2])
    });
    assert_eq!(asked, [2]);
    let sealed = ledger.seal();
    let batch = ledger.release(authority.acknowledged(sealed));
    assert_eq!(batch[0].copy(), Some([1].as_slice()));
    assert_eq!(batch[1].copy(), Some([2].as_slice()));
}

#[test]
#[should_panic(expected = "P1: an effect of another gate settled")]
fn another_gates_effect_settles_nothing() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    let batch = ledger.run_alone(authority.alone(Term(1)));
    let (mut other, _authority) = new_gate();
    batch.into_iter().for_each(|request| other.settle(request));
}

/// P1: a proof must be of a sealed epoch. A proof with an invented epoch number does not cover
/// effects that are staged now.
#[test]
#[should_panic(expected = "P1: a proof for epoch 0, but epoch 0 is not sealed yet")]
fn a_proof_of_the_running_epoch_opens_nothing() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    let _ = ledger.release(authority.acknowledged(Epoch(0)));
}

#[test]
#[should_panic(expected = "P2: the right to run alone in term 1 after 2")]
fn terms_only_grow() {
    let (_ledger, mut authority) = new_gate();
    let _ = authority.alone(Term(2));
    let _ = authority.alone(Term(1));
}

/// P5: a panic cannot hide a forgotten token: the next seal finds it, in release builds too.
#[test]
fn a_token_forgotten_before_a_panic_is_found_at_the_next_seal() {
    let (mut ledger, _authority) = new_gate();
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ledger.detached_session(0, |gate| {
            std::mem::forget(gate.token::<NetTx>());
            panic!("the device gives up");
        });
    }));
    assert!(run.is_err());
    let seal = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ledger.seal()));
    let message = *seal.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("1 tokens issued, 0 staged, 0 returned, 1 missing"), "{message}");
    assert!(message.contains("mem::forget"), "{message}");
}

/// P3: requests in flight move to another process as data. They are performed again there, and
/// counted as replays. The ids continue.
#[test]
fn requests_in_flight_are_adopted_and_replayed() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    ledger.chain_session(origin(7), |gate| Ok(gate.token::<BlockFlush>().stage(PORT))).unwrap();
    let sealed = ledger.seal();
    let (next_id, in_flight) = (ledger.next_id(), ledger.in_flight());
    // Effects that are released but not yet reported to the driver are still in flight.
    let _ = ledger.release(authority.acknowledged(sealed));
    assert_eq!(ledger.in_flight(), in_flight);

    let wire = postcard::to_allocvec(&in_flight).unwrap();
    let arrived: Vec<Record> = postcard::from_bytes(&wire).unwrap();
    assert_eq!(arrived, in_flight);
    let (mut heir, mut authority) = new_gate();
    heir.adopt(sealed, next_id, arrived);
    assert_eq!((heir.epoch(), heir.held(), heir.holds()), (sealed.next(), 2, true));
    assert!(heir.take_ready().is_empty(), "P2: nothing leaves before the right is won");
    let batch = heir.run_alone(authority.alone(Term(2)));
    assert_eq!(ids(&batch), [1, 2]);
    assert!(batch.iter().all(Performable::is_replay));
    batch.into_iter().for_each(|request| heir.settle(request));
    assert_eq!(stage(&mut heir, 1), next_id);
    heir.seal();
    let counts = heir.counts();
    assert_eq!((counts.replayed, counts.performed, counts.staged), (2, 0, 1));
}

#[test]
#[should_panic(expected = "P2: a gate in use cannot adopt")]
fn a_gate_in_use_adopts_nothing() {
    let (mut ledger, _authority) = new_gate();
    stage(&mut ledger, 0);
    let in_flight = ledger.in_flight();
    ledger.adopt(Epoch(4), EffectId(9), in_flight);
}

/// P4: a list that no ledger can write is refused before it is acknowledged.
#[test]
fn an_impossible_list_of_requests_is_refused() {
    let (mut ledger, _authority) = new_gate();
    stage(&mut ledger, 0);
    stage(&mut ledger, 1);
    let good = ledger.in_flight();
    let check = |epoch, next, list: &[Record]| {
        check_in_flight(Epoch(epoch), EffectId(next), list, &OwnPorts::none())
    };
    assert_eq!(check(0, 3, &good), Ok(()));
    assert_eq!(check(0, 2, &good), Err(InFlightError::Order(EffectId(2))));
    let twice = [good[0].clone(), good[0].clone()];
    assert_eq!(check(0, 3, &twice), Err(InFlightError::Order(EffectId(1))));
    let mut later = good.clone();
    later[1].epoch = Epoch(1);
    assert_eq!(check(0, 3, &later), Err(InFlightError::Epoch(EffectId(2))));
    // A machine that adopts the list must be able to continue the ids.
    assert_eq!(check(0, u64::MAX, &good), Err(InFlightError::Next(EffectId(u64::MAX))));
}

#[test]
fn held_bytes_are_known() {
    let (mut ledger, mut authority) = new_gate();
    let emit = |ledger: &mut Ledger, len| {
        ledger.detached_session(1, |gate| gate.token::<ConsoleTx>().emit(PORT, vec![0; len]));
    };
    emit(&mut ledger, 10);
    let sealed = ledger.seal();
    emit(&mut ledger, 5);
    stage(&mut ledger, 0);
    assert_eq!(ledger.held_bytes(), 16);
    ledger.cancel_chains_of(1);
    assert_eq!(ledger.held_bytes(), 15);
    let _ = ledger.release(authority.acknowledged(sealed));
    assert_eq!(ledger.held_bytes(), 5);
    let _ = ledger.run_alone(authority.alone(Term(1)));
    emit(&mut ledger, 7);
    assert_eq!(ledger.held_bytes(), 7);
    let _ = ledger.take_ready();
    assert_eq!(ledger.held_bytes(), 0);
}

/// A reset of one device drops the requests of its chains. It drops neither the device's detached
/// effects nor the requests of another device's chains.
#[test]
fn a_reset_cancels_the_chains_of_one_slot() {
    let (mut ledger, mut authority) = new_gate();
    stage(&mut ledger, 0);
    ledger.detached_session(1, |gate| gate.token::<ConsoleTx>().emit(PORT, vec![0]));
    let other = Origin::Chain { slot: 2, queue: 0, head: 0 };
    ledger.chain_session(other, |gate| Ok(gate.token::<BlockFlush>().stage(PORT))).unwrap();
    ledger.cancel_chains_of(1);
    assert_eq!(ledger.counts().cancelled, 1);
    let sealed = ledger.seal();
    assert_eq!(ids(&ledger.release(authority.acknowledged(sealed))), [2, 3]);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Stage,
    Return,
    Emit,
    Seal,
    Acknowledge,
    Alone,
    Hold,
    Settle,
    CancelHeld,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Stage),
        1 => Just(Step::Return),
        2 => Just(Step::Emit),
        3 => Just(Step::Seal),
        3 => Just(Step::Acknowledge),
        1 => Just(Step::Alone),
        1 => Just(Step::Hold),
        5 => Just(Step::Settle),
        1 => Just(Step::CancelHeld),
    ]
}

proptest! {
    /// P1, P5: in any history, an effect leaves at most once, in the order of staging, and never
    /// before a proof covers it. The counts are balanced (seal asserts it).
    #[test]
    fn no_history_breaks_the_order(steps in prop::collection::vec(step(), 1..200)) {
        let (mut ledger, mut authority) = new_gate();
        let mut sealed = Vec::new();
        let mut acknowledged: Option<Epoch> = None;
        let mut left: Vec<Performable> = Vec::new();
        let mut last = 0;
        let mut term = 0;
        for step in steps {
            let batch = match step {
                Step::Stage => { stage(&mut ledger, 3); ledger.take_ready() }
                Step::Return => {
                    ledger.detached_session(0, |gate| drop(gate.token::<NetTx>()));
                    Vec::new()
                }
                Step::Emit => {
                    ledger.detached_session(0, |gate| gate.token::<ConsoleTx>().emit(PORT, vec![]));
                    ledger.take_ready()
                }
                Step::Seal => { sealed.push(ledger.seal()); Vec::new() }
                Step::Acknowledge => match sealed.pop() {
                    Some(epoch) => {
                        sealed.clear();
                        acknowledged = Some(epoch);
                        ledger.release(authority.acknowledged(epoch))
                    }
                    None => Vec::new(),
                },
                Step::Alone => { term += 1; ledger.run_alone(authority.alone(Term(term))) }
                Step::Hold => { ledger.hold(); Vec::new() }
                Step::Settle => {
                    if !left.is_empty() { ledger.settle(left.remove(0)); }
                    Vec::new()
                }
                Step::CancelHeld => { ledger.cancel_held(); Vec::new() }
            };
            for request in &batch {
                let record = request.record();
                prop_assert!(record.id.0 > last, "left twice or out of order");
                last = record.id.0;
                let covered = acknowledged.is_some_and(|epoch| record.epoch <= epoch);
                prop_assert!(covered || !ledger.holds(), "left without a proof");
                prop_assert!(matches!(record.request, Request::Effect(_)));
            }
            left.extend(batch);
        }
        ledger.seal();
        let counts = ledger.counts();
        prop_assert_eq!(counts.issued, counts.staged + counts.merged + counts.returned);
    }
}

/// Guest memory of one page.
struct Page(std::cell::RefCell<[u8; 4096]>);

impl GuestBytes for Page {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let page = self.0.borrow();
        let bytes = page.get(addr as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(MemoryFault(addr))?);
        Ok(())
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        let mut page = self.0.borrow_mut();
        let bytes = page.get_mut(addr as usize..).and_then(|rest| rest.get_mut(..from.len()));
        bytes.ok_or(MemoryFault(addr))?.copy_from_slice(from);
        Ok(())
    }
}

/// P8: the gate gives access to guest memory only to a bus master, and only to memory that the far
/// side has lent.
#[test]
fn only_a_bus_master_reaches_guest_memory() {
    let (mut ledger, _authority) = new_gate();
    let page = Page(std::cell::RefCell::new([7; 4096]));
    let mut byte = [0];
    ledger.detached_session(1, |gate| {
        assert_eq!(gate.dma_read(16, &mut byte), Err(MemoryFault(16)));
        assert_eq!(gate.dma_write(16, &[9]), Err(MemoryFault(16)));
    });
    let outcome = ledger.chain_session(Origin::Chain { slot: 1, queue: 0, head: 0 }, |gate| {
        assert_eq!(gate.dma_write(16, &[9]), Err(MemoryFault(16)));
        Ok(Verdict::Done(0))
    });
    assert_eq!(outcome, Ok(ChainOutcome::Done(0)));
    assert_eq!((byte, page.0.borrow()[16]), ([0], 7));
    ledger.bus_master_session(1, &page, |gate| {
        assert_eq!(gate.dma_read(16, &mut byte), Ok(()));
        assert_eq!(gate.dma_write(16, &[9]), Ok(()));
        assert_eq!(gate.dma_write(4096, &[9]), Err(MemoryFault(4096)));
    });
    assert_eq!((byte, page.0.borrow()[16]), ([7], 9));
}

/// P1: a frame for which no chain waits is held like any other, with its bytes.
#[test]
fn a_detached_frame_is_held_with_its_bytes() {
    let (mut ledger, _authority) = new_gate();
    ledger.detached_session(3, |gate| gate.token::<NetTx>().emit(PORT, vec![5; 72]));
    assert!(ledger.take_ready().is_empty());
    let in_flight = ledger.in_flight();
    let [record] = in_flight.as_slice() else { panic!("{in_flight:?}") };
    assert_eq!(record.origin, Origin::Detached { slot: 3 });
    let Request::Effect(EffectOp::NetTx { frame, .. }) = &record.request else {
        panic!("{record:?}")
    };
    assert_eq!(frame.inline_bytes(), Some(&[5; 72][..]));
}

fn print(ledger: &mut Ledger, slot: u16, byte: u8) {
    ledger.detached_session(slot, |gate| gate.token::<ConsoleTx>().emit(PORT, vec![byte]));
}

/// The bytes of console effects, in order.
fn printed(in_flight: &[Record]) -> Vec<u8> {
    let bytes = in_flight.iter().filter_map(|record| match &record.request {
        Request::Effect(EffectOp::ConsoleTx { bytes, .. }) => bytes.inline_bytes(),
        _ => None,
    });
    bytes.flatten().copied().collect()
}

/// P9: a guest that prints byte by byte while its output is held takes little more memory than the
/// bytes.
#[test]
fn p9_held_bytes_of_a_console_are_gathered() {
    let (mut ledger, _authority) = new_gate();
    let text: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
    for byte in &text {
        print(&mut ledger, 4, *byte);
        // Output of another console does not interrupt the merging.
        print(&mut ledger, 5, 0);
    }
    let weight = ledger.load_of(4);
    assert!(weight.memory < 2 * text.len(), "{weight:?}");
    let of_slot: Vec<Record> =
        ledger.in_flight().into_iter().filter(|record| record.origin.slot() == 4).collect();
    assert!(printed(&of_slot) == text, "every byte once, in order");
    let encoded = postcard::to_allocvec(&of_slot).unwrap();
    assert!(encoded.len() < text.len() + text.len() / 50, "{}", encoded.len());
    let counts = ledger.counts();
    assert_eq!(counts.issued, counts.staged + counts.merged);
    ledger.seal();
}

/// P1: nothing is merged into an effect that is sealed, has left or was dropped.
#[test]
fn p1_nothing_is_added_to_what_was_sealed_or_has_left() {
    let (mut ledger, mut authority) = new_gate();
    print(&mut ledger, 4, b'a');
    let sealed = ledger.seal();
    let checkpoint = ledger.in_flight();
    print(&mut ledger, 4, b'b');
    let left = ledger.release(authority.acknowledged(sealed));
    assert_eq!(ids(&left), [1]);
    assert_eq!(checkpoint[0], *left[0].record());
    // The effect has left. It is never settled, so it stays in flight.
    drop(left);
    assert_eq!(ledger.held(), 1);
    let sealed = ledger.seal();
    drop(ledger.release(authority.acknowledged(sealed)));
    print(&mut ledger, 4, b'c');
    assert_eq!((ledger.held(), printed(&ledger.in_flight())), (1, b"abc".to_vec()));
    ledger.cancel_held();
    print(&mut ledger, 4, b'd');
    assert_eq!((ledger.held(), printed(&ledger.in_flight())), (1, b"abd".to_vec()));
}

/// P9: only one reset is held for a guest that requests resets again and again.
#[test]
fn p9_a_reset_is_held_once() {
    let (mut ledger, mut authority) = new_gate();
    let reset = |ledger: &mut Ledger| {
        ledger.detached_session(2, |gate| gate.token::<Power>().emit(PowerEvent::Reset));
    };
    for _ in 0..1000 {
        reset(&mut ledger);
    }
    let sealed = ledger.seal();
    reset(&mut ledger);
    assert_eq!((ledger.held(), ledger.counts().merged), (1, 1000));
    let left = ledger.release(authority.acknowledged(sealed));
    reset(&mut ledger);
    assert_eq!(ledger.held(), 1, "the first one has left");
    left.into_iter().for_each(|request| ledger.settle(request));
    ledger.seal();
}

/// P9: each request counts until it is settled, with the gate open or closed. A slot gets full, and
/// has room again only when requests are settled.
#[test]
fn p9_what_is_not_settled_is_bounded_with_the_gate_open_as_well() {
    for alone in [false, true] {
        let (mut ledger, mut authority) = new_gate();
        if alone {
            drop(ledger.run_alone(authority.alone(Term(1))));
        }
        let mut left = Vec::new();
        let mut frames = 0_usize;
        while !ledger.is_full(3) {
            ledger.detached_session(3, |gate| gate.token::<NetTx>().emit(PORT, vec![0; 1500]));
            left.extend(ledger.take_ready());
            frames += 1;
            assert!(
                frames < 100_000,
                "no end, with the gate {}",
                if alone { "open" } else { "shut" }
            );
        }
        assert!(ledger.load_of(3).memory > frames * 1500);
        assert!(!ledger.is_full(4), "one slot's share is not another's");
        assert!(!ledger.has_room(3));
        if !alone {
            let sealed = ledger.seal();
            left = ledger.release(authority.acknowledged(sealed));
            assert!(ledger.is_full(3), "released is not settled");
        }
        left.into_iter().for_each(|request| ledger.settle(request));
        assert!(ledger.has_room(3));
        assert_eq!(ledger.load(), Default::default());
    }
}

/// P4, P9: all requests of many devices fit the record size that a standby accepts, and this host's
/// memory bound. A slot with little in flight can continue while others use all that they can.
#[test]
fn p4_a_full_gate_fits_its_bounds() {
    let (mut ledger, _authority) = new_gate();
    let slots = 24_u16;
    for slot in 0..slots {
        let mut head = 0;
        while !ledger.is_full(slot) {
            match slot % 3 {
                0 => ledger.detached_session(slot, |gate| {
                    gate.token::<NetTx>().emit(PORT, vec![0xff; 66]);
                }),
                1 => print(&mut ledger, slot, 0xff),
                _ => {
                    let origin = Origin::Chain { slot, queue: 0, head };
                    head = head.wrapping_add(1);
                    let staged = ledger
                        .chain_session(origin, |gate| Ok(gate.token::<BlockFlush>().stage(PORT)));
                    assert!(staged.is_ok());
                }
            }
        }
        assert!(
            ledger.load_of(slot).recorded >= 64 << 10 || ledger.load_of(slot).memory >= 1 << 20
        );
    }
    let encoded = postcard::to_allocvec(&ledger.in_flight()).unwrap().len();
    let load = ledger.load();
    assert!(encoded <= load.recorded && load.recorded <= MAX_RECORDED, "{encoded}, {load:?}");
    assert!(load.memory <= MAX_MEMORY, "{load:?}");
}
