//! P7, P9: stopping a standby waits for no other thread, and a term that the standby was about to
//! win is released.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};

use ft_core::Term;
use ft_core::primary::Phase;
use ft_core::standby::{Event, Lack};
use io_gate_host::Unfenced;
use kemari_arbiter::Arbiter;
use kemari_machine::config::{DiskConfig, MachineConfig};
use kemari_replication::descriptors::Reserve;
use kemari_replication::primary::Engine;
use kemari_replication::standby::{End, Input};
use kvm_bindings::kvm_regs;

use pair::{
    Cable, Held, IDLE, PATIENCE, Slow, Standby, arbiter, config, disks, engine_options, machine,
    start_engine, wait_for, wait_phase,
};

const MEMORY: u64 = 16 << 20;

/// A protected primary, over a cable that can be cut. Its own claims get no answer during the test.
struct Primary {
    cable: Cable,
    engine: Arc<Engine>,
    asks: Receiver<Term>,
    _answer: Sender<()>,
}

impl Primary {
    /// `far` is the path at which the standby listens.
    fn protected(dir: &Path, far: PathBuf, has_arbiter: bool, disks: Vec<DiskConfig>) -> Self {
        let cable = Cable::new(dir.join("near"), far);
        let (slow, asks, answer) = Slow::new(arbiter(dir, "primary"));
        let ours = has_arbiter.then_some(slow as Arc<dyn Arbiter>);
        let term = ours.as_ref().map_or(Term(0), |ours| ours.begin(false).unwrap());
        let config = MachineConfig { disks, ..config(MEMORY, 1) };
        let (machine, authority) = machine(config, IDLE, kvm_regs::default());
        let options = engine_options(&cable.path);
        let engine = start_engine(&machine, authority, ours, term, options);
        wait_phase(&engine, Phase::Protected);
        Self { cable, engine, asks, _answer: answer }
    }
}

/// P9. Fails if a signal waits for room in the queue of a busy standby: the second signal would not
/// be handled either.
#[test]
fn the_end_of_a_standby_does_not_wait_for_its_queue() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let (busy, is_busy) = sync_channel(1);
    let (let_go, held) = channel::<()>();
    let before = move || {
        busy.send(()).unwrap();
        // Blocks until the test releases the standby.
        let _ = held.recv();
    };
    let standby = Standby::start_held(&link, PATIENCE, None, None, before);
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    let _engine = start_engine(&machine, authority, None, Term(0), engine_options(&link));
    is_busy.recv_timeout(PATIENCE).unwrap();
    while standby.inputs.try_send(Input::Event(Event::Tick)).is_ok() {}
    let (done, is_done) = channel();
    let stop = standby.stop.clone();
    std::thread::spawn(move || {
        stop.stop();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(PATIENCE).expect("whoever ends it waits for it");
    drop(let_go);
    standby.has_stopped();
}

/// P2, P7. Fails if the standby ends before the arbiter has answered: a dead process would hold the
/// term.
#[test]
fn a_term_that_a_standby_wins_while_it_ends_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let (theirs, is_asked, answer) = Slow::new(arbiter(dir.path(), "standby"));
    let standby = Standby::start(&far, PATIENCE, Some(theirs));
    let primary = Primary::protected(dir.path(), far, true, Vec::new());
    primary.cable.cut();
    assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2));
    standby.stop.stop();
    wait_for("the end", || standby.status()["state"] == "stopped");
    answer.send(()).unwrap();
    assert!(matches!(standby.end(), End::Stopped { had_won: true, .. }));
    assert_eq!(arbiter(dir.path(), "somebody").begin(false).unwrap(), Term(3));
}

/// P7. Fails if the standby keeps a term that is granted after the standby no longer wants it.
#[test]
fn a_term_that_is_wanted_no_more_is_given_free() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = arbiter(dir.path(), "standby");
    assert_eq!(theirs.begin(false).unwrap(), Term(1));
    let standby = Standby::start(&dir.path().join("link"), PATIENCE, Some(theirs));
    standby.inputs.send(Input::Event(Event::ArbiterGranted { term: Term(1) })).unwrap();
    let somebody = arbiter(dir.path(), "somebody");
    wait_for("the term to be free", || somebody.begin(false).is_ok());
    standby.stops();
}

