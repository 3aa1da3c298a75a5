//! P7, P9: signs of life. A working machine gives them even if some of its threads wait; a stuck
//! machine never gives them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ft_core::primary::Phase;
use kemari_machine::{Ended, Machine};
use kemari_replication::primary::{Engine, EngineOptions, Step, StepHooks};
use kemari_replication::standby::End;
use kvm_bindings::kvm_regs;

use pair::{
    CHATTY, Cable, Mute, PATIENCE, Standby, arbiter, config, engine_options, machine_with,
    start_engine, wait_for, wait_phase,
};

const MEMORY: u64 = 16 << 20;
/// The standby's heartbeat timeout: longer than a busy machine delays a thread.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The end of a machine waits for at least this time for a fence that does not answer.
const DRAINED: Duration = Duration::from_secs(5);

struct Bench {
    dir: tempfile::TempDir,
    cable: Cable,
    standby: Standby,
    machine: Arc<Machine>,
    engine: Arc<Engine>,
    fence: Arc<Mute>,
}

/// A protected pair with an arbiter, whose guest prints all the time.
fn protected(back: Duration, change: impl FnOnce(&mut EngineOptions)) -> Bench {
    protected_by(TIMEOUT, back, change)
}

/// As [`protected`], with a standby whose heartbeat timeout is `timeout`.
fn protected_by(
    timeout: Duration,
    back: Duration,
    change: impl FnOnce(&mut EngineOptions),
) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let far = dir.path().join("far");
    let cable = Cable::slow(dir.path().join("near"), far.clone(), back);
    let standby = Standby::start(&far, timeout, Some(arbiter(dir.path(), "standby")));
    let ours = arbiter(dir.path(), "primary");
    let term = ours.begin(false).unwrap();
    let mut options = engine_options(&cable.path);
    change(&mut options);
    let fence = Mute::new(ours.fence());
    let (machine, authority) =
        machine_with(config(MEMORY, 1), CHATTY, kvm_regs::default(), fence.clone());
    let engine = start_engine(&machine, authority, Some(ours), term, options);
    wait_phase(&engine, Phase::Protected);
    Bench { dir, cable, standby, machine, engine, fence }
}

fn state(engine: &Engine) -> String {
    engine.status()["state"].as_str().unwrap().to_owned()
}

