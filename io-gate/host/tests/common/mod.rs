//! A driver for the tests, with real virtqueues in real guest memory, and machines with the gate
//! and a disk.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod blocked_calls;
pub mod net;
pub mod tap;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::{Block, BlockConfig};
use io_gate::Port;
use io_gate::host::{CommitAuthority, Epoch, Term, new_gate};
use io_gate_host::backend::disk::{Disk, DiskOptions};
use io_gate_host::{
    Backend, Completion, Fence, GateHost, GateOptions, GuestMemory, Interrupt, Permission,
    VirtioSlot,
};
use tempfile::NamedTempFile;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub const MEMORY: usize = 4 << 20;
pub const QUEUE_SIZE: u16 = 16;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
/// The disk's features apart from reads and writes: flushes, discards, zeroes.
pub const BLOCK: u64 = 1 << 9 | 1 << 13 | 1 << 14;
/// The features that a disk's driver accepts here.
pub const DISK_FEATURES: u64 = VERSION_1 | INDIRECT_DESC | BLOCK;
pub const SLOT: u16 = 3;

// Offsets of the rings from the descriptor table, each on its own page.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Longer than any wait here, in milliseconds. Reaching this limit is a failure.
const PATIENCE_MS: i32 = 10_000;

pub fn guest_memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// Waits for a descriptor to become readable.
pub fn wait_readable(fd: RawFd) {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    let mut events = [EpollEvent::default()];
    let count = epoll.wait(PATIENCE_MS, &mut events).unwrap();
    assert_eq!(count, 1, "nothing became ready in {PATIENCE_MS} ms");
}

pub fn is_readable(fd: RawFd) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

/// A fence that the test controls. It gives no answer while the second flag is set. Otherwise the
/// first flag says whether it grants.
pub struct Switch(pub AtomicBool, pub AtomicBool);

impl Fence for Switch {
    fn ask(&self) -> Permission {
        match (self.1.load(Ordering::SeqCst), self.0.load(Ordering::SeqCst)) {
            (true, _) => Permission::Unknown,
            (false, true) => Permission::Granted,
            (false, false) => Permission::Lost,
        }
    }
}

/// The driver's side of one virtqueue.
pub struct Driver {
    memory: Arc<GuestMemory>,
    base: u64,
    table: DescriptorTable<'static, GuestMemory>,
    avail: AvailRing<'static, GuestMemory>,
    used: UsedRing<'static, GuestMemory>,
    free: u16,
    seen: u16,
}

// SAFETY: its pointers lead into guest memory, which a leaked reference keeps alive. One thread at
// a time uses it.
unsafe impl Send for Driver {}

impl Driver {
    /// A virtqueue at `base`.
    pub fn new(memory: &Arc<GuestMemory>, base: u64) -> Self {
        // Leak one reference, since the mock borrows the memory.
        let leaked: &'static Arc<GuestMemory> = Box::leak(Box::new(memory.clone()));
        let at = |offset: u64| GuestAddress(base + offset);
        // Do not use virtio-queue's whole mock queue: it lets the two rings overlap.
        Self {
            memory: memory.clone(),
            base,
            table: DescriptorTable::new(leaked, at(0), QUEUE_SIZE),
            avail: AvailRing::new(leaked, at(AVAIL), QUEUE_SIZE),
            used: UsedRing::new(leaked, at(USED), QUEUE_SIZE),
            free: 0,
            seen: 0,
        }
    }

    /// Gives the device the addresses of the queue.
    pub fn install(&self, slot: &mut VirtioSlot, queue: u16) {
        slot.set_queue_size(queue, QUEUE_SIZE);
        slot.set_queue_desc(queue, Some(self.base as u32), Some(0));
        slot.set_queue_avail(queue, Some(self.avail_ring() as u32), Some(0));
        slot.set_queue_used(queue, Some(self.used_ring() as u32), Some(0));
        slot.set_queue_ready(queue, true);
    }

    pub fn used_ring(&self) -> u64 {
        self.base + USED
    }

