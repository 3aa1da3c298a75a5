//! A bare guest of a few instructions in ring 3, which every kind of KVM runs at native speed.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses a part of it

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kemari_hypervisor::kvm::{self, ExitHandler, FatalExit, VcpuSet, Vm, VmOptions};
use kemari_hypervisor::memory::{self, GuestMemory, MemoryOptions};
use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

/// The guest address of the code.
pub const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
/// The guest reads a sequence number from this address.
pub const SEQUENCE: u64 = 0xd000_0000;
/// The guest writes here when it is done.
pub const DONE: u64 = 0xd000_1000;
/// The guest writes here when it finds an error.
pub const FAIL: u64 = 0xd000_2000;
/// Time limit of a guest's run.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A report of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Done(u64),
    Fail(u64),
    Fatal(FatalExit),
}

pub struct Handler {
    pub sequence: AtomicU64,
    events: Sender<Event>,
}

impl ExitHandler for Handler {
    fn pio_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_out(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        assert_eq!((addr, data.len()), (SEQUENCE, 8));
        data.copy_from_slice(&self.sequence.fetch_add(1, Ordering::SeqCst).to_le_bytes());
    }
    fn mmio_write(&self, addr: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        let event = if addr == DONE { Event::Done(value) } else { Event::Fail(value) };
        self.events.send(event).unwrap();
    }
    fn on_fatal(&self, _: usize, exit: FatalExit) {
        self.events.send(Event::Fatal(exit)).unwrap();
    }
}

pub fn handler() -> (Arc<Handler>, Receiver<Event>) {
    let (events, rx) = channel();
    (Arc::new(Handler { sequence: AtomicU64::new(0), events }), rx)
}

pub fn open() -> Kvm {
    kvm::open().unwrap_or_else(|e| panic!("these tests need KVM: {e}"))
}

pub fn memory(size: u64) -> GuestMemory {
    memory::create(MemoryOptions { size, huge_pages: false }).unwrap()
}

/// Creates a VM with `code` at [`CODE`], as [`load`] does.
pub fn vm(kvm: &Kvm, memory: GuestMemory, code: &[u8], cpus: u32) -> Vm {
    load(&memory, code);
    Vm::new(kvm, memory, VmOptions { cpus, pit: true }).unwrap()
}

/// Writes `code` to [`CODE`], and page tables for ring 3 that map the first GiB and the device
/// windows one to one.
pub fn load(memory: &GuestMemory, code: &[u8]) {
    // Present, writable, user, accessed and dirty: the processor then need not write to the tables.
    const FLAGS: u64 = 0x67;
    const LARGE: u64 = 1 << 7;
    let put = |value: u64, addr: u64| memory.write_obj(value, GuestAddress(addr)).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    put(PDPT | FLAGS, PML4);
    put(PD | FLAGS, PDPT);
    put((PD + 0x1000) | FLAGS, PDPT + 3 * 8);
    put((PD + 0x2000) | FLAGS, PDPT + 4 * 8);
    for i in 0..512u64 {
        put((i << 21) | FLAGS | LARGE, PD + i * 8);
        put(((3 << 30) + (i << 21)) | FLAGS | LARGE, PD + 0x1000 + i * 8);
        put(((4 << 30) + (i << 21)) | FLAGS | LARGE, PD + 0x2000 + i * 8);
    }
}

/// Sets a vCPU to enter ring 3 at [`CODE`] with `regs`, and makes it runnable.
pub fn enter(fd: &VcpuFd, regs: kvm_regs) {
    let mut sregs = fd.get_sregs().unwrap();
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x2b,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 0x33, type_: 11, l: 1, db: 0, ..data };
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *s = data;
    }
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x40, type_: 11, present: 1, ..Default::default() };
    sregs.cr3 = PML4;
    sregs.cr4 |= 0x620; // PAE, SSE
    sregs.cr0 = 0x8005_0033;
    sregs.efer |= 0x500;
    fd.set_sregs(&sregs).unwrap();
    fd.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..regs }).unwrap();
    fd.set_mp_state(kvm_mp_state { mp_state: 0 }).unwrap();
}

/// Runs the guest until it reports an event, then pauses it.
pub fn run(set: &VcpuSet, events: &Receiver<Event>) -> Event {
    set.resume();
    let event = events.recv_timeout(DEADLINE).expect("the guest says something in time");
    set.pause();
    event
}
