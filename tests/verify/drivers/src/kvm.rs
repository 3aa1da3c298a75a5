//! The simulated parts of KVM: the guest's execution, and the log of the pages that it writes.
//!
//! The rest of a machine comes from the real KVM: descriptors, state, memory slots. Times that KVM
//! returns are replaced by the world's, because the length of an encoded number decides how many
//! branches its encoder runs. The guest is a program that counts ([`crate::guest`]). Its step
//! number is in its memory, so it can continue from any checkpoint.

use std::collections::BTreeMap;

use kemari_hypervisor::layout;
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clock_data, kvm_dirty_log, kvm_enable_cap, kvm_msr_entry, kvm_msrs,
    kvm_pit_state2, kvm_regs, kvm_run, kvm_userspace_memory_region,
};

use crate::guest::{self, GuestRequest, Memory};
use crate::hosts;
use crate::scheduler::{self, Host, On, Owned, Woken};

const CREATE_VM: u64 = 0xae01;
const CREATE_VCPU: u64 = 0xae41;
const RUN: u64 = 0xae80;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const GET_DIRTY_LOG: u64 = 0x4010_ae42;
const CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;
const GET_CLOCK: u64 = 0x8030_ae7c;
const GET_REGS: u64 = 0x8090_ae81;
const SET_REGS: u64 = 0x4090_ae82;
const GET_MSRS: u64 = 0xc008_ae88;
const GET_PIT2: u64 = 0x8070_ae9f;
const IA32_TSC: u32 = 0x10;
const ENABLE_CAP: u64 = 0x4068_aea3;
/// Offset of a port access's data in the shared page (KVM API, `kvm_run.io.data_offset`).
const PORT_DATA: u64 = 4096;
const SERIAL_PORT: u16 = 0x3f8;
const POWER_PORT: u16 = layout::PM1A_CNT_PORT;
const RESET_PORT: u16 = layout::I8042_PORT;
/// Marker in `r15`: `r13` and `r14` then hold the guest's boot and step.
const TELLS: u64 = 0x6b65_6d61_7269;
/// The command that switches the machine off (ACPI, SLP_EN with SLP_TYP of S5).
const SOFT_OFF: u16 = 1 << 13 | (layout::S5_SLP_TYP as u16) << 10;

#[derive(Clone, Debug, Default)]
struct Slot {
    first: u64,
    size: u64,
    at: u64,
    logged: bool,
    /// Pages that the guest has written since the log was cleared, one bit each.
    dirty: Vec<u64>,
}

#[derive(Debug, Default)]
struct Vm {
    slots: BTreeMap<u32, Slot>,
    /// Whether KVM_GET_DIRTY_LOG leaves the log unchanged (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
    manual: bool,
}

#[derive(Debug)]
struct Vcpu {
    vm: i32,
    run: usize,
    /// The step whose exit is being served; it ends at the next KVM_RUN.
    pending: Option<u64>,
    /// Boot and step in the registers that were last written. The guest's memory must agree.
    set: Option<(u64, u64)>,
}

struct Tables {
    vms: BTreeMap<i32, Vm>,
    hosts: BTreeMap<i32, Host>,
    vcpus: BTreeMap<i32, Vcpu>,
}

static TABLES: Owned<Tables> =
    Owned::new(Tables { vms: BTreeMap::new(), hosts: BTreeMap::new(), vcpus: BTreeMap::new() });

/// Number of machines on a host, running or not.
pub(crate) fn machines(host: Host) -> usize {
    TABLES.with(|tables| tables.hosts.values().filter(|of| **of == host).count())
}

pub(crate) fn closed(fd: i32) {
    TABLES.with(|tables| {
        tables.vms.remove(&fd);
        tables.hosts.remove(&fd);
        tables.vcpus.remove(&fd);
    });
}

pub(crate) fn mapped(fd: i32, at: usize) {
    TABLES.with(|tables| {
        if let Some(vcpu) = tables.vcpus.get_mut(&fd) {
            vcpu.run = at;
        }
    });
}