    pub fn avail_ring(&self) -> u64 {
        self.base + AVAIL
    }

    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        self.table.store(index, descriptor).unwrap();
    }

    /// Makes a chain available. Returns its head.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let pieces: Vec<(u64, u32, u16)> = readable
            .iter()
            .map(|(addr, len)| (*addr, *len, 0))
            .chain(writable.iter().map(|(addr, len)| (*addr, *len, WRITE)))
            .collect();
        let head = self.free;
        for (at, (addr, len, flags)) in pieces.iter().enumerate() {
            let last = at + 1 == pieces.len();
            let index = self.free;
            self.free = (self.free + 1) % QUEUE_SIZE;
            self.descriptor(index, *addr, *len, flags | if last { 0 } else { NEXT }, self.free);
        }
        self.offer(head);
        head
    }

    /// Makes a chain available through an indirect table at `table`. Returns its head.
    pub fn add_indirect(&mut self, table: u64, pieces: &[(u64, u32, bool)]) -> u16 {
        for (at, (addr, len, writable)) in pieces.iter().enumerate() {
            let next = if at + 1 == pieces.len() { 0 } else { NEXT };
            let flags = next | if *writable { WRITE } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&addr.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&(at as u16 + 1).to_le_bytes());
            self.memory.write_slice(&bytes, GuestAddress(table + 16 * at as u64)).unwrap();
        }
        let head = self.free;
        self.free = (self.free + 1) % QUEUE_SIZE;
        self.descriptor(head, table, 16 * pieces.len() as u32, INDIRECT, 0);
        self.offer(head);
        head
    }

    /// Puts the head of a chain into the available ring.
    pub fn offer(&mut self, head: u16) {
        let at = self.avail.idx().load();
        self.avail.ring().ref_at(usize::from(at % QUEUE_SIZE)).unwrap().store(head);
        self.avail.idx().store(at.wrapping_add(1));
    }

    /// The chains that have returned since the last call: head and length.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let end = self.used.idx().load();
        let mut used = Vec::new();
        while self.seen != end {
            let at = self.used_ring() + 4 + 8 * u64::from(self.seen % QUEUE_SIZE);
            let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            used.push((id, len));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

// The layout of the disk tests in guest memory.
pub const RING: u64 = 0x1000;
pub const HEADERS: u64 = 0x10_000;
pub const STATUS: u64 = 0x20_000;
pub const DATA: u64 = 0x100_000;

/// A machine with one disk.
pub struct DiskMachine {
    pub memory: Arc<GuestMemory>,
    pub gate: Arc<GateHost>,
    pub authority: CommitAuthority,
    pub slot: VirtioSlot,
    pub driver: Driver,
    pub fence: Arc<Switch>,
    requests: u64,
}

/// A disk image in the build directory. In /tmp it might be in memory, without storage.
pub fn image(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(sectors * 512).unwrap();
    file
}

/// Number of the file's pages that are in the page cache and not in the storage (`cachestat`, Linux
/// 6.5). `None` if the kernel or the file system does not report them.
pub fn volatile_pages(file: &File) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = [0_u64; 2];
    let mut counts = [0_u64; 5];
    // SAFETY: the two structures are arrays of u64. They are as long as what the call reads and
    // writes.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0)
    };
    // Cached, dirty, under writeback, evicted, recently evicted.
    (result == 0).then(|| counts[1] + counts[2])
}

pub const SECTORS: u64 = 4096;

/// A gate over this memory with a disk, and the disk's slot. The driver is not active yet.
pub fn disk_slot(
    memory: &Arc<GuestMemory>,
    image: &NamedTempFile,
    fence: Arc<dyn Fence>,
) -> (Arc<GateHost>, CommitAuthority, VirtioSlot) {
    disk_slot_of(memory, Disk::open(image.path(), DiskOptions::default()).unwrap(), fence, 1)
}

