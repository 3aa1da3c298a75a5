//! P4, P8: an ended session cannot affect the next one.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

use ft_core::primary::Phase;
use ft_core::standby::Event as StandbyEvent;
use ft_core::{LinkId, Term};
use kemari_machine::{AttachOptions, LoopContext};
use kemari_replication::primary::{Engine, EngineResources, Sealer, Step, StepHooks};
use kemari_replication::standby::{End, Input};
use kvm_bindings::kvm_regs;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use vm_memory::{Bytes, GuestAddress};

use pair::{
    Cable, IDLE, PATIENCE, Standby, config, engine_options, machine, start_engine, wait_phase,
};

const MEMORY: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// Which session has reached which step, and which may continue.
#[derive(Default)]
struct Stage {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    first: Option<LinkId>,
    first_may_go_on: bool,
    first_ended: bool,
    second: Option<LinkId>,
    second_may_go_on: bool,
}

impl Stage {
    /// Holds the first session after it has started the log, and the next session after it has sent
    /// all of memory once.
    fn reached(&self, link: LinkId, step: Step) {
        let mut state = self.state.lock().unwrap();
        match step {
            Step::LogStarted if state.first.is_none() => {
                state.first = Some(link);
                self.changed.notify_all();
                drop(self.wait(state, |state| state.first_may_go_on));
            }
            Step::RoundSent if state.first != Some(link) && state.second.is_none() => {
                state.second = Some(link);
                self.changed.notify_all();
                drop(self.wait(state, |state| state.second_may_go_on));
            }
            Step::SenderEnded if state.first == Some(link) => {
                state.first_ended = true;
                self.changed.notify_all();
            }
            _ => {}
        }
    }

    fn wait<'s>(
        &self,
        state: std::sync::MutexGuard<'s, State>,
        until: impl Fn(&State) -> bool,
    ) -> std::sync::MutexGuard<'s, State> {
        let (state, waited) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| !until(state)).unwrap();
        assert!(!waited.timed_out(), "a thread did not come to its step");
        state
    }

    fn wait_until(&self, until: impl Fn(&State) -> bool) {
        drop(self.wait(self.state.lock().unwrap(), until));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

/// P4, P8. The link is cut when the first session's sender has started the log and not read it yet.
/// While the next session copies memory, the old thread continues. Fails if the old thread may read
/// the log: pages that it takes are missing from the next session.
#[test]
fn an_ended_session_takes_no_dirty_pages_of_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let cable = Cable::new(dir.path().join("near"), far.clone());
    let standby = Standby::start(&far, PATIENCE, None);
    let stage = Arc::new(Stage::default());
    let at = stage.clone();
    let options = {
        let mut options = engine_options(&cable.path);
        options.verify = true;
        options.steps =
            StepHooks { at: Some(Arc::new(move |link, step| at.reached(link, step))), state: None };
        options
    };
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    let engine = start_engine(&machine, authority, None, Term(0), options);

    stage.wait_until(|state| state.first.is_some());
    cable.cut();
    stage.wait_until(|state| state.second.is_some());
    // The next session has sent these pages; what is written now belongs to its next round.
    for page in 0..8 {
        let address = GuestAddress(MEMORY - (2 * page + 1) * PAGE);
        machine.memory().write_slice(&[0xa0 + page as u8; 4096], address).unwrap();
    }
    stage.change(|state| state.first_may_go_on = true);
    stage.wait_until(|state| state.first_ended);
    stage.change(|state| state.second_may_go_on = true);
    wait_phase(&engine, Phase::Protected);
    pair::wait_for("a comparison", || engine.status()["verify"]["checked"].as_u64() > Some(0));
    let mismatches = engine.status()["verify"]["mismatches"].as_u64();

    // Compare the pages of both sides one by one: the guest writes nothing.
    cable.cut();
    pair::wait_for("the loss of the link", || standby.status()["state"] == "waiting-for-operator");
    standby.inputs.send(Input::Event(StandbyEvent::OperatorTakeOver)).unwrap();
    let End::TakeOver(inherited) = standby.end() else { panic!("it was told to take over") };
    let differ: Vec<u64> = (0..MEMORY / PAGE)
        .filter(|page| {
            let read = |memory: &kemari_hypervisor::memory::GuestMemory| {
                let mut bytes = [0; 4096];
                memory.read_slice(&mut bytes, GuestAddress(page * PAGE)).unwrap();
                bytes
            };
            read(machine.memory()) != read(inherited.machine.memory())
        })
        .collect();
    assert_eq!(differ, [0; 0], "pages of the standby that are not the primary's");
    assert_eq!(mismatches, Some(0), "what --verify has found");
}

/// P5. A session may be ready before the device thread has let the guest run; only then do the
/// device thread and the vCPU threads give up rights. Fails if the sealer, which resumes vCPUs,
/// does not wait for that.
#[test]
fn p5_nothing_is_sealed_before_the_guest_has_run() {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let standby = Standby::start(&far, PATIENCE, None);
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    machine.attach_backends(AttachOptions { shared_disks: true, append: false }).unwrap();
    let (resources, options) = (EngineResources::new(None).unwrap(), engine_options(&far));
    let engine = Engine::begin(resources, machine.clone(), authority, None, Term(0), options);
    let sealer = Sealer::new(engine.clone()).unwrap();
    let add = |context: &mut LoopContext<'_>| context.add(Box::new(sealer));
    machine.device_loop().call(add).unwrap();
    wait_phase(&engine, Phase::Sealing);
    // The sealer was woken, and has checked before the device thread answers.
    machine.device_loop().call(|_| ()).unwrap();
    assert!(machine.vcpus().is_paused(), "the vCPUs run with all rights");
    assert_eq!(engine.phase(), Phase::Sealing);
    machine.start().unwrap();
    wait_phase(&engine, Phase::Protected);
    standby.stops();
}

/// P1, P9. Fails if the sealer needs a descriptor that is allocated only while effects are already
/// being released.
#[test]
fn what_seals_is_there_before_anything_is_let_out() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    machine.attach_backends(AttachOptions { shared_disks: true, append: false }).unwrap();
    let options = engine_options(&dir.path().join("nobody"));
    let resources = EngineResources::new(None).unwrap();
    let engine = Engine::begin(resources, machine, authority, None, Term(0), options);
    let made = std::thread::spawn(move || {
        without_timers();
        Sealer::new(engine).map(drop)
    });
    made.join().unwrap().unwrap();
}

/// Makes timers unavailable to this thread, as if no descriptor were left.
fn without_timers() {
    let none_left = SeccompAction::Errno(libc::EMFILE.cast_unsigned());
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_timerfd_create, Vec::new())]),
        SeccompAction::Allow,
        none_left,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&filter).unwrap();
}