/// Holds the engine's state, on demand, when an acknowledgement arrives.
#[derive(Default)]
struct Held {
    wanted: AtomicBool,
    is: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Held {
    fn steps(self: &Arc<Self>) -> StepHooks {
        let held = self.clone();
        let at = move |_, step| {
            if step == Step::Releasing && held.wanted.load(Ordering::SeqCst) {
                let mut is = held.is.lock().unwrap();
                is.0 = true;
                held.changed.notify_all();
                drop(held.changed.wait_while(is, |(_, go_on)| !*go_on).unwrap());
            }
        };
        StepHooks { at: Some(Arc::new(at)), state: None }
    }

    fn hold(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        let is = self.is.lock().unwrap();
        let (is, waited) =
            self.changed.wait_timeout_while(is, PATIENCE, |(held, _)| !*held).unwrap();
        assert!(is.0 && !waited.timed_out(), "no acknowledgement comes");
    }

    fn let_go(&self) {
        self.wanted.store(false, Ordering::SeqCst);
        self.is.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// P7. Released effects wait for an arbiter that is out of reach, and an acknowledgement arrives.
/// Fails if the standby learns of the end only after that wait.
#[test]
fn a_machine_that_was_stopped_stays_stopped() {
    let bench = protected_by(PATIENCE, Duration::from_millis(20), |_| {});
    bench.fence.silent.store(true, Ordering::SeqCst);
    wait_for("an effect that waits", || bench.machine.gate().waits_for_fence());
    bench.machine.end(Ended::Signal(15));
    let ended = bench.machine.wait();
    let (engine, begun) = (bench.engine.clone(), Instant::now());
    let concluding = std::thread::spawn(move || engine.conclude(&ended));
    match bench.standby.end() {
        End::Stopped { reason, .. } => {
            assert!(reason.contains("stopped by its operator"), "{reason}")
        }
        End::TakeOver(_) => panic!("the guest that was stopped runs on the standby"),
    }
    let told_after = begun.elapsed();
    let term = concluding.join().unwrap();
    assert!(term.is_some(), "nobody is to go on with the guest: the name can be freed");
    assert!(begun.elapsed() >= DRAINED, "nothing was waited for: this test shows nothing");
    assert!(told_after < DRAINED, "the standby was told last, after {told_after:?}");
    drop(bench.dir);
}

/// P7: the standby gets signs of life even if some of the engine's threads wait, as long as the
/// machine is not stuck.
#[test]
fn signs_of_life_wait_for_nobody() {
    let held = Arc::new(Held::default());
    let bench = protected(Duration::ZERO, |options| options.steps = held.steps());
    held.hold();
    // At one sign in 75 ms, this takes longer than the standby's timeout.
    let (before, signs) = (bench.cable.sent(), TIMEOUT.as_millis() as usize / 75 + 14);
    wait_for("signs of life", || {
        bench.cable.sent() >= before + signs || bench.standby.status()["state"] != "ready"
    });
    assert_eq!(bench.standby.status()["state"], "ready", "{:?}", bench.standby);
    held.let_go();
    let epoch = bench.engine.status()["acknowledged"].as_u64();
    wait_for("the next epochs", || bench.engine.status()["acknowledged"].as_u64() > epoch);
    assert_eq!(bench.engine.phase(), Phase::Protected);
}

const STALL: Duration = Duration::from_millis(800);

fn stalls(options: &mut EngineOptions) {
    options.stall_timeout = STALL;
    // The time after which this side asks the arbiter too.
    options.primary.setup_timeout = Duration::from_secs(20);
}

/// Checks the result of a stuck primary: the primary reports the stall, its standby takes over, and
/// the primary ends as fenced.
fn goes_on_over_there(bench: Bench) {
    let Bench { dir, cable: _cable, standby, machine, engine, fence: _fence } = bench;
    wait_for("the stall", || state(&engine) == "stalled");
    let End::TakeOver(inherited) = standby.end() else { panic!("the standby was to go on") };
    assert_ne!(state(&engine), "protected");
    assert_eq!(inherited.taken.term().0, 2);
    let ended = machine.wait();
    assert!(matches!(ended, Ended::Fenced(_)), "{ended:?}");
    assert_eq!(engine.conclude(&ended), None, "somebody else has the name");
    assert!(term_is_won(dir.path()));
}

fn term_is_won(dir: &Path) -> bool {
    arbiter(dir, "somebody").begin(false).is_err()
}

/// P7, P9. Fails if a machine whose device thread is stuck gives signs of life.
#[test]
fn a_machine_whose_device_thread_is_stuck_fails_over() {
    let bench = protected(Duration::ZERO, stalls);
    let (let_go, stuck) = channel::<()>();
    bench.machine.device_loop().post(move |_| {
        // Blocks until the test has ended.
        let _ = stuck.recv();
    });
    goes_on_over_there(bench);
    drop(let_go);
}

/// As above, for a thread that holds the engine's lock: the status still answers, and the machine
/// can be ended.
#[test]
fn a_machine_whose_engine_is_stuck_fails_over() {
    let held = Arc::new(Held::default());
    let bench = protected(Duration::ZERO, |options| {
        stalls(options);
        options.steps = held.steps();
    });
    held.hold();
    // Neither an operator's command nor the status waits for the engine.
    let refused = bench.engine.run_alone().unwrap_err();
    assert!(refused.contains("the engine is stuck"), "{refused}");
    assert_eq!(bench.engine.state_now().unwrap_err(), refused);
    goes_on_over_there(bench);
    held.let_go();
}

/// P7: the standby takes over from a failed machine at once. The failed machine's released effects
/// wait for an arbiter that is out of reach; the standby does not wait for them.
#[test]
fn a_machine_that_has_failed_is_gone_on_from_at_once() {
    let bench = protected(Duration::ZERO, |_| {});
    let Bench { dir: _dir, cable: _cable, standby, machine, engine, fence } = bench;
    fence.silent.store(true, Ordering::SeqCst);
    wait_for("an effect that waits", || machine.gate().waits_for_fence());
    machine.end(Ended::Failed("vCPU 0 cannot go on".into()));
    let ended = machine.wait();
    let concluding = std::thread::spawn(move || engine.conclude(&ended));
    let End::TakeOver(inherited) = standby.end() else { panic!("the standby was to go on") };
    assert!(inherited.reason.contains("vCPU 0 cannot go on"), "{}", inherited.reason);
    assert!(!concluding.is_finished(), "it came to rest before: this test shows nothing");
    assert_eq!(concluding.join().unwrap(), None);
}

/// A stall that passes before another machine has taken over leaves no trace; here there is no
/// standby.
#[test]
fn a_stall_that_passes_is_forgotten() {
    let bench = protected(Duration::ZERO, stalls);
    let Bench { dir: _dir, cable: _cable, standby, machine, engine, fence: _fence } = bench;
    standby
        .inputs
        .send(kemari_replication::standby::Input::Event(ft_core::standby::Event::OperatorStop))
        .unwrap();
    wait_phase(&engine, Phase::Alone);
    let (let_go, stuck) = channel::<()>();
    machine.device_loop().post(move |_| {
        let _ = stuck.recv();
    });
    wait_for("the stall", || state(&engine) == "stalled");
    let_go.send(()).unwrap();
    wait_for("the end of the stall", || state(&engine) == "alone");
    assert!(machine.events().ended().is_none());
    drop(standby);
}

/// P7, P9: neither a stuck device nor a stuck engine prevents an operator from ending the machine,
/// or its standby from learning of the end.
#[test]
fn a_machine_that_is_stuck_can_be_stopped() {
    let bench = protected(Duration::ZERO, |_| {});
    let Bench { dir: _dir, cable: _cable, standby, machine, engine, fence: _fence } = bench;
    let (let_go, stuck) = channel::<()>();
    machine.device_loop().post(move |_| {
        let _ = stuck.recv();
    });
    machine.end(Ended::Signal(15));
    let ended = machine.wait();
    let concluding = std::thread::spawn(move || engine.conclude(&ended));
    let End::Stopped { .. } = standby.end() else { panic!("the guest was stopped") };
    assert!(concluding.join().unwrap().is_some(), "its name is free");
    drop(let_go);
}
