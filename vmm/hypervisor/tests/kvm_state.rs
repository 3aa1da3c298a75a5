//! Saves a machine and continues it in another one, on real KVM: nothing is lost, repeated or
//! changed on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use common::{DONE, Event, FAIL, Handler, SEQUENCE, enter, handler, memory, open, vm};
use kemari_hypervisor::kvm::state::SavePlan;
use kemari_hypervisor::kvm::{
    ClockPolicy, CompatInfo, FatalExit, StateError, VcpuError, VcpuSet, VcpuState, Vm, VmState,
};
use kvm_bindings::kvm_regs;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

/// `1: inc rax; movq rcx, xmm0; inc rcx; movq xmm0, rcx; mov rdx, [rdi]; inc rdx; mov [rdi], rdx`
/// `   cmp rcx, rax; jne 2f; cmp rdx, rax; jne 2f; cmp rax, r8; jb 1b; mov [rbx], rax; jmp $`
/// `2: mov [rsi], rax; jmp $`
const COUNT: &[u8] = &[
    0x48, 0xff, 0xc0, 0x66, 0x48, 0x0f, 0x7e, 0xc1, 0x48, 0xff, 0xc1, 0x66, 0x48, 0x0f, 0x6e, 0xc1,
    0x48, 0x8b, 0x17, 0x48, 0xff, 0xc2, 0x48, 0x89, 0x17, 0x48, 0x39, 0xc1, 0x75, 0x0f, 0x48, 0x39,
    0xc2, 0x75, 0x0a, 0x4c, 0x39, 0xc0, 0x72, 0xd8, 0x48, 0x89, 0x03, 0xeb, 0xfe, 0x48, 0x89, 0x06,
    0xeb, 0xfe,
];

/// `1: mov rax, [rdi]; cmp rax, r9; jne 2f; inc r9; cmp r9, r8; jb 1b; mov [rbx], r9; jmp $`
/// `2: mov [rsi], rax; jmp $`
const READ_SEQUENCE: &[u8] = &[
    0x48, 0x8b, 0x07, 0x4c, 0x39, 0xc8, 0x75, 0x0d, 0x49, 0xff, 0xc1, 0x4d, 0x39, 0xc1, 0x72, 0xf0,
    0x4c, 0x89, 0x0b, 0xeb, 0xfe, 0x48, 0x89, 0x06, 0xeb, 0xfe,
];

/// `ud2`, without an interrupt table: a triple fault.
const CRASH: &[u8] = &[0x0f, 0x0b];

struct Machine<'a> {
    kvm: &'a Kvm,
    vm: Vm,
    set: VcpuSet,
    plan: Arc<SavePlan>,
    handler: Arc<Handler>,
    events: Receiver<Event>,
}

impl<'a> Machine<'a> {
    fn new(kvm: &'a Kvm, code: &[u8], regs: &[kvm_regs]) -> Self {
        let vm = vm(kvm, memory(16 << 20), code, regs.len() as u32);
        let fds = vm.create_vcpus().unwrap();
        let plan = Arc::new(SavePlan::new(kvm, &vm, &fds[0]).unwrap());
        for (fd, regs) in fds.iter().zip(regs) {
            enter(fd, *regs);
        }
        let (handler, events) = handler();
        let set = VcpuSet::spawn(fds, handler.clone()).unwrap();
        Machine { kvm, vm, set, plan, handler, events }
    }

    /// The counters of `cpus` vCPUs in guest memory.
    fn cells(&self, cpus: u64) -> Vec<u64> {
        let read = |i| self.vm.memory().read_obj(GuestAddress(0x10_0000 + i * 64)).unwrap();
        (0..cpus).map(read).collect()
    }

