//! Measures what this host's KVM can run: stock kernels, or bare-metal guests only.

mod limits;

pub use limits::limits;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kemari_hypervisor::kvm::long_mode::{LARGE_PAGE, USER_PAGE, long_mode};
use kemari_hypervisor::kvm::{self, ExitHandler, FatalExit, VcpuSet, Vm, VmOptions};
use kemari_hypervisor::memory::{self, GuestMemory, MemoryOptions};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuFd};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

/// What the host's KVM can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKvm {
    /// There is no usable `/dev/kvm`.
    None,
    /// Only ring 3 runs at native speed, as on a paravirtual backend: KVM runs bare-metal guests
    /// that work in ring 3.
    Ring3Only,
    /// All rings run at native speed: KVM runs stock kernels.
    Full,
}

/// The result of [`probe`].
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// What the host's KVM can run.
    pub kvm: HostKvm,
    /// The reason for that result, as text.
    pub reason: String,
    /// Nanoseconds per turn of an empty loop in ring 0.
    pub ring0_ns: Option<f64>,
    /// As `ring0_ns`, in ring 3.
    pub ring3_ns: Option<f64>,
}

/// A loop that is this many times slower in ring 0 than in ring 3 is emulated. Natively both take
/// equal time; emulation is about a thousand times slower; nested or busy hosts slow both equally.
const EMULATED_RATIO: f64 = 20.0;
/// Number of loop turns: microseconds natively, milliseconds when emulated.
const TURNS: u32 = 20_000;
/// Each ring is timed this often, and the lowest time counts: a busy host only adds time.
const ROUNDS: u32 = 3;
/// A guest that has not ended after this time never will.
const DEADLINE: Duration = Duration::from_secs(5);

/// Measures this host.
pub fn probe() -> Probe {
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(e) => return nothing(e.to_string()),
    };
    match (time_ring(&kvm, 0), time_ring(&kvm, 3)) {
        (Ok(ring0), Ok(ring3)) => judge(ring0, ring3),
        (Err(e), Ok(ring3)) => Probe {
            kvm: HostKvm::Ring3Only,
            reason: format!("ring 3 runs, ring 0 does not: {e}"),
            ring0_ns: None,
            ring3_ns: Some(per_turn(ring3)),
        },
        (_, Err(e)) => nothing(format!("a test program of ten bytes does not run in ring 3: {e}")),
    }
}

fn nothing(reason: String) -> Probe {
    Probe { kvm: HostKvm::None, reason, ring0_ns: None, ring3_ns: None }
}

fn per_turn(time: Duration) -> f64 {
    time.as_nanos() as f64 / f64::from(TURNS)
}

fn judge(ring0: Duration, ring3: Duration) -> Probe {
    let (r0, r3) = (per_turn(ring0), per_turn(ring3));
    // Both times include waking the vCPU's thread and one exit, together about 0.1 ms. The emulated
    // loop takes tens of milliseconds.
    let emulated = r0 > r3 * EMULATED_RATIO;
    let kvm = if emulated { HostKvm::Ring3Only } else { HostKvm::Full };
    let verdict = if emulated {
        "ring 0 is emulated: bare-metal guests only"
    } else {
        "all rings run at the same speed: stock kernels run"
    };
    Probe {
        kvm,
        reason: format!(
            "an iteration of a loop takes {r0:.1} ns in ring 0, {r3:.1} ns in ring 3; {verdict}"
        ),
        ring0_ns: Some(r0),
        ring3_ns: Some(r3),
    }
}

const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
/// A guest virtual address without RAM, to which the guest stores when it is done.
const DONE: u32 = 0x0080_0000;

/// Times the loop at privilege level `ring`.
fn time_ring(kvm: &Kvm, ring: u8) -> Result<Duration, String> {
    let memory = memory::create(MemoryOptions { size: 2 << 20, huge_pages: false })
        .map_err(|e| e.to_string())?;
    write_guest(&memory).map_err(|e| e.to_string())?;
    let options = VmOptions { cpus: 1, pit: false };
    let vm = Vm::new(kvm, memory, options).map_err(|e| e.to_string())?;
    let fds = vm.create_vcpus().map_err(|e| e.to_string())?;
    // The channel has room for one end per round, so the handler never blocks.
    let (tx, ends) = sync_channel(ROUNDS as usize);
    let mut set = VcpuSet::spawn(fds, Arc::new(Clock(tx))).map_err(|e| e.to_string())?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        best = best.min(time_once(&set, &ends, ring)?);
    }
    set.stop();
    Ok(best)
}

fn time_once(
    set: &VcpuSet,
    ends: &Receiver<Result<Instant, FatalExit>>,
    ring: u8,
) -> Result<Duration, String> {
    set.with_vcpu(0, |fd| enter(fd, ring))
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("cannot set its registers: {e}"))?;
    let start = Instant::now();
    set.resume();
    let end = ends.recv_timeout(DEADLINE);
    set.pause();
    match end {
        Ok(Ok(end)) => Ok(end - start),
        Ok(Err(exit)) => Err(exit.to_string()),
        Err(_) => Err(format!("it does not end within {DEADLINE:?}")),
    }
}

/// Records the time at which the guest is done.
struct Clock(SyncSender<Result<Instant, FatalExit>>);

impl ExitHandler for Clock {
    fn pio_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_out(&self, _: u16, _: &[u8]) {}

    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, addr: u64, _: &[u8]) {
        if addr == u64::from(DONE) {
            // This fails only when the probe has stopped waiting.
            let _ = self.0.try_send(Ok(Instant::now()));
        }
    }

    fn on_fatal(&self, _: usize, exit: FatalExit) {
        let _ = self.0.try_send(Err(exit));
    }
}

/// Writes `mov ecx, TURNS; 1: dec ecx; jnz 1b; mov [DONE], eax; jmp $` and page tables that map the
/// first 16 MiB for all rings.
fn write_guest(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let mut code = vec![0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0x89, 0x04, 0x25]);
    code.extend(DONE.to_le_bytes());
    code.extend([0xeb, 0xfe]);
    memory.write_slice(&code, GuestAddress(CODE))?;
    memory.write_obj(PDPT | USER_PAGE, GuestAddress(PML4))?;
    memory.write_obj(PD | USER_PAGE, GuestAddress(PDPT))?;
    for i in 0..8u64 {
        memory.write_obj((i << 21) | USER_PAGE | LARGE_PAGE, GuestAddress(PD + i * 8))?;
    }
    Ok(())
}

fn enter(fd: &VcpuFd, ring: u8) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = fd.get_sregs()?;
    long_mode(&mut sregs, ring, PML4);
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_follows_the_ratio() {
        let us = Duration::from_micros;
        assert_eq!(judge(us(60), us(50)).kvm, HostKvm::Full);
        assert_eq!(judge(us(900), us(50)).kvm, HostKvm::Full);
        assert_eq!(judge(us(40_000), us(60)).kvm, HostKvm::Ring3Only);
    }

    #[test]
    fn this_host_is_measured() {
        let probe = probe();
        eprintln!("{probe:?}");
        assert_ne!(probe.kvm, HostKvm::None, "{}: these tests need /dev/kvm", probe.reason);
        assert!(probe.ring3_ns.is_some_and(|ns| ns > 0.0));
    }
}
