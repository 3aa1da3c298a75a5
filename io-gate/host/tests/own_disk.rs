//! Own disks on real files: what the primary's lane performs and completes at once, and what it
//! does when the storage fails.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::blocked_calls::BlockedCalls;
use common::{
    DATA, DISK_FEATURES, DiskMachine, Driver, RING, SECTORS, SLOT, Switch, guest_memory, image,
    wait_readable,
};
use devices::{Block, BlockConfig};
use io_gate::Port;
use io_gate::host::{
    DiskId, DurableCommitAuthority, EffectOp, Ledger, ListAuthority, OwnGate, OwnOp, OwnPorts,
    OwnRequest, Performable, Record, Recorded, Request, Seq, Term, new_gate,
    new_gate_with_own_disks,
};
use io_gate_host::backend::disk::{Disk, DiskOptions};
use io_gate_host::backend::own_disk::WritableImage;
use io_gate_host::own_disk::OwnImage;
use io_gate_host::{Backend, GateHost, GateOptions, ListDriver, VirtioSlot};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

const OK: u8 = 0;
const UNTOUCHED: u8 = 0xaa;
/// `VIRTIO_BLK_F_FLUSH` (virtio 1.2, 5.2.3).
const FLUSH: u64 = 1 << 9;

/// The shortest driver of a list: all marks are durable from the beginning, unless the test keeps
/// them back.
#[derive(Default)]
struct Recorder(Mutex<State>);

struct State {
    list: Option<ListAuthority>,
    last: Seq,
    listed: Vec<(Seq, EffectOp, Option<Vec<u8>>)>,
    /// Operations whose marks are not durable.
    unmarked: VecDeque<Recorded>,
    keep_back: bool,
    full: bool,
    performed: Vec<u64>,
    durable: Vec<u64>,
    failures: Vec<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            list: None,
            last: Seq(0),
            listed: Vec::new(),
            unmarked: VecDeque::new(),
            keep_back: false,
            full: false,
            performed: Vec::new(),
            durable: Vec::new(),
            failures: Vec::new(),
        }
    }
}

impl State {
    fn operation(&mut self, ledger: &mut Ledger, request: OwnRequest) -> Option<Performable> {
        let operation = match request {
            OwnRequest::Operation(operation) => operation,
            OwnRequest::Read(read) => return Some(read),
        };
        let list = self.list.as_mut().unwrap();
        self.last = self.last.next();
        let place = list.listed(&operation, self.last);
        let recorded = ledger.record_own(operation, place);
        let Request::Own(OwnOp { op, .. }) = &recorded.record().request else {
            panic!("an operation on an own disk")
        };
        let bytes = recorded.bytes().map(<[u8]>::to_vec);
        self.listed.push((recorded.seq(), op.clone(), bytes));
        if self.keep_back {
            self.unmarked.push_back(recorded);
            return None;
        }
        let marked = recorded.mark_of_flush().unwrap_or_else(|| list.marked(&recorded));
        Some(recorded.performable(marked))
    }
}

impl ListDriver for Recorder {
    fn staged(&self, ledger: &mut Ledger, requests: Vec<OwnRequest>) -> Vec<Performable> {
        let mut state = self.0.lock().unwrap();
        requests.into_iter().filter_map(|request| state.operation(ledger, request)).collect()
    }

    fn performed(&self, record: &Record, durable: bool) {
        let mut state = self.0.lock().unwrap();
        state.performed.push(record.id.0);
        state.durable.extend(durable.then_some(record.id.0));
    }

    fn failed(&self, reason: &str) {
        self.0.lock().unwrap().failures.push(reason.to_owned());
    }

    fn is_full(&self) -> bool {
        self.0.lock().unwrap().full
    }
}

