//! Measures lower bounds of this host: no checkpoint can be taken or sent faster than these parts
//! of it take alone.
//!
//! A tiny guest on a KVM machine of its own writes one byte to each of many scattered pages. Then
//! this module reads and clears the log of dirty pages and copies the pages, and the caller sends
//! as many bytes. The product's own code is not used: it could be slower than the host's limit.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES, Msrs,
    kvm_irqchip, kvm_msr_entry, kvm_regs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use super::long_mode::{LARGE_PAGE, USER_PAGE, long_mode};
use super::state::SavePlan;
use super::{ExitHandler, FatalExit, VcpuSet, Vm, VmOptions, VmState};
use crate::memory::{self, GuestMemory, KvmLog, MemoryOptions};

/// The shortest times of this host, in microseconds. Each is a median.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Time of one register access: the exit to user space and the entry into the guest.
    pub exit_us: f64,
    /// Time to take a computing guest out of the processor and park its thread (KVM API,
    /// immediate_exit).
    pub stop_us: f64,
    /// Time to read all state of one vCPU and of the interrupt controllers.
    pub state_us: f64,
    /// The time of each of these calls, by name.
    pub calls_us: BTreeMap<&'static str, f64>,
    /// Time to send 64 bytes to the caller's peer and receive its answer.
    pub round_trip_us: f64,
    /// The costs for each number of dirty pages.
    pub pages: Vec<PageLimits>,
}

/// The lowest cost of `count` scattered dirty pages, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PageLimits {
    /// Number of pages.
    pub count: u64,
    /// Time to call KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.
    pub log_us: f64,
    /// Time to copy the pages to memory that is already mapped.
    pub copy_us: f64,
    /// Time to send the pages to the caller's peer in one write and receive its acknowledgement.
    pub send_us: f64,
}

/// Why the limits cannot be measured.
pub type LimitsError = Box<dyn std::error::Error + Send + Sync>;

/// Rounds of each measurement; the median is reported.
const ROUNDS: usize = 41;
/// Rounds of a measurement whose rounds take milliseconds.
const FEW_ROUNDS: usize = 9;
/// Number of pages from which one round takes milliseconds.
const MANY_PAGES: u64 = 8192;
/// Maximum number of pages: the page tables of the tiny guest reach this far.
pub const MAX_PAGES: u64 = 100_000;
const PAGE: u64 = 4096;
/// The guest writes every second page: no two dirty pages are adjacent.
const STRIDE: u64 = 2;
/// The guest address of the first page.
const DATA: u64 = 4 << 20;
/// Time limit for the guest's report.
const DEADLINE: Duration = Duration::from_secs(20);

/// Measures with each number of pages in `counts`, each at most [`MAX_PAGES`]. `exchange` sends the
/// given number of bytes to a peer, waits for its answer, and returns the time of both.
///
/// # Errors
/// When there is no KVM, a call fails, or `exchange` fails.
pub fn limits(
    counts: &[u64],
    mut exchange: impl FnMut(usize) -> io::Result<Duration>,
) -> Result<Limits, LimitsError> {
    if let Some(count) = counts.iter().find(|count| !(1..=MAX_PAGES).contains(*count)) {
        return Err(format!("--pages: expected 1 to {MAX_PAGES}, found {count}").into());
    }
    let most = counts.iter().copied().max().unwrap_or(1);
    let mut bench = Bench::new(most)?;
    let exit_us = bench.exit()?;
    let stop_us = bench.stop()?;
    let state_us = bench.state()?;
    let calls_us = bench.calls()?;
    let round_trip_us = median(ROUNDS * 5, || exchange(64))?;
    let mut pages = Vec::new();
    for &count in counts {
        let rounds = if count > MANY_PAGES { FEW_ROUNDS } else { ROUNDS };
        let (log_us, copy_us) = bench.pages(count, rounds)?;
        let send_us = median(rounds, || exchange((count * PAGE) as usize))?;
        pages.push(PageLimits { count, log_us, copy_us, send_us });
    }
    bench.set.stop();
    Ok(Limits { exit_us, stop_us, state_us, calls_us, round_trip_us, pages })
}

fn median<E>(rounds: usize, mut one: impl FnMut() -> Result<Duration, E>) -> Result<f64, E> {
    let mut times = (0..rounds).map(|_| one()).collect::<Result<Vec<_>, E>>()?;
    times.sort_unstable();
    Ok(times[rounds / 2].as_secs_f64() * 1e6)
}

