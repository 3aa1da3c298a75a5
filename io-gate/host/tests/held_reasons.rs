//! While effects are held, the log gives the current reason, and not only the first one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{DATA, DiskMachine, SECTORS, image};
use io_gate_host::{Fence, Permission};

const PATIENCE: Duration = Duration::from_secs(60);

/// Gives no answer while the test has set a reason, and grants otherwise.
struct Cannot(Mutex<Option<&'static str>>);

impl Fence for Cannot {
    fn ask(&self) -> Permission {
        match *self.0.lock().unwrap() {
            Some(_) => Permission::Unknown,
            None => Permission::Granted,
        }
    }

    fn reason(&self) -> String {
        self.0.lock().unwrap().unwrap_or_default().to_owned()
    }
}

/// Records every log line.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

fn count_of(reason: &str) -> usize {
    let wanted = format!("effects are held: {reason}");
    LINES.0.lock().unwrap().iter().filter(|line| **line == wanted).count()
}

#[track_caller]
fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: {:?}", LINES.0.lock().unwrap());
        std::thread::yield_now();
    }
}

/// Fails if only the first reason is logged.
#[test]
fn a_reason_that_has_changed_is_told() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let image = image(SECTORS);
    let memory = common::guest_memory();
    let fence = Arc::new(Cannot(Mutex::new(Some("nobody answers"))));
    let (gate, authority, mut slot) = common::disk_slot(&memory, &image, fence.clone());
    let driver = common::Driver::new(&memory, common::RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(common::DISK_FEATURES).unwrap();
    let unused = Arc::new(common::Switch(true.into(), false.into()));
    let mut machine = DiskMachine::of(memory, gate, authority, slot, driver, unused);
    machine.fill(DATA, &[6; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    wait_for("the first reason", || count_of("nobody answers") > 0);
    *fence.0.lock().unwrap() = Some("what answers has gone back");
    wait_for("the second reason", || count_of("what answers has gone back") > 0);
    *fence.0.lock().unwrap() = None;
    machine.gate.drain();
    wait_for("the end", || !machine.gate.waits_for_fence());
    assert_eq!((count_of("nobody answers"), count_of("what answers has gone back")), (1, 1));
}