impl Recorder {
    /// All marks are durable now.
    fn marked(&self) -> Vec<Performable> {
        let mut state = self.0.lock().unwrap();
        let waiting = std::mem::take(&mut state.unmarked);
        let list = state.list.as_mut().unwrap();
        let mark = |recorded: Recorded| {
            let marked = list.marked(&recorded);
            recorded.performable(marked)
        };
        waiting.into_iter().map(mark).collect()
    }
}

struct Machine {
    machine: DiskMachine,
    recorder: Arc<Recorder>,
    commit: DurableCommitAuthority,
}

fn ports() -> OwnPorts {
    OwnPorts::new(vec![(SLOT, Port(0))])
}

fn own_disk(gate: &mut OwnGate, image: &NamedTempFile) -> WritableImage {
    let won = gate.terms.won(Term(1), vec![DiskId(7)]);
    let right = won.right_to(DiskId(7)).unwrap();
    OwnImage::open(image.path()).unwrap().for_guest(right).unwrap()
}

fn machine(image: &NamedTempFile, options: GateOptions) -> Machine {
    let mut own = new_gate_with_own_disks(ports());
    let disk = own_disk(&mut own, image);
    assert_eq!(disk.image(), DiskId(7));
    let OwnGate { ledger, commit, mut list, .. } = own;
    list.begin();
    let recorder = Arc::new(Recorder::default());
    recorder.0.lock().unwrap().list = Some(list);
    let memory = guest_memory();
    let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
    let options = GateOptions { list: Some(recorder.clone()), ..options };
    let gate = GateHost::new(ledger, memory.clone(), fence.clone(), options).unwrap();
    let sectors = disk.sectors();
    let config = BlockConfig { sectors, read_only: false, serial: Vec::new(), queues: 1 };
    gate.attach(SLOT, Port(0), Backend::OwnDisk(disk)).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(Block::new(config)), gate.clone());
    let driver = Driver::new(&memory, RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(DISK_FEATURES).unwrap();
    // The commit authority of a gate without own disks takes no part.
    let (_ledger, unused) = new_gate();
    let machine = DiskMachine::of(memory, gate, unused, slot, driver, fence);
    Machine { machine, recorder, commit }
}

fn plain(image: &NamedTempFile) -> Machine {
    machine(image, GateOptions::default())
}

impl Machine {
    fn write(&mut self, sector: u64, byte: u8) -> u64 {
        // Each write has a buffer of its own.
        let at = DATA + 512 * sector;
        self.machine.fill(at, &[byte; 512]);
        let status = self.machine.write(sector, at, 512);
        let _ = self.machine.kick();
        status
    }

    fn flush(&mut self) -> u64 {
        let (header, status) = self.machine.header(4, 0);
        self.machine.driver.add(&[header], &[status]);
        let _ = self.machine.kick();
        status.0
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.recorder.0.lock().unwrap()
    }
}

fn content(image: &NamedTempFile, sector: usize) -> u8 {
    std::fs::read(image.path()).unwrap()[sector * 512]
}

/// A write completes while the gate holds: no standby has acknowledged anything. It is in the list,
/// with the bytes of its staging.
#[test]
fn a_write_to_an_own_disk_completes_at_once_and_is_recorded() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    let status = machine.write(8, 7);
    machine.machine.fill(DATA + 512 * 8, &[9; 512]);
    assert!(machine.machine.gate.holds());
    assert_eq!(machine.machine.gate.held(), 0);
    let _ = machine.machine.complete(1);
    assert_eq!((machine.machine.status(status), content(&image, 8)), (OK, 7));
    let state = machine.state();
    let [(Seq(1), EffectOp::BlockWrite { sector: 8, .. }, Some(bytes))] = &state.listed[..] else {
        panic!("{:?}", state.listed)
    };
    assert_eq!(bytes, &[7; 512]);
    assert_eq!(state.performed, [1]);
    drop(state);
    assert!(machine.machine.gate.seal().in_flight.is_empty());
    assert_eq!(machine.machine.gate.counts().own.performed, 1);
    let durable = machine.commit.durable(io_gate::host::Epoch(0), Seq(0), Seq(0)).unwrap();
    machine.machine.gate.release(machine.commit.acknowledged(durable));
}