/// Guest addresses of the code and the page tables, all below [`DATA`].
const CODE: u64 = 0x1000;
const SPIN: u64 = 0x1100;
const EXITS: u64 = 0x1200;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
const OUTSIDE_PD: u64 = 0x5000;
/// A guest virtual address (1 GiB) without RAM: a write to it exits to user space.
const DONE: u32 = 1 << 30;
/// The guest physical address of [`DONE`], in the hole below 4 GiB.
const HOLE: u64 = 0xd000_0000;
/// Register accesses per measurement.
const ACCESSES: u32 = 200;

/// A machine with the tiny guest.
struct Bench {
    vm: Vm,
    memory: GuestMemory,
    set: VcpuSet,
    plan: Arc<SavePlan>,
    exits: Receiver<Exit>,
    log_words: usize,
    copies: Vec<u8>,
}

enum Exit {
    /// The guest wrote to [`DONE`].
    Done(Instant),
    Fatal(String),
}

impl Bench {
    fn new(most: u64) -> Result<Self, LimitsError> {
        let size = (DATA + most * STRIDE * PAGE).next_multiple_of(2 << 20);
        let kvm = super::open()?;
        let memory = memory::create(MemoryOptions { size, huge_pages: false })?;
        write_guest(&memory)?;
        let vm = Vm::new(&kvm, memory.clone(), VmOptions { cpus: 1, pit: false })?;
        let fds = vm.create_vcpus()?;
        let plan = Arc::new(SavePlan::new(&kvm, &vm, &fds[0])?);
        vm.start_dirty_log()?;
        let (sender, exits) = sync_channel(2 * ACCESSES as usize);
        let set = VcpuSet::spawn(fds, Arc::new(Doors(sender)))?;
        let log_words = (size / PAGE).div_ceil(64) as usize;
        let copies = vec![1; (most * PAGE) as usize];
        let bench = Self { vm, memory, set, plan, exits, log_words, copies };
        // Touch each page before any measurement: a guest at work has touched its pages.
        bench.run(CODE, most)?;
        Ok(bench)
    }

    /// Runs the guest at `code` with the counter `count` until it writes to [`DONE`].
    fn run(&self, code: u64, count: u64) -> Result<(), LimitsError> {
        self.begin(code, count)?;
        self.wait_done()?;
        self.set.pause();
        Ok(())
    }

    fn begin(&self, code: u64, count: u64) -> Result<(), LimitsError> {
        self.set.with_vcpu(0, |fd| enter(fd, code, count))??;
        self.set.resume();
        Ok(())
    }

    fn wait_done(&self) -> Result<Instant, LimitsError> {
        match self.exits.recv_timeout(DEADLINE) {
            Ok(Exit::Done(at)) => Ok(at),
            Ok(Exit::Fatal(reason)) => Err(reason.into()),
            Err(_) => Err(format!("the guest has not ended within {DEADLINE:?}").into()),
        }
    }

    /// The time of one exit: the mean of many in a row.
    fn exit(&self) -> Result<f64, LimitsError> {
        let mean = median(FEW_ROUNDS, || -> Result<Duration, LimitsError> {
            self.begin(EXITS, u64::from(ACCESSES))?;
            let first = self.wait_done()?;
            let mut last = first;
            for _ in 1..ACCESSES {
                last = self.wait_done()?;
            }
            self.set.pause();
            Ok((last - first) / (ACCESSES - 1))
        })?;
        Ok(mean)
    }

    fn stop(&self) -> Result<f64, LimitsError> {
        median(ROUNDS * 3, || {
            self.begin(SPIN, 1)?;
            // Let the vCPU run in the guest for a while, as one that is stopped for a checkpoint
            // has.
            self.wait_done()?;
            std::thread::sleep(Duration::from_micros(300));
            let begun = Instant::now();
            self.set.pause();
            Ok(begun.elapsed())
        })
    }

    fn state(&self) -> Result<f64, LimitsError> {
        median(ROUNDS * 3, || {
            let begun = Instant::now();
            let state = (self.set.save(&self.plan)?, VmState::save(&self.vm)?);
            let time = begun.elapsed();
            drop(state);
            Ok(time)
        })
    }

