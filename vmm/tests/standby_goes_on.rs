//! P7, P9: a standby serves its operator and the next session, even if an arbiter, or the backends
//! of a machine that it drops, do not answer. P2: an operator's request for one session is not
//! applied to another.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use ft_core::Term;
use ft_core::handshake::MachineLayout;
use ft_core::primary::Phase;
use ft_core::standby::Event;
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::{Fence, Permission};
use kemari_arbiter::Arbiter;
use kemari_machine::Machine;
use kemari_machine::config::{DiskConfig, MachineConfig};
use kemari_replication::primary::Engine;
use kemari_replication::standby::{End, HostError, Input, MachineFactory, SessionId};
use kvm_bindings::kvm_regs;

use pair::{
    Cable, IDLE, PATIENCE, Slow, Standby, arbiter, config, disks, engine_options, machine,
    start_engine, wait_decided, wait_for, wait_phase,
};

const MEMORY: u64 = 16 << 20;

/// A part of a machine whose drop blocks until the test allows it.
struct Clinging(Arc<Mutex<Receiver<()>>>);

impl Drop for Clinging {
    fn drop(&mut self) {
        // Returns an error after the test has dropped the sender.
        let _ = self.0.lock().unwrap().recv();
    }
}

impl Fence for Clinging {
    fn ask(&self) -> Permission {
        Permission::Granted
    }
}

/// Builds machines whose drop blocks.
struct Clings(Arc<Mutex<Receiver<()>>>);

impl Clings {
    fn new() -> (Self, Sender<()>) {
        let (let_go, held) = channel();
        (Self(Arc::new(held.into())), let_go)
    }
}

impl MachineFactory for Clings {
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError> {
        let (ledger, authority) = new_gate();
        let config = config(layout.memory_size(), layout.cpus);
        Ok((Machine::build(config, ledger, Arc::new(Clinging(self.0.clone())))?, authority))
    }
}

/// A pair whose link can be cut; its standby listens at `far`.
struct Pair {
    dir: tempfile::TempDir,
    cable: Cable,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cable = Cable::new(dir.path().join("near"), dir.path().join("far"));
        Self { dir, cable }
    }

    fn far(&self) -> std::path::PathBuf {
        self.dir.path().join("far")
    }

    /// Starts the side that runs the guest.
    fn primary(
        &self,
        arbiter: Option<Arc<dyn Arbiter>>,
        cpus: u32,
        disks: Vec<DiskConfig>,
    ) -> Arc<Engine> {
        let term = arbiter.as_ref().map_or(Term(0), |arbiter| arbiter.begin(false).unwrap());
        let config = MachineConfig { disks, ..config(MEMORY, cpus) };
        let (machine, authority) = machine(config, IDLE, kvm_regs::default());
        start_engine(&machine, authority, arbiter, term, engine_options(&self.cable.path))
    }

    /// Cuts the link; the operator then lets the primary continue and join the standby again.
    fn next_session(&self, engine: &Arc<Engine>, standby: &Standby) -> SessionId {
        let said = self.lose(engine, standby);
        engine.run_alone().unwrap();
        wait_for("this side to run alone", || engine.runs_alone().is_some());
        wait_phase(engine, Phase::Protected);
        said
    }

    /// Cuts the link of a pair without an arbiter; returns the number of the lost session.
    fn lose(&self, engine: &Engine, standby: &Standby) -> SessionId {
        wait_phase(engine, Phase::Protected);
        self.cable.cut();
        wait_for("the loss", || standby.status()["state"] == "waiting-for-operator");
        wait_phase(engine, Phase::WaitingForOperator);
        standby.session()
    }
}

fn take_over(standby: &Standby, said: SessionId) -> Receiver<Result<(), String>> {
    let (tell, answer) = sync_channel(1);
    standby.inputs.send(Input::Operator(Event::OperatorTakeOver, Some(said), tell)).unwrap();
    answer
}

/// P7. Seen once: a standby that was denied the term stayed `doubting`, because it waited for its
/// machine's teardown.
#[test]
fn p7_a_standby_does_not_wait_for_the_machine_that_it_gives_up() {
    let pair = Pair::new();
    let (theirs, is_asked, answer) = Slow::new(arbiter(pair.dir.path(), "standby"));
    let (factory, let_go) = Clings::new();
    let standby = Standby::start_factory(&pair.far(), Some(theirs), Box::new(factory));
    let engine = pair.primary(Some(arbiter(pair.dir.path(), "primary")), 1, Vec::new());
    wait_phase(&engine, Phase::Protected);
    pair.cable.cut();
    assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2));
    wait_decided(&engine);
    answer.send(()).unwrap();
    wait_for("the end of the session", || standby.status()["state"] == "waiting");
    // At most one machine is left in this state (P9).
    let refused =
        || engine.reason().is_some_and(|reason| reason.contains("earlier session was removed"));
    wait_for("the refusal", refused);
    drop(let_go);
    wait_phase(&engine, Phase::Protected);
    standby.stops();
}

/// P7. Fails if stopping a standby waits for its machine's teardown.
#[test]
fn p7_a_standby_ends_before_its_machine() {
    let pair = Pair::new();
    let (factory, let_go) = Clings::new();
    let standby = Standby::start_factory(&pair.far(), None, Box::new(factory));
    let engine = pair.primary(None, 1, Vec::new());
    wait_phase(&engine, Phase::Protected);
    standby.stops();
    drop(let_go);
}

