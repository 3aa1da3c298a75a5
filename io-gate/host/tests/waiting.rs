//! Who waits for a lane holds nobody else up (P7): not the thread that learns of an acknowledgement, which has to hear the
//! standby meanwhile.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{DATA, DiskMachine, SECTORS, image};
use io_gate_host::{GateHost, VirtioSlot};

const PATIENCE: Duration = Duration::from_secs(60);

/// Has a lane wait for a fence that cannot tell, `wait` wait for the lane, and an acknowledgement come meanwhile.
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
        // Asleep: it waits for the lane, as there is nothing else that it could wait for.
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
        // Well before `drain` gives the fence up.
        let came = released.recv_timeout(Duration::from_secs(3));
        let (waited, asked) = (!waiter.is_finished(), gate.waits_for_fence());
        fence.1.store(false, Ordering::SeqCst);
        assert!(waited && asked, "nobody waits: this test shows nothing");
        came.expect("an acknowledgement waits for a lane");
    });
}

/// The machine ends: what has been released is waited for.
#[test]
fn an_acknowledgement_does_not_wait_for_a_machine_that_ends() {
    an_acknowledgement_meanwhile(|gate, _| gate.drain());
}

/// The driver resets its device: what the device has under way is waited for.
#[test]
fn an_acknowledgement_does_not_wait_for_a_driver_that_resets_its_device() {
    an_acknowledgement_meanwhile(|_, slot| slot.reset());
}