    /// The time of each call that reads KVM's state, measured alone.
    fn calls(&self) -> Result<BTreeMap<&'static str, f64>, LimitsError> {
        let msrs: Vec<_> = self.plan.msr_indices().into_iter().take(KVM_MAX_MSR_ENTRIES).collect();
        let msrs: Vec<_> =
            msrs.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&msrs).map_err(|error| format!("{error:?}"))?;
        let vcpu = |call: fn(&VcpuFd, &Msrs) -> Result<(), kvm_ioctls::Error>| {
            median(ROUNDS, || self.on_its_thread(call, &msrs))
        };
        let vm = |call: &dyn Fn(&VmFd) -> Result<(), kvm_ioctls::Error>| {
            median(ROUNDS, || -> Result<Duration, LimitsError> {
                let begun = Instant::now();
                call(self.vm.fd())?;
                Ok(begun.elapsed())
            })
        };
        let chip = |chip_id| {
            move |fd: &VmFd| fd.get_irqchip(&mut kvm_irqchip { chip_id, ..Default::default() })
        };
        Ok(BTreeMap::from([
            ("KVM_GET_MP_STATE", vcpu(|fd, _| fd.get_mp_state().map(drop))?),
            ("KVM_GET_REGS", vcpu(|fd, _| fd.get_regs().map(drop))?),
            ("KVM_GET_SREGS", vcpu(|fd, _| fd.get_sregs().map(drop))?),
            ("KVM_GET_XSAVE", vcpu(|fd, _| fd.get_xsave().map(drop))?),
            ("KVM_GET_XCRS", vcpu(|fd, _| fd.get_xcrs().map(drop))?),
            ("KVM_GET_DEBUGREGS", vcpu(|fd, _| fd.get_debug_regs().map(drop))?),
            ("KVM_GET_TSC_KHZ", vcpu(|fd, _| fd.get_tsc_khz().map(drop))?),
            ("KVM_GET_LAPIC", vcpu(|fd, _| fd.get_lapic().map(drop))?),
            ("KVM_GET_MSRS", vcpu(|fd, msrs| fd.get_msrs(&mut msrs.clone()).map(drop))?),
            ("KVM_GET_VCPU_EVENTS", vcpu(|fd, _| fd.get_vcpu_events().map(drop))?),
            ("KVM_GET_IRQCHIP (PIC 1)", vm(&chip(KVM_IRQCHIP_PIC_MASTER))?),
            ("KVM_GET_IRQCHIP (PIC 2)", vm(&chip(KVM_IRQCHIP_PIC_SLAVE))?),
            ("KVM_GET_IRQCHIP (I/O APIC)", vm(&chip(KVM_IRQCHIP_IOAPIC))?),
            ("KVM_GET_CLOCK", vm(&|fd| fd.get_clock().map(drop))?),
        ]))
    }

    /// The time of one call on the vCPU's own thread, as in a checkpoint.
    fn on_its_thread(
        &self,
        call: fn(&VcpuFd, &Msrs) -> Result<(), kvm_ioctls::Error>,
        msrs: &Msrs,
    ) -> Result<Duration, LimitsError> {
        let (sender, result) = sync_channel(1);
        let msrs = msrs.clone();
        self.set.each(move |_, fd| {
            let begun = Instant::now();
            let called = call(fd, &msrs);
            // The channel holds one result, and this sends one.
            let _ = sender.send(called.map(|()| begun.elapsed()));
        })?;
        Ok(result.recv()??)
    }

    /// The times to read and clear the log, and to copy, for `count` pages.
    fn pages(&mut self, count: u64, rounds: usize) -> Result<(f64, f64), LimitsError> {
        let (mut logs, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            self.run(CODE, count)?;
            let begun = Instant::now();
            let found = self.take_log()?;
            let read = Instant::now();
            self.copy(count)?;
            copies.push(read.elapsed());
            logs.push(read - begun);
            if found < count {
                return Err(format!("{count} pages were written, KVM reports {found}").into());
            }
        }
        let mut logs = logs.into_iter().map(Ok::<_, LimitsError>);
        let mut copies = copies.into_iter().map(Ok::<_, LimitsError>);
        let next = || -> LimitsError { "a round is missing".into() };
        let log = median(rounds, || logs.next().ok_or_else(next)?)?;
        let copy = median(rounds, || copies.next().ok_or_else(next)?)?;
        Ok((log, copy))
    }

    /// Calls KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG for the only slot; returns the number of
    /// dirty pages.
    fn take_log(&self) -> Result<u64, LimitsError> {
        let mut log = self.vm.fd().get_dirty_log(0, self.log_words * 64 * PAGE as usize)?;
        log.truncate(self.log_words);
        let found = log.iter().map(|word| u64::from(word.count_ones())).sum();
        let (Some(first), Some(last)) =
            (log.iter().position(|word| *word != 0), log.iter().rposition(|word| *word != 0))
        else {
            return Ok(found);
        };
        let slot = KvmLog { slot: 0, pages: self.log_words as u64 * 64 };
        slot.clear_words(self.vm.fd(), first as u64 * 64, &log[first..=last])?;
        Ok(found)
    }

    fn copy(&mut self, count: u64) -> Result<(), LimitsError> {
        let pages = self.copies.chunks_exact_mut(PAGE as usize).take(count as usize);
        for (index, page) in pages.enumerate() {
            let address = DATA + index as u64 * STRIDE * PAGE;
            self.memory.read_slice(page, GuestAddress(address))?;
        }
        Ok(())
    }
}