/// The same without obstacles, repeatedly. Fails if a machine that was prepared for a takeover
/// hangs when it is dropped, or keeps a resource that the next one needs.
#[test]
fn a_standby_that_is_denied_the_term_is_there_again() {
    const ROUNDS: u64 = 20;
    let pair = Pair::new();
    let disks = disks(pair.dir.path());
    let (theirs, is_asked, answer) = Slow::new(arbiter(pair.dir.path(), "standby"));
    let fence = theirs.fence();
    let standby =
        Standby::start_with_disks(&pair.far(), Some(theirs), fence, disks.clone(), Arc::default());
    let engine = pair.primary(Some(arbiter(pair.dir.path(), "primary")), 2, disks);
    for round in 0..ROUNDS {
        wait_phase(&engine, Phase::Protected);
        pair.cable.cut();
        assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), Term(2 + round));
        wait_decided(&engine);
        answer.send(()).unwrap();
        wait_for("the end of the session", || standby.status()["state"] != "doubting");
    }
    standby.stops();
}

/// P9. Fails if the standby's own thread waits for an arbiter that does not take the standby's mark
/// for the session.
#[test]
fn p9_an_arbiter_that_takes_no_word_for_the_session_is_a_refusal() {
    let pair = Pair::new();
    let (theirs, _asked, answer) = Slow::new(arbiter(pair.dir.path(), "standby"));
    theirs.is_slow_to_counter_mark.store(true, Ordering::SeqCst);
    let standby = Standby::start(&pair.far(), PATIENCE, Some(theirs));
    let engine = pair.primary(Some(arbiter(pair.dir.path(), "primary")), 1, Vec::new());
    let refused = || {
        let reason = engine.reason().unwrap_or_default();
        reason.contains("arbiter: expected to write a counter-mark") && reason.contains("no answer")
    };
    wait_for("the refusal", refused);
    drop(answer);
    wait_phase(&engine, Phase::Protected);
    standby.stops();
}

/// P2, P9. Fails if this side would claim the next term of a primary that it has refused: its own
/// arbiter knows nothing of that primary.
#[test]
fn p2_a_primary_that_is_refused_is_not_followed() {
    let pair = Pair::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = arbiter(pair.dir.path(), "standby");
    let standby = Standby::start(&pair.far(), PATIENCE, Some(theirs.clone()));
    let stranger = arbiter(elsewhere.path(), "stranger");
    let engine = pair.primary(Some(stranger), 1, Vec::new());
    wait_for("the refusal", || engine.reason().is_some_and(|reason| reason.contains("arbiter")));
    theirs.answers().unwrap();
    standby.stops();
}

/// P9. Fails if a claim that hangs is not reported, or blocks the standby's operator, or blocks the
/// primary's guest.
#[test]
fn p9_a_claim_that_hangs_is_logged() {
    let pair = Pair::new();
    let (theirs, is_asked, answer) = Slow::new(arbiter(pair.dir.path(), "standby"));
    let standby = Standby::start(&pair.far(), PATIENCE, Some(theirs));
    let engine = pair.primary(Some(arbiter(pair.dir.path(), "primary")), 1, Vec::new());
    let hang = |term| {
        wait_phase(&engine, Phase::Protected);
        pair.cable.cut();
        assert_eq!(is_asked.recv_timeout(PATIENCE).unwrap(), term);
    };
    hang(Term(2));
    let told = || standby.status()["reason"].as_str().unwrap_or_default().to_owned();
    wait_for("the reason", || told().contains("asked for term 2 at ") && told().contains(" UTC"));
    assert_eq!(standby.status()["state"], "doubting");
    let refusal = take_over(&standby, standby.session()).recv_timeout(PATIENCE).unwrap();
    assert!(refusal.is_err(), "a command is answered meanwhile");
    wait_for("the primary to go on", || engine.phase() != Phase::Doubting);

    answer.send(()).unwrap();
    hang(Term(3));
    // The end does not wait for the answer.
    standby.stops();
    drop(answer);
}

/// P2. Fails if a request that has waited is performed in another session.
#[test]
fn p2_a_wish_for_a_takeover_ends_with_its_session() {
    let pair = Pair::new();
    let standby = Standby::start(&pair.far(), PATIENCE, None);
    let engine = pair.primary(None, 1, Vec::new());
    let said = pair.next_session(&engine, &standby);
    let now = pair.lose(&engine, &standby);
    let refusal = take_over(&standby, said).recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(refusal.contains("session"), "{refusal}");
    assert_eq!(standby.status()["state"], "waiting-for-operator");
    take_over(&standby, now).recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(matches!(standby.end(), End::TakeOver(_)));
}

/// P7. Fails if the primary's output waits for an arbiter that the standby can know to be
/// unreachable.
#[test]
fn p7_a_move_is_refused_while_the_arbiter_cannot_be_asked() {
    let pair = Pair::new();
    let (theirs, _asked, _answer) = Slow::new(arbiter(pair.dir.path(), "standby"));
    let standby = Standby::start(&pair.far(), PATIENCE, Some(theirs.clone()));
    let engine = pair.primary(Some(arbiter(pair.dir.path(), "primary")), 1, Vec::new());
    wait_phase(&engine, Phase::Protected);
    theirs.is_away.store(true, Ordering::SeqCst);
    let answer = take_over(&standby, standby.session()).recv_timeout(PATIENCE).unwrap();
    assert!(answer.is_err_and(|why| why.contains("it is away")));
    assert_eq!(engine.phase(), Phase::Protected);
    assert_eq!(standby.status()["state"], "ready");
    standby.stop.stop();
    assert!(matches!(standby.end(), End::Stopped { .. }));
}