/// P2, P7. Fails if a standby that is stopped while it prepares a takeover still claims the term:
/// it would take the term from a live primary, and no machine would use it.
#[test]
fn a_standby_that_ends_while_it_makes_ready_asks_for_no_term() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let disks = disks(dir.path());
    let (theirs, is_asked, _answer) = Slow::new(arbiter(dir.path(), "standby"));
    let (fence, opening, let_go) = Held::new(theirs.fence());
    let standby =
        Standby::start_with_disks(&far, Some(theirs), fence, disks.clone(), Arc::default());
    let primary = Primary::protected(dir.path(), far, true, disks);
    primary.cable.cut();
    opening.recv_timeout(PATIENCE).unwrap();
    standby.stops();
    let_go.send(()).unwrap();
    // The claiming thread has ended and has dropped the arbiter.
    assert_eq!(is_asked.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

/// P7. Fails if a planned takeover holds the primary's output while this side opens its backends.
#[test]
fn p7_a_move_keeps_the_primary_waiting_only_when_this_side_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let disks = disks(dir.path());
    let (theirs, is_asked, answer) = Slow::new(arbiter(dir.path(), "standby"));
    let (fence, opening, let_go) = Held::new(theirs.fence());
    let standby =
        Standby::start_with_disks(&far, Some(theirs), fence, disks.clone(), Arc::default());
    let _primary = Primary::protected(dir.path(), far, true, disks);
    let (reply, outcome) = sync_channel(1);
    let said = Some(standby.session());
    standby.inputs.send(Input::Operator(Event::OperatorTakeOver, said, reply)).unwrap();
    opening.recv_timeout(PATIENCE).unwrap();
    assert_eq!(standby.status()["state"], "ready");
    let_go.send(()).unwrap();
    assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2));
    assert_eq!(outcome.recv_timeout(PATIENCE).unwrap(), Ok(()));
    answer.send(()).unwrap();
    assert!(matches!(standby.end(), End::TakeOver(_)));
}

/// P3, P7. Fails if an error at opening, for an operator's takeover, discards a checkpoint for
/// which the arbiter has been asked since: no machine would have the guest.
#[test]
fn p7_a_move_that_the_primarys_loss_overtakes_discards_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let (theirs, is_asked, answer) = Slow::new(arbiter(dir.path(), "standby"));
    let standby = Standby::start(&far, PATIENCE, Some(theirs));
    let primary = Primary::protected(dir.path(), far, true, Vec::new());
    let said = standby.session();
    primary.cable.cut();
    assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2));
    for (opened, expected) in
        [(Err("no disk".to_owned()), "no disk"), (Ok(()), "already asked the arbiter")]
    {
        let (reply, outcome) = sync_channel(1);
        standby.inputs.send(Input::Opened(said, opened, reply)).unwrap();
        let refusal = outcome.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert_eq!(standby.status()["state"], "doubting");
    answer.send(()).unwrap();
    assert!(matches!(standby.end(), End::TakeOver(_)));
}

/// P9. Fails if a refused takeover leaves the descriptors released, so that no primary can connect
/// any more, or if a second request reserves them again while the first one opens its backends.
#[test]
fn a_take_over_that_is_refused_leaves_the_door_open() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let disks = disks(dir.path());
    let (fence, opening, let_go) = Held::new(Arc::new(Unfenced));
    let reserve = Arc::<Reserve>::default();
    let standby = Standby::start_with_disks(&far, None, fence, disks.clone(), reserve.clone());
    let primary = Primary::protected(dir.path(), far, false, disks);
    primary.cable.cut();
    wait_for("the loss", || standby.status()["state"] == "waiting-for-operator");
    let take_over = || {
        let (reply, outcome) = sync_channel(1);
        let said = Some(standby.session());
        standby.inputs.send(Input::Operator(Event::OperatorTakeOver, said, reply)).unwrap();
        outcome
    };
    let first = take_over();
    opening.recv_timeout(PATIENCE).unwrap();
    let refusal = take_over().recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(refusal.contains("in progress"), "{refusal}");
    assert!(!reserve.is_held(), "the first one needs them");
    let lack = Some(Lack { reason: "no disk".into(), blocks: true });
    standby.inputs.send(Input::Event(Event::Resources { lack })).unwrap();
    let_go.send(()).unwrap();
    assert!(first.recv_timeout(PATIENCE).unwrap().is_err());
    assert!(reserve.is_held());
    standby.stops();
}

/// P2, P7. Fails if a primary that panics does not report why, or if it claims the next term itself
/// when its standby closes the link: no machine would have the guest.
#[test]
fn p7_the_last_word_of_a_primary_that_panics_leaves_the_term_to_its_standby() {
    const PLACE: &str = "device `pager` panicked at devices/src/pager.rs:71";
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let (theirs, is_asked, answer) = Slow::new(arbiter(dir.path(), "standby"));
    let standby = Standby::start(&far, PATIENCE, Some(theirs));
    let primary = Primary::protected(dir.path(), far, true, Vec::new());
    primary.engine.last_word(PLACE.to_owned(), PATIENCE);
    assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2));
    wait_for("the loss", || primary.engine.phase() != Phase::Protected);
    assert!(primary.asks.try_recv().is_err(), "it claims the term");
    answer.send(()).unwrap();
    let End::TakeOver(inheritance) = standby.end() else { panic!("it does not take over") };
    assert_eq!(inheritance.reason, format!("the primary does not go on: {PLACE}"));
    let refused = arbiter(dir.path(), "somebody").begin(false).unwrap_err().to_string();
    assert!(refused.contains(PLACE), "whoever starts it again is told: {refused}");
}
