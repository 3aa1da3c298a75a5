//! A thread that waits for a lane blocks no other thread (P7), in particular not the thread that
//! receives acknowledgements and the standby's signs of life.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{DATA, DiskMachine, SECTORS, image};
use io_gate_host::{Fence, GateHost, Permission, VirtioSlot};

const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a lane wait for a fence without an answer, and runs `wait`, which waits for the lane.
/// Meanwhile an acknowledgement arrives.
fn an_acknowledgement_meanwhile(wait: impl FnOnce(&GateHost, &mut VirtioSlot) + Send) {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    machine.fence.1.store(true, Ordering::SeqCst);
    machine.fill(DATA, &[6; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    while !machine.gate.waits_for_fence() {
        std::thread::yield_now();
    }
    let next = machine.gate.seal();
    let proof = machine.authority.acknowledged(next.epoch);
    let (gate, fence) = (machine.gate.clone(), machine.fence.clone());
    let slot = &mut machine.slot;
    std::thread::scope(|scope| {
        let (tell, thread) = channel();
        let waiter = scope.spawn({
            let gate = gate.clone();
            move || {
                tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
                wait(&gate, slot);
            }
        });
        // The thread waits for the lane when it sleeps: there is nothing else that it could wait
        // for.
        let stat = std::path::Path::new("/proc").join(thread.recv().unwrap()).join("stat");
        let deadline = Instant::now() + PATIENCE;
        while !waiter.is_finished() && !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            assert!(Instant::now() < deadline, "it does not come to wait");
            std::thread::yield_now();
        }
        let (tell, released) = channel();
        scope.spawn({
            let gate = gate.clone();
            move || {
                gate.release(proof);
                tell.send(()).unwrap();
            }
        });
        // This is much less than the time after which `drain` gives up.
        let came = released.recv_timeout(Duration::from_secs(3));
        let (waited, asked) = (!waiter.is_finished(), gate.waits_for_fence());
        fence.1.store(false, Ordering::SeqCst);
        assert!(waited && asked, "nobody waits: this test shows nothing");
        came.expect("an acknowledgement waits for a lane");
    });
}

/// The machine ends, and waits for released effects.
#[test]
fn an_acknowledgement_does_not_wait_for_a_machine_that_ends() {
    an_acknowledgement_meanwhile(|gate, _| gate.drain());
}

/// The driver resets its device, and the reset waits for the device's requests.
#[test]
fn an_acknowledgement_does_not_wait_for_a_driver_that_resets_its_device() {
    an_acknowledgement_meanwhile(|_, slot| slot.reset());
}

/// A fence that does not answer until the test lets it.
struct Hanging(Mutex<Receiver<()>>);

impl Fence for Hanging {
    fn ask(&self) -> Permission {
        let _ = self.0.lock().unwrap().recv();
        Permission::Granted
    }
}

/// P9. Fails if a question to a fence that hangs does not count as waiting: then the machine would
/// report a normal state while no effect leaves.
#[test]
fn a_question_that_is_not_answered_is_a_wait() {
    let image = image(SECTORS);
    let (answers, asked) = channel();
    let memory = common::guest_memory();
    let fence = Arc::new(Hanging(Mutex::new(asked)));
    let (gate, authority, mut slot) = common::disk_slot(&memory, &image, fence);
    let driver = common::Driver::new(&memory, common::RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(common::DISK_FEATURES).unwrap();
    let unused = Arc::new(common::Switch(true.into(), false.into()));
    let mut machine = DiskMachine::of(memory, gate, authority, slot, driver, unused);
    machine.fill(DATA, &[6; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    assert!(!machine.gate.waits_for_fence());
    machine.commit(sealed.epoch);
    let deadline = Instant::now() + PATIENCE;
    while !machine.gate.waits_for_fence() {
        assert!(Instant::now() < deadline, "it is not seen to wait");
        std::thread::yield_now();
    }
    assert!(machine.gate.asks_since().is_some());
    assert_eq!(machine.gate.lane_jobs().len(), 1, "the lane waits with its job");
    assert!(!machine.gate.may_be_writing(), "what only asks does not arrive late");
    drop(answers);
    machine.gate.drain();
    assert!(!machine.gate.waits_for_fence());
    assert_eq!(machine.gate.asks_since(), None);
    assert!(machine.gate.lane_jobs().is_empty(), "a lane without work has no job");
}
