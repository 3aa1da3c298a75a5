//! The cost of one effect or one input on its path through the gate: allocations and time, and,
//! under `valgrind --tool=callgrind`, instructions. The tests only print the figures.
//!
//! `cargo test --release -p io-gate-host --test hot_path -- --ignored --nocapture --test-threads=1`
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::net::{NetMachine, RECEIVE, TRANSMIT, listen, stream_net, write_frame};
use common::{DATA, DiskMachine, SECTORS, image, wait_completions};
use io_gate::host::Term;

/// The system's allocator with counters.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Number of effects or inputs in one round. The rings of the tests have room for this many.
const BATCH: u64 = 4;

fn rounds() -> u64 {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
}

/// Runs `round` repeatedly, after some rounds that are not counted. Prints the cost of one of its
/// [`BATCH`] parts.
fn measure(what: &str, mut round: impl FnMut()) {
    (0..50).for_each(|_| round());
    let (allocations, bytes) = (ALLOCATIONS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    let begin = Instant::now();
    (0..rounds()).for_each(|_| round());
    let elapsed = begin.elapsed();
    let parts = (rounds() * BATCH) as f64;
    let each = |now: u64, before: u64| (now - before) as f64 / parts;
    println!(
        "{what}: {:.2} allocations of {:.0} bytes in all, {:.2} us",
        each(ALLOCATIONS.load(Ordering::SeqCst), allocations),
        each(BYTES.load(Ordering::SeqCst), bytes),
        elapsed.as_secs_f64() * 1e6 / parts
    );
}

fn drain(mut peer: UnixStream) {
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while peer.read(&mut bytes).is_ok_and(|len| len > 0) {}
    });
}

fn send(held: bool) {
    let (dir, listener) = listen();
    let mut machine = NetMachine::new(stream_net(&dir));
    let (peer, _) = listener.accept().unwrap();
    drain(peer);
    if !held {
        machine.gate.run_alone(machine.authority.alone(Term(1)));
    }
    measure(if held { "send, held" } else { "send, open" }, || {
        for n in 0..BATCH as u8 {
            machine.offer(&[n; 200]);
        }
        let _ = machine.slot.kick(TRANSMIT);
        if held {
            let epoch = machine.gate.seal().epoch;
            machine.gate.release(machine.authority.acknowledged(epoch));
        }
        let _ = common::complete(&machine.gate, &mut machine.slot, BATCH as usize);
        assert_eq!(machine.transmit.used().len(), BATCH as usize);
    });
}

fn write(held: bool) {
    let image = image(SECTORS);
    let mut machine = DiskMachine::new(&image);
    if !held {
        machine.gate.run_alone(machine.authority.alone(Term(1)));
    }
    let requests: Vec<_> = (0..BATCH).map(|n| machine.header(1, n * 8)).collect();
    measure(if held { "write, held" } else { "write, open" }, || {
        for (header, status) in &requests {
            machine.driver.add(&[*header, (DATA, 4096)], &[*status]);
        }
        let _ = machine.kick();
        if held {
            let epoch = machine.gate.seal().epoch;
            machine.commit(epoch);
        }
        let done = wait_completions(&machine.gate, BATCH as usize);
        let _ = machine.slot.complete_all(done);
        assert_eq!(machine.driver.used().len(), BATCH as usize);
    });
}

#[test]
#[ignore = "a measurement"]
fn hot_path_send_open() {
    send(false);
}

#[test]
#[ignore = "a measurement"]
fn hot_path_send_held() {
    send(true);
}

#[test]
#[ignore = "a measurement"]
fn hot_path_write_open() {
    write(false);
}

#[test]
#[ignore = "a measurement"]
fn hot_path_write_held() {
    write(true);
}

#[test]
#[ignore = "a measurement"]
fn hot_path_receive() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    measure("receive", || {
        for n in 0..BATCH as u8 {
            machine.room(2048);
            write_frame(&mut peer, &[n; 200]);
        }
        // If the last round has left no room, this notification makes the device ask for input
        // again.
        let _ = machine.slot.kick(RECEIVE);
        let mut taken = machine.receive.used().len();
        while taken < BATCH as usize {
            machine.take_input();
            taken += machine.receive.used().len();
        }
    });
}

#[test]
#[ignore = "a measurement"]
fn hot_path_read() {
    let image = image(SECTORS);
    let mut machine = DiskMachine::alone(&image);
    let requests: Vec<_> = (0..BATCH).map(|n| machine.header(0, n * 8)).collect();
    measure("read", || {
        for (header, status) in &requests {
            machine.driver.add(&[*header], &[(DATA, 4096), *status]);
        }
        let _ = machine.kick();
        let done = wait_completions(&machine.gate, BATCH as usize);
        let _ = machine.slot.complete_all(done);
        assert_eq!(machine.driver.used().len(), BATCH as usize);
    });
}