    /// Replaces the paused machine by a new one with the same memory and the encoded and decoded
    /// state.
    fn hop(&mut self) -> Hop {
        let start = Instant::now();
        let vcpus = self.set.save(&self.plan).unwrap();
        let state = VmState::save(&self.vm).unwrap();
        let save = start.elapsed();
        let bytes = postcard::to_allocvec(&(&vcpus, &state)).unwrap();
        self.set.stop();
        let vm = Vm::new(self.kvm, self.vm.memory().clone(), self.vm.options()).unwrap();
        let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), self.handler.clone()).unwrap();
        let (vcpus, state): (Vec<VcpuState>, VmState) = postcard::from_bytes(&bytes).unwrap();
        let start = Instant::now();
        state.restore(&vm, ClockPolicy::Continue).unwrap();
        set.restore(&self.plan, &vcpus).unwrap();
        let restore = start.elapsed();
        (self.vm, self.set) = (vm, set);
        self.check_restored(&vcpus, &state);
        Hop { save, restore, size: bytes.len() }
    }

    /// Checks that the restored state reads back bit for bit, and that the clock has advanced.
    fn check_restored(&self, vcpus: &[VcpuState], state: &VmState) {
        let again = self.set.save(&self.plan).unwrap();
        for (before, after) in vcpus.iter().zip(&again) {
            let (before, after) = (before.without_clocks(), after.without_clocks());
            assert_eq!(
                postcard::to_allocvec(&before).unwrap(),
                postcard::to_allocvec(&after).unwrap(),
                "restored state differs: {before:x?}\n{after:x?}"
            );
        }
        let now = VmState::save(&self.vm).unwrap();
        assert!(now.clock_ns() >= state.clock_ns(), "the clock stepped back");
        assert!(now.clock_ns() - state.clock_ns() < 10_000_000_000, "the clock leapt");
    }

    /// Moves the guest to a new machine 25 times, each time after it has made progress, then lets
    /// it finish. Every vCPU must report that it is done.
    fn hop_and_finish(&mut self, target: u64, progress: impl Fn(&Self) -> Vec<u64>) -> Vec<Hop> {
        let mut hops = Vec::new();
        for _ in 0..25 {
            let before = progress(self);
            self.set.resume();
            while progress(self).iter().zip(&before).any(|(now, before)| now == before) {
                std::hint::spin_loop();
            }
            self.set.pause();
            hops.push(self.hop());
        }
        assert!(self.events.try_recv().is_err(), "the guest is not done yet");
        self.set.resume();
        for _ in 0..self.set.len() {
            assert_eq!(self.events.recv_timeout(common::DEADLINE).unwrap(), Event::Done(target));
        }
        hops
    }
}

struct Hop {
    save: Duration,
    restore: Duration,
    size: usize,
}

fn report(what: &str, hops: &mut [Hop]) {
    hops.sort_by_key(|h| h.save);
    let save = hops[hops.len() / 2].save;
    hops.sort_by_key(|h| h.restore);
    let restore = hops[hops.len() / 2].restore;
    println!(
        "{what}: {} hops, median save {save:?}, restore {restore:?}, {} bytes",
        hops.len(),
        hops[0].size
    );
}

fn counter(cell: u64, target: u64) -> kvm_regs {
    kvm_regs { rdi: cell, r8: target, rbx: DONE, rsi: FAIL, ..Default::default() }
}

#[test]
fn a_computation_survives_hops_between_machines() {
    let kvm = open();
    let target = 300_000_000;
    for cpus in [1u64, 2] {
        let regs: Vec<_> = (0..cpus).map(|i| counter(0x10_0000 + i * 64, target)).collect();
        let mut machine = Machine::new(&kvm, COUNT, &regs);
        let mut hops = machine.hop_and_finish(target, |m| m.cells(cpus));
        report(&format!("{cpus} vCPUs"), &mut hops);
    }
}

/// A device read that the guest has issued and not yet received at the pause is neither lost nor
/// repeated.
#[test]
fn pending_io_is_finished_before_a_save() {
    let kvm = open();
    let target = 10_000;
    let regs = kvm_regs { rdi: SEQUENCE, r8: target, rbx: DONE, rsi: FAIL, ..Default::default() };
    let mut machine = Machine::new(&kvm, READ_SEQUENCE, &[regs]);
    let mut hops = machine.hop_and_finish(target, |m| vec![m.handler.sequence.load(SeqCst)]);
    report("device reads", &mut hops);
    assert_eq!(machine.handler.sequence.load(SeqCst), target);
}

