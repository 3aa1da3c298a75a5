//! An operator who asks for a standby again and again, while an arbiter or a disk does not answer (P9).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
mod pair;

use std::sync::atomic::Ordering;

use ft_core::primary::Phase;
use kemari_vmm::arbiter::Arbiter;
use kemari_vmm::link::LinkAddr;
use kvm_bindings::kvm_regs;
use pair::{
    IDLE, PATIENCE, Slow, Standby, arbiter, config, engine_options, machine, start_engine, threads,
    wait_for, wait_phase,
};

/// Fails where each wish leaves one more thread waiting.
#[test]
fn p9_attempts_that_hang_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let standby = Standby::start(&link, PATIENCE, Some(arbiter(dir.path(), "standby")));
    let (ours, _asked, answer) = Slow::new(arbiter(dir.path(), "primary"));
    let term = ours.begin(false).unwrap();
    ours.is_slow_to_mark.store(true, Ordering::SeqCst);
    let (machine, authority) = machine(config(16 << 20, 1), IDLE, kvm_regs::default());
    let options = kemari_vmm::engine::EngineOptions { standby: None, ..engine_options(&link) };
    let engine = start_engine(&machine, authority, Some(ours), term, options);
    let protect = || engine.protect(LinkAddr::Unix(link.clone()));
    let taken = (0..100).filter(|_| protect().is_ok()).count();
    assert_eq!(taken, 8);
    assert!(threads("link") <= 8);
    let refusal = protect().unwrap_err();
    assert!(refusal.contains("does not answer"), "{refusal}");

    // It answers again: the last wish is carried out, and others are heard.
    drop(answer);
    wait_phase(&engine, Phase::Protected);
    engine.run_alone().unwrap();
    wait_for("this side to run alone", || engine.runs_alone().is_some());
    protect().unwrap();
    wait_phase(&engine, Phase::Protected);
    drop(standby);
}

/// P9: what the standby has left is looked for in a directory that may not answer, after the standby has.
#[test]
fn p9_a_look_at_the_arbiter_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let standby = Standby::start(&link, PATIENCE, Some(arbiter(dir.path(), "standby")));
    let (ours, _asked, answer) = Slow::new(arbiter(dir.path(), "primary"));
    let term = ours.begin(false).unwrap();
    ours.is_slow_to_look.store(true, Ordering::SeqCst);
    let (machine, authority) = machine(config(16 << 20, 1), IDLE, kvm_regs::default());
    let mut options = kemari_vmm::engine::EngineOptions { standby: None, ..engine_options(&link) };
    options.primary.setup_timeout = std::time::Duration::from_secs(4);
    let engine = start_engine(&machine, authority, Some(ours), term, options);
    let wish = engine.protect(LinkAddr::Unix(link)).unwrap();
    wait_for("what becomes of it", || engine.attempt(wish).is_some());
    let refusal = engine.attempt(wish).unwrap().unwrap_err();
    assert!(refusal.contains("left in file:") && refusal.contains("no answer"), "{refusal}");
    drop(answer);
    wait_phase(&engine, Phase::Protected);
    drop(standby);
}

/// A network file system's client that shows for a while what was there before makes no healthy pair refuse.
#[test]
fn what_the_standby_has_left_may_be_seen_late() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let standby = Standby::start(&link, PATIENCE, Some(arbiter(dir.path(), "standby")));
    let (ours, _asked, _answer) = Slow::new(arbiter(dir.path(), "primary"));
    let term = ours.begin(false).unwrap();
    ours.stale_looks.store(5, Ordering::SeqCst);
    let (machine, authority) = machine(config(16 << 20, 1), IDLE, kvm_regs::default());
    let options = kemari_vmm::engine::EngineOptions { standby: None, ..engine_options(&link) };
    let engine = start_engine(&machine, authority, Some(ours.clone()), term, options);
    let wish = engine.protect(LinkAddr::Unix(link)).unwrap();
    wait_for("what becomes of it", || engine.attempt(wish).is_some());
    assert!(matches!(engine.attempt(wish), Some(Ok(_))), "{:?}", engine.attempt(wish));
    assert_eq!(ours.stale_looks.load(Ordering::SeqCst), 0, "it was looked for");
    drop(standby);
}