/// R3: without its mark an operation is recorded, and not performed.
#[test]
fn r3_a_write_waits_for_its_mark() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    machine.state().keep_back = true;
    let status = machine.write(3, 5);
    let sealed = machine.machine.gate.seal();
    assert_eq!(sealed.in_flight.len(), 1);
    assert!(machine.machine.gate.lanes_idle());
    assert_eq!((machine.machine.status(status), content(&image, 3)), (UNTOUCHED, 0));
    let ready = machine.recorder.marked();
    machine.machine.gate.perform_own(ready);
    let _ = machine.machine.complete(1);
    assert_eq!((machine.machine.status(status), content(&image, 3)), (OK, 5));
}

/// P2: a machine that was replaced and does not know it writes to its own image only, so the fence
/// is not asked. A machine that knows it performs nothing more.
#[test]
fn the_fence_is_not_asked_and_a_fenced_machine_performs_nothing() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    machine.machine.fence.1.store(true, Ordering::SeqCst);
    let status = machine.write(1, 5);
    let _ = machine.machine.complete(1);
    assert_eq!((machine.machine.status(status), content(&image, 1)), (OK, 5));
    machine.machine.gate.set_fenced_off();
    let status = machine.write(2, 6);
    // A fenced machine is not drained.
    while !machine.machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
    assert_eq!((machine.machine.status(status), content(&image, 2)), (UNTOUCHED, 0));
    assert_eq!(machine.machine.gate.seal().in_flight.len(), 1);
}

/// R4: a flush completes when the sync has returned, not before.
#[test]
fn r4_a_flush_completes_when_the_image_is_durable() {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[libc::SYS_fdatasync]);
    let options = GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() };
    let mut machine = machine(&image, options);
    let written = machine.write(0, 1);
    let _ = machine.machine.complete(1);
    assert_eq!(machine.machine.status(written), OK);
    let flushed = machine.flush();
    calls.wait_for(1);
    assert!(machine.machine.gate.take_completions().is_empty());
    assert_eq!(machine.machine.status(flushed), UNTOUCHED);
    assert_eq!(machine.state().performed, [1]);
    calls.release();
    let _ = machine.machine.complete(1);
    assert_eq!(machine.machine.status(flushed), OK);
    assert_eq!(machine.state().performed, [1, 2]);
    assert_eq!(machine.state().durable, [2]);
}

/// R4: the writes of a driver that cannot flush are durable when they complete, and count as
/// flushes.
#[test]
fn r4_a_write_of_a_driver_that_cannot_flush_counts_as_a_flush() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    machine.machine.slot.reset();
    machine.machine.driver = Driver::new(&machine.machine.memory, RING);
    machine.machine.driver.install(&mut machine.machine.slot, 0);
    machine.machine.slot.driver_ok(DISK_FEATURES & !FLUSH).unwrap();
    let status = machine.write(0, 1);
    let _ = machine.machine.complete(1);
    assert_eq!(machine.machine.status(status), OK);
    assert_eq!(machine.state().durable, [1]);
}

/// Where a lane's call fails.
#[derive(Clone, Copy)]
enum At {
    Every,
    /// Only the write at this offset.
    Offset(u32),
}

/// Lanes whose `call` fails with `errno` (seccomp(2)).
fn failing(call: libc::c_long, errno: i32, at: At) -> GateOptions {
    let lane_start = Arc::new(move || {
        if std::thread::current().name() != Some("power") {
            fail(call, errno, at);
        }
    });
    GateOptions { lane_start, ..GateOptions::default() }
}