#[test]
fn pause_is_complete_and_measured() {
    let kvm = open();
    for cpus in [1u64, 2] {
        let regs: Vec<_> = (0..cpus).map(|i| counter(0x10_0000 + i * 64, u64::MAX)).collect();
        let machine = Machine::new(&kvm, COUNT, &regs);
        let rax = |i| machine.set.with_vcpu(i, |fd| fd.get_regs().unwrap().rax).unwrap();
        let mut times = Vec::new();
        for _ in 0..200 {
            let cells = machine.cells(cpus);
            machine.set.resume();
            assert!(matches!(machine.set.with_vcpu(0, |_| ()), Err(VcpuError::Running)));
            // Wait until each vCPU has run in the guest, then measure the pause.
            while machine.cells(cpus).iter().zip(&cells).any(|(now, before)| now == before) {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            machine.set.pause();
            times.push(start.elapsed());
            assert!(machine.set.is_paused());
            let before: Vec<u64> = (0..cpus as usize).map(rax).collect();
            assert_eq!(
                before,
                (0..cpus as usize).map(rax).collect::<Vec<_>>(),
                "the guest runs while paused"
            );
        }
        times.sort();
        println!("pause of {cpus} vCPUs: median {:?}, p99 {:?}", times[100], times[197]);
        assert!(rax(0) > 0, "the guest ran");
        assert!(matches!(
            machine.set.with_vcpu(cpus as usize, |_| ()),
            Err(VcpuError::NoSuchVcpu { .. })
        ));
    }
}

#[test]
fn a_dead_vcpu_is_reported_and_does_not_block_a_pause() {
    let kvm = open();
    let machine = Machine::new(&kvm, CRASH, &[kvm_regs::default(), kvm_regs::default()]);
    machine.set.resume();
    for _ in 0..2 {
        let event = machine.events.recv_timeout(common::DEADLINE).unwrap();
        let Event::Fatal(FatalExit::TripleFault { rip }) = event else { panic!("{event:?}") };
        // AMD processors leave no state after a triple fault, and KVM sets the vCPU to its reset
        // state.
        assert!(rip == common::CODE || rip == 0xfff0, "{rip:#x}");
    }
    machine.set.pause();
    machine.set.save(&machine.plan).unwrap();
}

#[test]
fn work_that_panics_holds_nobody_up() {
    let kvm = open();
    let side = Machine::new(&kvm, COUNT, &[counter(0x10_0000, u64::MAX); 2]);
    side.set.each(|index, _| assert_ne!(index, 1, "as it is to be")).unwrap();
    side.set.resume();
    side.set.pause();
    let (done, work) = std::sync::mpsc::channel();
    side.set.each(move |index, _| done.send(index).unwrap()).unwrap();
    let mut did: Vec<usize> = work.iter().take(2).collect();
    did.sort_unstable();
    assert_eq!(did, [0, 1]);
}

#[test]
fn states_of_another_shape_are_refused() {
    let kvm = open();
    let one = Machine::new(&kvm, COUNT, &[counter(0x10_0000, 1)]);
    let two = Machine::new(&kvm, COUNT, &[counter(0x10_0000, 1), counter(0x10_0040, 1)]);
    let states = one.set.save(&one.plan).unwrap();
    let error = two.set.restore(&two.plan, &states).unwrap_err();
    assert!(matches!(error, StateError::VcpuCount { expected: 2, found: 1 }));
    assert!(error.to_string().contains("--cpus"), "{error}");
}

#[test]
fn a_host_is_compatible_with_itself() {
    let kvm = open();
    let info = || {
        let vm = vm(&kvm, memory(4 << 20), COUNT, 1);
        let fds = vm.create_vcpus().unwrap();
        let plan = Arc::new(SavePlan::new(&kvm, &vm, &fds[0]).unwrap());
        CompatInfo::new(&kvm, &vm, &fds[0], &plan)
    };
    let (a, b) = (info(), info());
    println!("{a:x?}");
    a.check(&b).unwrap();
    assert_eq!(a, postcard::from_bytes(&postcard::to_allocvec(&b).unwrap()).unwrap());
}
