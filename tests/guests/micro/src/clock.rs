//! The guest's monotonic clock: KVM's paravirtual clock if available, else the time stamp counter.
//!
//! A clock belongs to one CPU. It checks itself: it counts a step back as a fault, which the
//! observer sees.

use crate::memory::Zeroed;
use crate::{cpu, faults, lapic};
use core::sync::atomic::{Ordering, compiler_fence};

const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// The structure that KVM writes (`struct pvclock_vcpu_time_info`). An odd version means that KVM
/// is writing it.
#[repr(C, align(64))]
pub struct SharedTime {
    version: u32,
    padding: u32,
    time_stamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    padding2: [u8; 2],
}

// SAFETY: the hypervisor writes integers, and zeros are the state before its first write.
unsafe impl Zeroed for SharedTime {}

enum Source {
    Kvm(*const SharedTime),
    TimeStamp { start: u64, per_10ms: u64 },
}

/// One CPU's clock.
pub struct Clock {
    source: Source,
    last: u64,
}

impl Clock {
    /// Starts this CPU's clock. From now on KVM may write to `shared`.
    pub fn start(shared: &'static mut SharedTime) -> Self {
        let source = if has_kvm_clock() {
            let shared = core::ptr::from_mut(shared);
            // SAFETY: KVM writes only to the structure, which this CPU gives up for good.
            unsafe { cpu::write_msr(MSR_KVM_SYSTEM_TIME, shared as u64 | 1) };
            Source::Kvm(shared)
        } else {
            let (start, per_10ms) = calibrate();
            Source::TimeStamp { start, per_10ms }
        };
        Self { source, last: 0 }
    }

    /// The name of the clock's source, for the boot messages.
    pub fn name(&self) -> &'static str {
        match self.source {
            Source::Kvm(_) => "kvmclock",
            Source::TimeStamp { .. } => "tsc",
        }
    }

    /// The time in nanoseconds; never less than before. A step back of the source counts as a
    /// fault.
    pub fn now(&mut self) -> u64 {
        let now = match self.source {
            Source::Kvm(shared) => read_shared(shared),
            Source::TimeStamp { start, per_10ms } => {
                let ticks = u128::from(cpu::time_stamp().wrapping_sub(start));
                (ticks * 10_000_000 / u128::from(per_10ms)) as u64
            }
        };
        if now < self.last {
            faults::clock_stepped_back(self.last, now);
            return self.last;
        }
        self.last = now;
        now
    }
}

fn has_kvm_clock() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    if cpu::cpuid(1)[2] & HYPERVISOR == 0 {
        return false;
    }
    // Try all bases: the leaves of other hypervisor interfaces may come first.
    (0x4000_0000u32..0x4001_0000)
        .step_by(0x100)
        .find(|&base| cpu::cpuid(base)[1..] == KVM_SIGNATURE)
        .is_some_and(|base| cpu::cpuid(base + 1)[0] & KVM_FEATURE_CLOCKSOURCE2 != 0)
}

/// The value of the time stamp counter now, and its ticks in 10 ms, measured by the local APIC's
/// timer.
fn calibrate() -> (u64, u64) {
    let start = cpu::time_stamp();
    let mut end = start;
    let elapsed = lapic::time(|| {
        while end - start < 20_000_000 {
            end = cpu::time_stamp();
        }
    });
    let ticks = u128::from(end - start) * 10_000_000 / u128::from(elapsed.max(1));
    (start, (ticks as u64).max(1))
}

fn read_shared(shared: *const SharedTime) -> u64 {
    loop {
        // SAFETY: KVM writes to it only when this CPU enters the guest. Volatile reads see one
        // state or the other, and the version tells them apart.
        let (version, time, again) = unsafe {
            let version = (&raw const (*shared).version).read_volatile();
            compiler_fence(Ordering::SeqCst);
            let stamp = (&raw const (*shared).time_stamp).read_volatile();
            let system = (&raw const (*shared).system_time).read_volatile();
            let multiplier = (&raw const (*shared).multiplier).read_volatile();
            let shift = (&raw const (*shared).shift).read_volatile();
            let delta = cpu::time_stamp().wrapping_sub(stamp);
            let time = system.wrapping_add(scale(delta, multiplier, shift));
            compiler_fence(Ordering::SeqCst);
            (version, time, (&raw const (*shared).version).read_volatile())
        };
        if version & 1 == 0 && version == again {
            return time;
        }
    }
}

fn scale(delta: u64, multiplier: u32, shift: i8) -> u64 {
    let shifted = if shift < 0 { delta >> shift.unsigned_abs() } else { delta << shift };
    ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64
}