/// Serves an `ioctl`; `plain` makes the kernel's call.
pub(crate) fn ioctl(fd: i32, request: u64, argument: usize, plain: impl Fn() -> i64) -> i64 {
    if request == RUN {
        return run(fd);
    }
    if request == SET_REGS && crate::faults::refuses_now() {
        return -i64::from(libc::EINVAL);
    }
    let result = plain();
    if result < 0 {
        return result;
    }
    match request {
        CREATE_VM => {
            let host = scheduler::host();
            TABLES.with(|tables| {
                tables.vms.insert(result as i32, Vm::default());
                tables.hosts.insert(result as i32, host);
            });
        }
        CREATE_VCPU => {
            let vcpu = Vcpu { vm: fd, run: 0, pending: None, set: None };
            TABLES.with(|tables| tables.vcpus.insert(result as i32, vcpu));
        }
        SET_USER_MEMORY_REGION => {
            // SAFETY: the kernel has just read it from the same place.
            let region = unsafe { *(argument as *const kvm_userspace_memory_region) };
            set_slot(fd, &region);
        }
        ENABLE_CAP => {
            // SAFETY: as above.
            let cap = unsafe { &*(argument as *const kvm_enable_cap) };
            if cap.cap == kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 {
                TABLES.with(|tables| tables.vms.entry(fd).or_default().manual = true);
            }
        }
        GET_DIRTY_LOG => {
            // SAFETY: as above.
            tell_dirty(fd, unsafe { &*(argument as *const kvm_dirty_log) });
        }
        CLEAR_DIRTY_LOG => {
            // SAFETY: as above.
            clear_dirty(fd, unsafe { &*(argument as *const kvm_clear_dirty_log) });
        }
        GET_CLOCK => {
            // SAFETY: as above.
            let clock = unsafe { &mut *(argument as *mut kvm_clock_data) };
            (clock.clock, clock.host_tsc) = (hosts::clock(), hosts::clock());
            clock.realtime = hosts::wall_clock();
        }
        GET_REGS => {
            // SAFETY: as above.
            tell_registers(fd, unsafe { &mut *(argument as *mut kvm_regs) });
        }
        SET_REGS => {
            // SAFETY: the kernel has just read it from the same place.
            take_registers(fd, unsafe { &*(argument as *const kvm_regs) });
        }
        GET_MSRS => {
            // SAFETY: the kernel has written this many, after the header.
            let msrs = unsafe {
                let first = (argument as *mut kvm_msr_entry).byte_add(size_of::<kvm_msrs>());
                std::slice::from_raw_parts_mut(first, result as usize)
            };
            let tsc = msrs.iter_mut().find(|msr| msr.index == IA32_TSC);
            tsc.into_iter().for_each(|msr| msr.data = hosts::clock());
        }
        GET_PIT2 => {
            // SAFETY: as above.
            let pit = unsafe { &mut *(argument as *mut kvm_pit_state2) };
            pit.channels.iter_mut().for_each(|channel| channel.count_load_time = 0);
        }
        _ => {}
    }
    result
}

/// Puts the guest's boot and step from its memory into its registers as well: a state that mixes
/// two moments must be noticed (P4).
fn tell_registers(fd: i32, registers: &mut kvm_regs) {
    let Some(vm) = TABLES.with(|tables| tables.vcpus.get(&fd).map(|vcpu| vcpu.vm)) else { return };
    let has_memory =
        |tables: &mut Tables| tables.vms.get(&vm).is_some_and(|vm| !vm.slots.is_empty());
    if TABLES.with(has_memory) {
        (registers.r13, registers.r14) =
            with_guest(vm, |memory| (guest::boot(memory), guest::step(memory)));
        registers.r15 = TELLS;
    }
}

fn take_registers(fd: i32, registers: &kvm_regs) {
    let set = (registers.r15 == TELLS).then_some((registers.r13, registers.r14));
    TABLES.with(|tables| {
        if let Some(vcpu) = tables.vcpus.get_mut(&fd) {
            vcpu.set = set;
        }
    });
}