fn fail(call: libc::c_long, errno: i32, at: At) {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    // The filter's input begins with the call's number. The fourth argument is at offset 40.
    let offset = match at {
        At::Every => op(load, 0, 0, 0),
        At::Offset(_) => op(load, 0, 0, 40),
    };
    let wanted = match at {
        At::Every => call as u32,
        At::Offset(offset) => offset,
    };
    let mut filter = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, call as u32),
        offset,
        op(equal, 0, 1, wanted),
        op(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        op(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and its filter live through the calls, of this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, set, 0, &raw const program), 0);
    }
}

/// R5: the first failure is final. The failed operation is not completed, and stays in flight for
/// the standby. Later ones are recorded and not begun. Reads are still served.
#[test]
fn r5_a_failed_write_is_final() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let image = image(SECTORS);
        let mut machine = machine(&image, failing(libc::SYS_pwritev, errno, At::Offset(512 * 4)));
        let before = machine.write(3, 1);
        let _ = machine.machine.complete(1);
        let failed = machine.write(4, 2);
        machine.machine.gate.drain();
        let after = [machine.write(5, 3), machine.flush()];
        machine.machine.gate.drain();
        assert_eq!(machine.machine.status(before), OK);
        assert_eq!(
            [failed, after[0], after[1]].map(|at| machine.machine.status(at)),
            [UNTOUCHED; 3]
        );
        assert_eq!([3, 4, 5].map(|sector| content(&image, sector)), [1, 0, 0]);
        assert!(machine.machine.gate.own_failure().unwrap().contains("os error"));
        let state = machine.state();
        assert_eq!((state.failures.len(), state.listed.len()), (1, 4));
        assert_eq!(state.performed, [1]);
        drop(state);
        assert_eq!(machine.machine.gate.seal().in_flight.len(), 3);

        let read = machine.machine.read(3, DATA + 0x10_000, 512);
        let _ = machine.machine.kick();
        let _ = machine.machine.complete(1);
        assert_eq!(machine.machine.status(read), OK);
        assert_eq!(machine.machine.bytes(DATA + 0x10_000, 512), [1; 512]);
    }
}

/// R5: a failed sync is not tried again: it may have dropped what it did not write.
#[test]
fn r5_a_failed_flush_is_final() {
    let image = image(SECTORS);
    let mut machine = machine(&image, failing(libc::SYS_fdatasync, libc::EIO, At::Every));
    let written = machine.write(3, 1);
    let _ = machine.machine.complete(1);
    let flushed = [machine.flush(), machine.flush()];
    machine.machine.gate.drain();
    assert_eq!(machine.machine.status(written), OK);
    assert_eq!(flushed.map(|at| machine.machine.status(at)), [UNTOUCHED; 2]);
    assert_eq!(machine.state().failures.len(), 1);
    assert_eq!(machine.machine.gate.seal().in_flight.len(), 2);
}

/// R10: a driver that resets its device takes nothing from the list. Fails if the lane drops what
/// it has not begun.
#[test]
fn r10_a_reset_drops_no_operation() {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[libc::SYS_pwritev]);
    let options = GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() };
    let mut machine = machine(&image, options);
    let first = machine.write(0, 1);
    machine.write(1, 2);
    calls.wait_for(1);
    machine.machine.slot.reset();
    assert!(!machine.machine.slot.needs_reset(), "nothing reads the driver's memory");
    assert!(machine.machine.gate.seal().in_flight.is_empty());
    calls.release();
    machine.machine.gate.drain();
    assert_eq!([0, 1].map(|sector| content(&image, sector)), [1, 2]);
    assert_eq!(machine.state().performed, [1, 2]);
    for completion in machine.machine.gate.take_completions() {
        let _ = machine.machine.slot.complete(completion);
    }
    assert_eq!(machine.machine.status(first), UNTOUCHED);
    assert_eq!(machine.machine.gate.load().memory, 0);
    let own = machine.machine.gate.counts().own;
    assert_eq!((own.staged, own.cancelled), (2, 2));
}

