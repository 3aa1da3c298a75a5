//! The local APIC: its timer wakes a halted CPU, and it starts other CPUs.

use core::sync::atomic::{AtomicU32, Ordering};

const BASE: usize = 0xfee0_0000;
const ID: usize = 0x20;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const TIMER_VECTOR: u32 = 0x41;
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0xb;
/// Period of the timer in nanoseconds, and in ticks: both KVM and QEMU run it at 1 GHz.
static WAKE_PERIOD_NS: AtomicU32 = AtomicU32::new(1_000_000);

fn read(register: usize) -> u32 {
    // SAFETY: the controller's registers are always there on this machine, mapped one to one.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: as for `read`; none of the registers makes the controller write to memory.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) }
}

/// This CPU's local APIC ID.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Sets the period, in microseconds, of timers that start later.
pub fn set_wake_period(micros: u32) {
    WAKE_PERIOD_NS.store(micros.saturating_mul(1000), Ordering::SeqCst);
}

/// Enables this CPU's local APIC, and starts its periodic timer.
pub fn start_timer() {
    write(SPURIOUS, 0x1ff);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, PERIODIC | TIMER_VECTOR);
    write(TIMER_INITIAL, WAKE_PERIOD_NS.load(Ordering::SeqCst));
}

/// Runs `work` and returns its duration in nanoseconds, up to four seconds. Uses the timer, which
/// is stopped afterwards.
pub fn time(work: impl FnOnce()) -> u64 {
    write(SPURIOUS, 0x1ff);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
    let before = read(TIMER_CURRENT);
    work();
    let after = read(TIMER_CURRENT);
    write(TIMER_INITIAL, 0);
    u64::from(before - after)
}

/// Resets CPU `id`.
pub fn reset_cpu(id: u32) {
    send(id, 0x4500);
}

/// Starts CPU `id`, which was reset, in real mode at `page` (below 1 MiB).
pub fn start_cpu(id: u32, page: usize) {
    send(id, 0x4600 | (page >> 12) as u32);
}

fn send(id: u32, command: u32) {
    const PENDING: u32 = 1 << 12;
    write(COMMAND_HIGH, id << 24);
    write(COMMAND_LOW, command);
    while read(COMMAND_LOW) & PENDING != 0 {
        core::hint::spin_loop();
    }
}