/// Compares the registers with the memory when the guest first runs after a write of its registers.
fn compare_registers(fd: i32, vm: i32) {
    let set = TABLES.with(|tables| tables.vcpus.get_mut(&fd).expect("a vCPU").set.take());
    let found = with_guest(vm, |memory| (guest::boot(memory), guest::step(memory)));
    if let Some(set) = set.filter(|set| *set != found) {
        crate::broken(&format!(
            "P4: boot and step {found:?} by the guest's memory, {set:?} by its registers"
        ));
    }
}

fn set_slot(vm: i32, region: &kvm_userspace_memory_region) {
    let logged = region.flags & kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES != 0;
    TABLES.with(|tables| {
        let slot = tables.vms.entry(vm).or_default().slots.entry(region.slot).or_default();
        // A new log is empty; a log that continues keeps its bits.
        if !logged || !slot.logged {
            slot.dirty = vec![0; (region.memory_size / 4096).div_ceil(64) as usize];
        }
        (slot.first, slot.size, slot.at, slot.logged) =
            (region.guest_phys_addr, region.memory_size, region.userspace_addr, logged);
    });
}

fn tell_dirty(vm: i32, log: &kvm_dirty_log) {
    TABLES.with(|tables| {
        let Some(vm) = tables.vms.get_mut(&vm) else { return };
        let manual = vm.manual;
        let Some(slot) = vm.slots.get_mut(&log.slot) else { return };
        // SAFETY: the caller has passed room for one bit per page, rounded up to words; the kernel
        // has just written there.
        let words = unsafe {
            std::slice::from_raw_parts_mut(
                log.__bindgen_anon_1.dirty_bitmap.cast::<u64>(),
                slot.dirty.len(),
            )
        };
        for (word, ours) in words.iter_mut().zip(&mut slot.dirty) {
            *word |= *ours;
            if !manual {
                *ours = 0;
            }
        }
    });
}

fn clear_dirty(vm: i32, log: &kvm_clear_dirty_log) {
    TABLES.with(|tables| {
        let Some(slot) = tables.vms.get_mut(&vm).and_then(|vm| vm.slots.get_mut(&log.slot)) else {
            return;
        };
        let (first, count) =
            ((log.first_page / 64) as usize, (log.num_pages as usize).div_ceil(64));
        // SAFETY: the caller has passed this many bits, rounded up to words; the kernel has just
        // read them.
        let words = unsafe {
            std::slice::from_raw_parts(log.__bindgen_anon_1.dirty_bitmap.cast::<u64>(), count)
        };
        for (ours, cleared) in slot.dirty[first..first + count].iter_mut().zip(words) {
            *ours &= !cleared;
        }
    });
}

/// Guest memory as the vCPU accesses it.
struct Guest<'v>(&'v mut Vm);

impl Guest<'_> {
    fn place(&mut self, address: u64) -> (*mut u64, &mut Slot) {
        let slot = self
            .0
            .slots
            .values_mut()
            .find(|slot| address >= slot.first && address - slot.first < slot.size);
        let slot = slot.expect("an address in the guest's memory");
        ((slot.at + address - slot.first) as *mut u64, slot)
    }
}

impl Memory for Guest<'_> {
    fn read(&mut self, address: u64) -> u64 {
        let (place, _) = self.place(address);
        // SAFETY: the slot is mapped while the machine exists, and no other thread has the turn.
        unsafe { place.read_volatile() }
    }

    fn write(&mut self, address: u64, value: u64) {
        let (place, slot) = self.place(address);
        // SAFETY: as above.
        unsafe { place.write_volatile(value) };
        if slot.logged {
            let page = ((address - slot.first) / 4096) as usize;
            slot.dirty[page / 64] |= 1 << (page % 64);
        }
    }
}

fn with_guest<R>(vm: i32, work: impl FnOnce(&mut dyn Memory) -> R) -> R {
    TABLES.with(|tables| work(&mut Guest(tables.vms.get_mut(&vm).expect("a VM with a vCPU"))))
}