/// Reports the guest's writes to [`DONE`].
struct Doors(SyncSender<Exit>);

impl ExitHandler for Doors {
    fn pio_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_out(&self, _: u16, _: &[u8]) {}

    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) {
        // The channel is full only after the measuring thread has given up.
        let _ = self.0.try_send(Exit::Done(Instant::now()));
    }

    fn on_fatal(&self, _: usize, exit: FatalExit) {
        let _ = self.0.try_send(Exit::Fatal(exit.to_string()));
    }
}

/// Writes three programs, and page tables that map the first GiB one to one and the hole after it.
fn write_guest(memory: &GuestMemory) -> Result<(), LimitsError> {
    let done = DONE.to_le_bytes();
    // 1: mov [rdi], al; add rdi, STRIDE pages; dec ecx; jnz 1b; mov [DONE], eax; jmp $
    let mut code = vec![0x88, 0x07, 0x48, 0x81, 0xc7];
    code.extend(((STRIDE * PAGE) as u32).to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xf3, 0x89, 0x04, 0x25]);
    code.extend(done);
    code.extend([0xeb, 0xfe]);
    memory.write_slice(&code, GuestAddress(CODE))?;
    // mov [DONE], eax; 1: dec ecx; jmp 1b
    let mut spin = vec![0x89, 0x04, 0x25];
    spin.extend(done);
    spin.extend([0xff, 0xc9, 0xeb, 0xfc]);
    memory.write_slice(&spin, GuestAddress(SPIN))?;
    // 1: mov [DONE], eax; dec ecx; jnz 1b; jmp $
    let mut exits = vec![0x89, 0x04, 0x25];
    exits.extend(done);
    exits.extend([0xff, 0xc9, 0x75, 0xf5, 0xeb, 0xfe]);
    memory.write_slice(&exits, GuestAddress(EXITS))?;
    memory.write_obj(PDPT | USER_PAGE, GuestAddress(PML4))?;
    memory.write_obj(PD | USER_PAGE, GuestAddress(PDPT))?;
    memory.write_obj(OUTSIDE_PD | USER_PAGE, GuestAddress(PDPT + 8))?;
    for i in 0..512 {
        memory.write_obj((i << 21) | USER_PAGE | LARGE_PAGE, GuestAddress(PD + i * 8))?;
    }
    memory.write_obj(HOLE | USER_PAGE | LARGE_PAGE, GuestAddress(OUTSIDE_PD))?;
    Ok(())
}

fn enter(fd: &VcpuFd, code: u64, count: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = fd.get_sregs()?;
    long_mode(&mut sregs, 3, PML4);
    fd.set_sregs(&sregs)?;
    let regs = kvm_regs { rip: code, rdi: DATA, rcx: count, rflags: 2, ..Default::default() };
    fd.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_limits() {
        let exchange = |len| Ok(Duration::from_nanos(len as u64));
        let limits = limits(&[16, 1000], exchange).expect("these tests need /dev/kvm");
        eprintln!("{limits:?}");
        assert!(limits.exit_us > 0.0 && limits.stop_us > 0.0 && limits.state_us > 0.0);
        let counts: Vec<u64> = limits.pages.iter().map(|pages| pages.count).collect();
        assert_eq!(counts, [16, 1000]);
        assert!(limits.pages.iter().all(|pages| pages.log_us > 0.0 && pages.copy_us > 0.0));
        assert_eq!(limits.round_trip_us, 0.064);
        assert_eq!(limits.pages[0].send_us, 65.536);
    }

    #[test]
    fn a_count_beyond_what_can_be_measured_is_refused() {
        let exchange = |_| Ok(Duration::ZERO);
        let error =
            limits(&[MAX_PAGES + 1], exchange).map(drop).expect_err("it is too many").to_string();
        assert_eq!(error, "--pages: expected 1 to 100000, found 100001");
    }
}
