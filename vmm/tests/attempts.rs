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
