//! P4: a standby can restore every acknowledged state, not only the first one of a session.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ft_core::Term;
use ft_core::primary::Phase;
use ft_core::standby::Event as StandbyEvent;
use kemari_replication::primary::StepHooks;
use kemari_replication::session::MachineState;
use kemari_replication::standby::{End, Input};
use kvm_bindings::kvm_regs;

use pair::{
    CHATTY, Cable, PATIENCE, Standby, config, engine_options, machine, start_engine, wait_for,
    wait_phase,
};

const MEMORY: u64 = 16 << 20;
/// Offsets in `kvm_sregs` of the L bit of CS, and of EFER.
const CS_L: usize = 19;
const EFER: usize = 264;

/// CS of a 64-bit segment outside of long mode. On some processors a guest gets there by clearing
/// EFER.LME at the right moment; KVM_SET_SREGS always refuses it.
fn long_segment_outside_of_long_mode(state: &mut MachineState) {
    let mut fields = serde_json::to_value(&*state).unwrap();
    let sregs = fields["vcpus"][0]["sregs"].as_array_mut().unwrap();
    assert_eq!(sregs[CS_L], 1, "the guest is in 64-bit mode");
    sregs[EFER..EFER + 8].fill(0.into());
    *state = serde_json::from_value(fields).unwrap();
}

/// P4. The standby does not acknowledge a later state that KVM refuses, so no takeover fails
/// because of it: the last acknowledged state is good. Fails if only the first state of a session
/// is tried.
#[test]
fn p4_a_later_state_that_kvm_refuses_is_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let cable = Cable::new(dir.path().join("near"), far.clone());
    let standby = Standby::start(&far, PATIENCE, None);
    let bad = Arc::new(AtomicBool::new(false));
    let mut options = engine_options(&cable.path);
    let changed = bad.clone();
    let change = move |state: &mut MachineState| {
        if changed.load(Ordering::SeqCst) {
            long_segment_outside_of_long_mode(state);
        }
    };
    options.steps = StepHooks { at: None, state: Some(Arc::new(change)) };
    let (machine, authority) = machine(config(MEMORY, 1), CHATTY, kvm_regs::default());
    let engine = start_engine(&machine, authority, None, Term(0), options);
    wait_phase(&engine, Phase::Protected);
    wait_for("a few epochs", || engine.status()["acknowledged"].as_u64() > Some(3));

    bad.store(true, Ordering::SeqCst);
    wait_for("the refusal", || standby.status()["state"] == "waiting-for-operator");
    let status = standby.status();
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("KVM refuses the state: KVM_SET_SREGS"), "{reason}");
    wait_phase(&engine, Phase::WaitingForOperator);
    let (acknowledged, held) = (engine.status()["acknowledged"].as_u64(), status["epoch"].as_u64());
    assert_eq!(acknowledged, held, "what was acknowledged is what is held");

    standby.inputs.send(Input::Event(StandbyEvent::OperatorTakeOver)).unwrap();
    let End::TakeOver(inherited) = standby.end() else { panic!("it was told to take over") };
    inherited.state.restore(&inherited.machine).unwrap();
}