/// As [`disk_slot`], with this disk and this many request queues.
pub fn disk_slot_of(
    memory: &Arc<GuestMemory>,
    disk: Disk,
    fence: Arc<dyn Fence>,
    queues: u16,
) -> (Arc<GateHost>, CommitAuthority, VirtioSlot) {
    let (ledger, authority) = new_gate();
    let gate = GateHost::new(ledger, memory.clone(), fence, GateOptions::default()).unwrap();
    let serial = b"serial-1".to_vec();
    let config = BlockConfig { sectors: disk.sectors(), read_only: false, serial, queues };
    gate.attach(SLOT, Port(0), Backend::Disk(disk)).unwrap();
    let slot = VirtioSlot::new(SLOT, Box::new(Block::new(config)), gate.clone());
    (gate, authority, slot)
}

impl DiskMachine {
    pub fn new(image: &NamedTempFile) -> Self {
        Self::with(Disk::open(image.path(), DiskOptions::default()).unwrap(), 1)
    }

    /// A machine with this disk and this many request queues, of which the first is set up.
    pub fn with(disk: Disk, queues: u16) -> Self {
        let memory = guest_memory();
        let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
        let (gate, authority, mut slot) = disk_slot_of(&memory, disk, fence.clone(), queues);
        let driver = Driver::new(&memory, RING);
        driver.install(&mut slot, 0);
        slot.driver_ok(DISK_FEATURES).unwrap();
        Self::of(memory, gate, authority, slot, driver, fence)
    }

    /// A machine from parts that the test has created.
    pub fn of(
        memory: Arc<GuestMemory>,
        gate: Arc<GateHost>,
        authority: CommitAuthority,
        slot: VirtioSlot,
        driver: Driver,
        fence: Arc<Switch>,
    ) -> Self {
        Self { memory, gate, authority, slot, driver, fence, requests: 0 }
    }

    pub fn alone(image: &NamedTempFile) -> Self {
        let mut machine = Self::new(image);
        let proof = machine.authority.alone(Term(1));
        machine.gate.run_alone(proof);
        machine
    }

    /// Writes a request's header. Returns the places of the header and of the status.
    pub fn header(&mut self, kind: u32, sector: u64) -> ((u64, u32), (u64, u32)) {
        let at = self.requests;
        self.requests += 1;
        let header = HEADERS + 16 * at;
        let status = STATUS + at;
        self.memory.write_obj(kind, GuestAddress(header)).unwrap();
        self.memory.write_obj(0_u32, GuestAddress(header + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
        self.memory.write_obj(0xaa_u8, GuestAddress(status)).unwrap();
        ((header, 16), (status, 1))
    }

    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Makes a write available. Returns the address of its status.
    pub fn write(&mut self, sector: u64, addr: u64, len: u32) -> u64 {
        let (header, status) = self.header(1, sector);
        self.driver.add(&[header, (addr, len)], &[status]);
        status.0
    }

    /// Makes a read available. Returns the address of its status.
    pub fn read(&mut self, sector: u64, addr: u64, len: u32) -> u64 {
        let (header, status) = self.header(0, sector);
        self.driver.add(&[header], &[(addr, len), status]);
        status.0
    }

    pub fn status(&self, addr: u64) -> u8 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn kick(&mut self) -> Interrupt {
        self.slot.kick(0)
    }

    pub fn commit(&mut self, epoch: Epoch) {
        let proof = self.authority.acknowledged(epoch);
        self.gate.release(proof);
    }

    /// Waits for this many completions and gives them to the slot.
    pub fn complete(&mut self, count: usize) -> Interrupt {
        complete(&self.gate, &mut self.slot, count)
    }
}

pub fn complete(gate: &GateHost, slot: &mut VirtioSlot, count: usize) -> Interrupt {
    slot.complete_all(wait_completions(gate, count))
}

/// Waits until the lanes are idle, and gives their completions to the slot.
pub fn complete_sent(gate: &GateHost, slot: &mut VirtioSlot) -> Interrupt {
    gate.drain();
    slot.complete_all(gate.take_completions())
}

pub fn wait_completions(gate: &GateHost, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        wait_readable(gate.completions_event().as_raw_fd());
        completions.extend(gate.take_completions());
    }
    assert_eq!(completions.len(), count);
    completions
}