/// R2: while the standby has too much to do, chains stay in their ring. They continue when it has
/// room, although nothing else happens.
#[test]
fn r2_staging_waits_while_the_standby_has_too_much_to_do() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    machine.state().full = true;
    let status = machine.write(0, 1);
    assert!(machine.state().listed.is_empty());
    machine.machine.gate.resume_own();
    assert!(machine.machine.gate.take_completions().is_empty(), "there is no room yet");
    machine.state().full = false;
    machine.machine.gate.resume_own();
    wait_readable(machine.machine.gate.completions_event().as_raw_fd());
    for again in machine.machine.gate.take_completions() {
        let _ = machine.machine.slot.complete(again);
    }
    let _ = machine.machine.complete(1);
    assert_eq!((machine.machine.status(status), content(&image, 0)), (OK, 1));
}

/// R5: a discard is a write of zeroes, so that both images read the same.
#[test]
fn a_discard_of_an_own_disk_reads_as_zeroes() {
    let image = image(SECTORS);
    let mut machine = plain(&image);
    machine.write(8, 7);
    let _ = machine.machine.complete(1);
    let segment = DATA + 0x20_000;
    machine.machine.memory.write_obj(8_u64, GuestAddress(segment)).unwrap();
    machine.machine.memory.write_obj(1_u64, GuestAddress(segment + 8)).unwrap();
    let (header, status) = machine.machine.header(11, 0);
    machine.machine.driver.add(&[header, (segment, 16)], &[status]);
    let _ = machine.machine.kick();
    let _ = machine.machine.complete(1);
    assert_eq!((machine.machine.status(status.0), content(&image, 8)), (OK, 0));
}

/// R7: an own disk's place takes an image that this machine has opened by its right, and no other.
#[test]
fn r7_only_an_image_of_the_machines_own_right_is_attached() {
    let image = image(SECTORS);
    let mut own = new_gate_with_own_disks(ports());
    let mut other = new_gate_with_own_disks(ports());
    let others = own_disk(&mut other, &image);
    let gate = |ledger| {
        let list: Option<Arc<dyn ListDriver>> = Some(Arc::new(Recorder::default()));
        let options = GateOptions { list, ..GateOptions::default() };
        let fence = Arc::new(io_gate_host::Unfenced);
        GateHost::new(ledger, guest_memory(), fence, options).unwrap()
    };
    let refused = |gate: &GateHost, backend, expected: &str| {
        let error = gate.attach(SLOT, Port(0), backend).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let (ledger, _authority) = new_gate();
    let shared = gate(ledger);
    refused(&shared, Backend::OwnDisk(others), "found one in a place that is not declared");
    let others = own_disk(&mut other, &image);
    let plain = Disk::open(image.path(), DiskOptions::default()).unwrap();
    let mine = own_disk(&mut own, &common::image(SECTORS));
    let own = gate(own.ledger);
    refused(&own, Backend::Disk(plain), "found a shared disk");
    refused(&own, Backend::OwnDisk(others), "found one that another machine has opened");
    own.attach(SLOT, Port(0), Backend::OwnDisk(mine)).unwrap();
}

/// R11: the guest's handle of an image keeps other processes out, as the first one did.
#[test]
fn r11_an_own_image_is_opened_once() {
    let image = image(SECTORS);
    let mut gate = new_gate_with_own_disks(ports());
    let first = own_disk(&mut gate, &image);
    assert!(OwnImage::open(image.path()).is_err());
    drop(first);
    own_disk(&mut gate, &image);
}

#[test]
fn a_gate_with_own_disks_needs_a_driver_of_the_list() {
    let own = new_gate_with_own_disks(ports());
    let fence = Arc::new(io_gate_host::Unfenced);
    let made = GateHost::new(own.ledger, guest_memory(), fence, GateOptions::default());
    assert!(made.unwrap_err().to_string().contains("a driver of the list"));
}