/// KVM_RUN: runs the guest to its next exit or interruption.
fn run(fd: i32) -> i64 {
    let (vm, run, done) = TABLES.with(|tables| {
        let vcpu = tables.vcpus.get_mut(&fd).expect("a vCPU");
        (vcpu.vm, vcpu.run as *mut kvm_run, vcpu.pending.take())
    });
    if let Some(step) = done {
        with_guest(vm, |memory| guest::end_step(memory, step));
    }
    loop {
        let Some(step) = take_step(fd, vm, run) else { return -i64::from(libc::EINTR) };
        let request = with_guest(vm, |memory| guest::request(memory, step));
        if request == GuestRequest::Nothing {
            with_guest(vm, |memory| guest::end_step(memory, step));
            continue;
        }
        TABLES.with(|tables| tables.vcpus.get_mut(&fd).expect("a vCPU").pending = Some(step));
        leave_for(vm, run, step, &request);
        return 0;
    }
}

/// Runs the guest's next step up to its request. Returns the step's number, or `None` if the guest
/// was interrupted.
fn take_step(fd: i32, vm: i32, run: *mut kvm_run) -> Option<u64> {
    let host = scheduler::host();
    let step = with_guest(vm, guest::step);
    // An interruption between these writes gives checkpoints in the middle of a step.
    for which in 0..guest::PER_STEP {
        if !compute(run) {
            return None;
        }
        compare_registers(fd, vm);
        if with_guest(vm, guest::boot) == 0 {
            let boot = crate::judge::boots(host);
            with_guest(vm, |memory| guest::begin_boot(memory, boot));
        }
        with_guest(vm, |memory| guest::write_page(memory, step, which));
    }
    crate::judge::stepped(host);
    Some(step)
}

/// Prepares the exit that carries the guest's request.
fn leave_for(vm: i32, run: *mut kvm_run, step: u64, request: &GuestRequest) {
    let host = scheduler::host();
    let boot = with_guest(vm, guest::boot);
    match request {
        GuestRequest::Nothing => {}
        GuestRequest::Bytes(bytes) => {
            let printed = with_guest(vm, |memory| guest::printed(memory, step));
            crate::judge::asked(host, guest::Place { boot, printed: printed + bytes.len() as u64 });
            write_out(run, SERIAL_PORT, 1, bytes);
        }
        GuestRequest::Off => {
            crate::judge::wants_off();
            crate::faults::guest_has_requested();
            write_out(run, POWER_PORT, 2, &SOFT_OFF.to_le_bytes());
        }
        GuestRequest::Reset => {
            crate::judge::wants_reset(host, boot);
            crate::faults::guest_has_requested();
            write_out(run, RESET_PORT, 1, &[layout::I8042_RESET]);
        }
    }
}

/// Lets the guest compute for a while; `false` if it is interrupted.
fn compute(run: *mut kvm_run) -> bool {
    loop {
        scheduler::point();
        if is_interrupted(run) {
            return false;
        }
        let pause = scheduler::with(|world| world.random.u64(..guest::LONGEST_PAUSE));
        let deadline = scheduler::with(|world| world.now + pause);
        if scheduler::wait(On::Kick, Some(deadline)) != Woken::Event && !is_interrupted(run) {
            return true;
        }
    }
}

/// Whether the vCPU must exit. Clears the pending signal; the product itself clears
/// `immediate_exit`.
fn is_interrupted(run: *mut kvm_run) -> bool {
    let kicked =
        scheduler::with(|world| std::mem::take(&mut world.threads[scheduler::own_id()].kicked));
    // SAFETY: the shared page is mapped while the vCPU exists.
    let flag = unsafe { (&raw const (*run).immediate_exit).read_volatile() };
    kicked || flag != 0
}

/// Prepares an exit that writes `bytes` to a port, `size` bytes at a time.
fn write_out(run: *mut kvm_run, port: u16, size: u8, bytes: &[u8]) {
    // SAFETY: the shared page and the page after it are mapped while the vCPU exists, and only the
    // vCPU's own thread, which is the caller's, accesses them.
    unsafe {
        (*run).exit_reason = kvm_bindings::KVM_EXIT_IO;
        (*run).__bindgen_anon_1.io = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
            direction: kvm_bindings::KVM_EXIT_IO_OUT as u8,
            size,
            port,
            count: (bytes.len() / usize::from(size)) as u32,
            data_offset: PORT_DATA,
        };
        let data = run.cast::<u8>().add(PORT_DATA as usize);
        data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
}
