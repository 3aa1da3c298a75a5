//! The application processors. They start one after the other, and only dirty memory.

use crate::clock::Clock;
use crate::dirty::{self, Worker};
use crate::{cpu, lapic, memory, say};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Maximum number of CPUs, as in the tables of `boot.s`.
pub const MAX_CPUS: usize = 4;

/// The address at which a CPU starts in real mode, as in `boot.s`.
const TRAMPOLINE: usize = 0x10000;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static WORK: AtomicBool = AtomicBool::new(false);
static HOT: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    #[link_name = "ap_index"]
    static AP_INDEX: AtomicU64;
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// Starts the CPUs in `ids` except this one. Returns the number of running CPUs, including this
/// one.
pub fn start(ids: &[u32], clock: &mut Clock) -> usize {
    copy_trampoline();
    let own = lapic::id();
    let others = ids.iter().filter(|&&id| id != own).take(MAX_CPUS - 1);
    for (place, &id) in others.enumerate() {
        // SAFETY: `boot.s` defines it, 8 bytes, aligned; a CPU reads it once, before it counts
        // itself alive.
        unsafe { AP_INDEX.store(place as u64 + 1, Ordering::SeqCst) };
        let is_up = || ALIVE.load(Ordering::SeqCst) == place + 1;
        if !start_cpu(id, clock, is_up) {
            say!("micro-guest: CPU {id} did not start");
            break;
        }
    }
    1 + ALIVE.load(Ordering::SeqCst)
}

/// Resets and starts CPU `id`. Returns whether `is_up` became true in time.
fn start_cpu(id: u32, clock: &mut Clock, is_up: impl Fn() -> bool) -> bool {
    lapic::reset_cpu(id);
    wait(clock, 10_000_000, || false);
    for _ in 0..2 {
        lapic::start_cpu(id, TRAMPOLINE);
        if wait(clock, 500_000_000, &is_up) {
            return true;
        }
    }
    false
}

fn wait(clock: &mut Clock, nanoseconds: u64, done: impl Fn() -> bool) -> bool {
    let start = clock.now();
    while clock.now() - start < nanoseconds {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

fn copy_trampoline() {
    // SAFETY: the page at TRAMPOLINE is RAM below 1 MiB that no part of the guest uses, and the
    // loader's tables were copied before; the symbols bound the code in `boot.s`.
    unsafe {
        let start = &raw const ap_trampoline;
        let length = (&raw const ap_trampoline_end).offset_from_unsigned(start);
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, length);
    }
}

/// Lets the other CPUs begin: the region to dirty is now known.
pub fn release(hot: bool) {
    HOT.store(hot, Ordering::SeqCst);
    WORK.store(true, Ordering::SeqCst);
}

/// Entry from `boot.s` on an application processor.
#[unsafe(no_mangle)]
extern "C" fn ap_main(index: usize) -> ! {
    // Start the clock before the timer: it may use the timer to calibrate itself.
    let mut clock = Clock::start(memory::allocate());
    lapic::start_timer();
    ALIVE.store(index, Ordering::SeqCst);
    while !WORK.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    let mut worker = Worker::new(index - 1);
    let hot = HOT.load(Ordering::SeqCst);
    loop {
        dirty::park_if_asked();
        let seen = cpu::wake_count();
        if !worker.step(clock.now(), u32::MAX) && !hot {
            cpu::halt_unless_woken(seen);
        }
    }
}
