//! P9: an operator asks for a standby repeatedly, while the arbiter or a disk does not answer.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use ft_core::Term;
use ft_core::primary::Phase;
use kemari_arbiter::Arbiter;
use kemari_replication::link::LinkAddr;
use kemari_replication::primary::{Engine, EngineOptions};
use kvm_bindings::kvm_regs;

use pair::{
    IDLE, PATIENCE, Slow, Standby, arbiter, config, engine_options, machine, start_engine, threads,
    wait_for, wait_phase,
};

/// An unprotected primary with a slow arbiter, and a standby that it can reach.
struct Bench {
    arbiter: Arc<Slow>,
    engine: Arc<Engine>,
    /// The arbiter's slow call returns when a message is sent here, or when the sender is dropped.
    answer: Option<Sender<()>>,
    link: PathBuf,
    /// Receives the claims.
    _asked: Receiver<Term>,
    _standby: Standby,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// `slow` sets which call of the arbiter is slow from now on.
    fn new(setup_timeout: Duration, slow: impl FnOnce(&Slow)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        let standby = Standby::start(&link, PATIENCE, Some(arbiter(dir.path(), "standby")));
        let (arbiter, asked, answer) = Slow::new(arbiter(dir.path(), "primary"));
        let term = arbiter.begin(false).unwrap();
        slow(&arbiter);
        let (machine, authority) = machine(config(16 << 20, 1), IDLE, kvm_regs::default());
        let mut options = EngineOptions { standby: None, ..engine_options(&link) };
        options.primary.setup_timeout = setup_timeout;
        let engine = start_engine(&machine, authority, Some(arbiter.clone()), term, options);
        Self {
            arbiter,
            engine,
            answer: Some(answer),
            link,
            _asked: asked,
            _standby: standby,
            _dir: dir,
        }
    }

    fn protect(&self) -> Result<u64, String> {
        self.engine.protect(LinkAddr::Unix(self.link.clone()))
    }

    /// The outcome of an operator's request.
    fn outcome(&self, attempt: u64) -> Result<u64, String> {
        wait_for("what becomes of it", || self.engine.attempt(attempt).is_some());
        self.engine.attempt(attempt).unwrap()
    }
}

/// P9. Fails if each request leaves another waiting thread.
#[test]
fn p9_attempts_that_hang_are_counted() {
    let slow = |arbiter: &Slow| arbiter.is_slow_to_mark.store(true, Ordering::SeqCst);
    let mut bench = Bench::new(PATIENCE, slow);
    bench.protect().unwrap();
    // Later requests wait behind this one; without it, superseded requests would give up.
    wait_for("it to hang", || bench.arbiter.slow_marks.load(Ordering::SeqCst) == 1);
    let taken = (0..100).filter(|_| bench.protect().is_ok()).count();
    assert_eq!(taken, 7);
    // Other tests of this process also have threads of this name.
    assert!(threads("link") < 20);
    let refusal = bench.protect().unwrap_err();
    assert!(refusal.contains("does not answer"), "{refusal}");

    // The arbiter answers again: the last request is performed, and further requests are served.
    drop(bench.answer.take());
    wait_phase(&bench.engine, Phase::Protected);
    bench.engine.run_alone().unwrap();
    wait_for("this side to run alone", || bench.engine.runs_alone().is_some());
    bench.protect().unwrap();
    wait_phase(&bench.engine, Phase::Protected);
}

/// P9: the search for the standby's marks, in a directory that may not answer, has a deadline.
#[test]
fn p9_a_look_at_the_arbiter_that_hangs_is_given_up() {
    let slow = |arbiter: &Slow| arbiter.is_slow_to_look.store(true, Ordering::SeqCst);
    let mut bench = Bench::new(Duration::from_secs(4), slow);
    let refusal = bench.outcome(bench.protect().unwrap()).unwrap_err();
    assert!(
        refusal.contains("counter-marks in file:") && refusal.contains("no answer"),
        "{refusal}"
    );
    drop(bench.answer.take());
    wait_phase(&bench.engine, Phase::Protected);
}

/// P7: a network file system's client that shows old contents for a while does not make a healthy
/// pair refuse.
#[test]
fn what_the_standby_has_left_may_be_seen_late() {
    let slow = |arbiter: &Slow| arbiter.stale_looks.store(5, Ordering::SeqCst);
    let bench = Bench::new(PATIENCE, slow);
    bench.outcome(bench.protect().unwrap()).unwrap();
    assert_eq!(bench.arbiter.stale_looks.load(Ordering::SeqCst), 0, "it was looked for");
}
