//! P9: a backend that does not answer blocks only the threads that need its answer. Each test
//! blocks a system call by which a lane performs, as a dead file server or a stopped reader would.
//! In the meantime the calls of the device thread, of a vCPU's thread, of the link's thread and of
//! the machine's end must return.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::blocked_calls::BlockedCalls;
use common::net::{MAC, RECEIVE, TRANSMIT, listen, read_frame, stream_net};
use common::{
    DATA, DiskMachine, Driver, RING, SECTORS, SLOT, Switch, VERSION_1, guest_memory, image,
};
use devices::{Block, BlockConfig, NetConfig};
use io_gate::Port;
use io_gate::host::{CommitAuthority, EffectId, Term, new_gate};
use io_gate_host::adapter::Serial;
use io_gate_host::backend::console::Console;
use io_gate_host::backend::disk::{Disk, DiskOptions};
use io_gate_host::backend::net::Net;
use io_gate_host::disk_use::disk_fence::DiskFence;
use io_gate_host::{
    Backend, Fence, GateHost, GateOptions, GuestMemory, Noted, Observer, Permission, RegisterSlot,
    Unfenced, VirtioSlot,
};
use vm_memory::{Bytes, GuestAddress};

/// With `VIRTIO_BLK_F_FLUSH` and `VIRTIO_BLK_F_DISCARD` (virtio 1.2, 5.2.3).
const FEATURES: u64 = VERSION_1 | 1 << 9 | 1 << 13;

/// Longer than any promised bound, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `call` in a thread of its own, and fails if it does not return.
#[track_caller]
fn answers<R: Send + 'static>(what: &str, call: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(call()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(error) => panic!("{what} does not answer: {error}"),
    }
}

/// A machine whose lanes have these system calls blocked.
fn disk_machine(calls: &BlockedCalls, disk: Disk) -> DiskMachine {
    let memory = guest_memory();
    let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
    let (ledger, authority) = new_gate();
    let gate = GateHost::new(
        ledger,
        memory.clone(),
        fence.clone(),
        GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() },
    )
    .unwrap();
    machine_of(memory, gate, authority, fence, disk)
}

fn machine_of(
    memory: Arc<GuestMemory>,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    fence: Arc<Switch>,
    disk: Disk,
) -> DiskMachine {
    let config = BlockConfig {
        sectors: disk.sectors(),
        read_only: false,
        serial: b"serial-1".to_vec(),
        queues: 1,
    };
    gate.attach(SLOT, Port(0), Backend::Disk(disk)).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(Block::new(config)), gate.clone());
    let driver = Driver::new(&memory, RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(FEATURES).unwrap();
    DiskMachine::of(memory, gate, authority, slot, driver, fence)
}

fn open(image: &tempfile::NamedTempFile) -> Disk {
    Disk::open(image.path(), DiskOptions::default()).unwrap()
}

/// Makes the calls of other threads while one lane of the gate is blocked.
#[track_caller]
fn goes_on(gate: &Arc<GateHost>) {
    let asked = gate.clone();
    answers("the device thread", move || {
        let _ = asked.ready_inputs();
        let _ = asked.take_completions();
        let _ = asked.seal();
        let _ = asked.dropped_frames();
        asked.hold();
        asked.announce(SLOT);
        asked.lanes_idle()
    });
}

/// A driver resets its disk while reads wait, and the first read is in a system call. The reset
/// does not wait for the reads, and none of them reaches guest memory any more.
#[test]
fn a_reset_waits_for_no_read() {
    let image = image(SECTORS);
    std::fs::write(image.path(), vec![7; SECTORS as usize * 512]).unwrap();
    let calls = BlockedCalls::of(&[libc::SYS_pread64]);
    let mut machine = disk_machine(&calls, open(&image));
    for n in 0..4 {
        machine.read(n, DATA + 512 * n, 512);
    }
    let _ = machine.kick();
    calls.wait_for(1);
    goes_on(&machine.gate);
    let mut machine = answers("the reset", move || {
        machine.slot.reset();
        machine
    });
    assert!(!machine.slot.needs_reset());
    // The driver starts again. Its requests are served when the disk answers.
    machine.driver = Driver::new(&machine.memory, RING);
    machine.memory.write_slice(&[0; 0x3000], GuestAddress(RING)).unwrap();
    machine.driver.install(&mut machine.slot, 0);
    machine.slot.driver_ok(FEATURES).unwrap();
    let status = machine.read(9, DATA + 0x8000, 512);
    let _ = machine.kick();
    calls.release();
    // The earlier reads are settled, and return no chain. The last read returns its own.
    while machine.driver.used().is_empty() {
        common::wait_readable(machine.gate.completions_event().as_raw_fd());
        let completions = machine.gate.take_completions();
        let _ = machine.slot.complete_all(completions);
    }
    assert_eq!(machine.status(status), 0);
    assert_eq!(machine.bytes(DATA + 0x8000, 512), [7; 512]);
    assert_eq!(machine.bytes(DATA, 2048), [0; 2048], "memory that the driver has taken back");
    assert_eq!(calls.seen(), 2, "what was not begun is not read");
    assert!(machine.gate.seal().in_flight.is_empty());
}

/// Effects that are released under protection were copied when they were staged. So a reset does
/// not wait for a write either. The next checkpoint contains none of them, because the driver owns
/// their memory again.
#[test]
fn a_reset_waits_for_no_write_that_was_copied() {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[libc::SYS_pwritev]);
    let mut machine = disk_machine(&calls, open(&image));
    machine.fill(DATA, &[5; 2048]);
    for n in 0..4 {
        machine.write(n, DATA + 512 * n, 512);
    }
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    calls.wait_for(1);
    let machine = answers("the reset", move || {
        machine.slot.reset();
        machine
    });
    assert!(!machine.slot.needs_reset());
    assert!(machine.gate.seal().in_flight.is_empty());
    machine.fill(DATA, &[9; 2048]);
    calls.release();
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
    let on_disk = std::fs::read(image.path()).unwrap();
    assert!(on_disk[..512].iter().all(|byte| *byte == 5), "as it was staged");
    assert!(on_disk[512..2048].iter().all(|byte| *byte == 0), "not begun, so not written");
    let _ = machine.gate.seal();
}

/// The calls that an observer got, in order. The observer delays the report of each performed
/// effect.
#[derive(Default)]
struct Recorded {
    events: Mutex<Vec<(&'static str, EffectId)>>,
    changed: Condvar,
}

impl Observer for Recorded {
    fn staged(&self, _effects: &[Noted]) {}
    fn held(&self, _next: EffectId) {}
    fn opened(&self, _term: Term) {}
    fn adopted(&self, _effects: &[Noted], _next: EffectId) {}

    fn performing(&self, effect: Noted, _replay: bool, _term: Option<u64>) -> bool {
        // Wait, so that a cancellation is reported first, if that is possible.
        let events = self.events.lock().unwrap();
        let cancelled = |events: &mut Vec<_>| !events.contains(&("cancelled", effect.id));
        let waited =
            self.changed.wait_timeout_while(events, Duration::from_secs(3), cancelled).unwrap();
        let mut events = waited.0;
        events.push(("performing", effect.id));
        true
    }

    fn withheld(&self, effect: Noted) {
        self.events.lock().unwrap().push(("withheld", effect.id));
    }

    fn returned(&self, _effect: Noted) {}

    fn cancelled(&self, effects: &[EffectId]) {
        self.events.lock().unwrap().extend(effects.iter().map(|id| ("cancelled", *id)));
        self.changed.notify_all();
    }

    fn fenced_off(&self) {}
}

/// P1: an effect that a reset has cancelled is not recorded as performed afterwards. Otherwise
/// `kemari audit verify` would report a broken promise.
#[test]
fn p1_a_dropped_request_is_not_reported_as_performed_later() {
    let image = image(SECTORS);
    let recorded = Arc::new(Recorded::default());
    let memory = guest_memory();
    let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
    let (ledger, authority) = new_gate();
    let observer: Arc<dyn Observer> = recorded.clone();
    let gate = GateHost::new(
        ledger,
        memory.clone(),
        fence.clone(),
        GateOptions { observer: Some(observer), ..GateOptions::default() },
    );
    let mut machine = machine_of(memory, gate.unwrap(), authority, fence, open(&image));
    machine.write(0, DATA, 512);
    machine.write(1, DATA, 512);
    let _ = machine.kick();
    let sealed = machine.gate.seal();
    machine.commit(sealed.epoch);
    let machine = answers("the reset", move || {
        machine.slot.reset();
        machine
    });
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
    let events = recorded.events.lock().unwrap();
    for (at, (_, id)) in events.iter().enumerate().filter(|(_, (what, _))| *what == "cancelled") {
        let later = events[at..].contains(&("performing", *id));
        assert!(!later, "{events:?}");
    }
    assert!(events.iter().any(|(what, _)| *what == "cancelled"), "{events:?}");
}

/// Without protection a write is performed from guest memory, so a reset must wait for the system
/// call that reads that memory. After a time limit the device reports that it cannot be reset, and
/// does nothing.
#[test]
fn a_reset_waits_a_while_for_a_write_from_guest_memory() {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[libc::SYS_pwritev]);
    let mut machine = disk_machine(&calls, open(&image));
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.fill(DATA, &[5; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    calls.wait_for(1);
    let mut machine = answers("the reset", move || {
        machine.slot.reset();
        machine
    });
    assert!(machine.slot.needs_reset(), "memory is still read");
    assert!(machine.slot.driver_ok(FEATURES).is_err(), "nor does it come up");
    calls.release();
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
    machine.slot.reset();
    assert!(!machine.slot.needs_reset());
    machine.slot.driver_ok(FEATURES).unwrap();
    let _ = machine.gate.seal();
}

/// P2: a write that hangs may arrive after another machine has written, so it must not cause a
/// takeover. A read that hangs writes nothing.
#[test]
fn p2_of_what_hangs_at_a_disk_a_write_may_still_arrive() {
    let image = image(SECTORS);
    for call in [libc::SYS_pwritev, libc::SYS_pread64] {
        let calls = BlockedCalls::of(&[call]);
        let mut machine = disk_machine(&calls, open(&image));
        machine.gate.run_alone(machine.authority.alone(Term(1)));
        assert!(!machine.gate.may_be_writing());
        machine.fill(DATA, &[5; 512]);
        match call {
            libc::SYS_pwritev => machine.write(0, DATA, 512),
            _ => machine.read(0, DATA, 512),
        };
        let _ = machine.kick();
        calls.wait_for(1);
        assert_eq!(machine.gate.may_be_writing(), call == libc::SYS_pwritev);
        assert_eq!(machine.gate.asks_since(), None);
        calls.release();
        while !machine.gate.lanes_idle() {
            std::thread::yield_now();
        }
        assert!(!machine.gate.may_be_writing());
        let _ = machine.gate.seal();
    }
}

/// P9: the machine's end waits for a disk only for a limited time, whichever of its system calls
/// hangs.
#[test]
fn the_end_does_not_wait_for_ever_for_a_disk() {
    let calls = [libc::SYS_pread64, libc::SYS_pwritev, libc::SYS_fdatasync, libc::SYS_fallocate];
    let ends = calls.map(|call| std::thread::spawn(move || the_end_comes_in_spite_of(call)));
    ends.into_iter().for_each(|end| end.join().unwrap());
}

fn the_end_comes_in_spite_of(call: libc::c_long) {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[call]);
    let mut machine = disk_machine(&calls, open(&image));
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    match call {
        libc::SYS_pread64 => _ = machine.read(0, DATA, 512),
        libc::SYS_pwritev => _ = machine.write(0, DATA, 512),
        libc::SYS_fdatasync => {
            let (header, status) = machine.header(4, 0);
            machine.driver.add(&[header], &[status]);
        }
        _ => {
            // Discard: one segment of eight sectors.
            let (header, status) = machine.header(11, 0);
            machine.fill(DATA, &[0; 16]);
            machine.memory.write_obj(8_u32, GuestAddress(DATA + 8)).unwrap();
            machine.driver.add(&[header, (DATA, 16)], &[status]);
        }
    }
    let _ = machine.kick();
    calls.wait_for(1);
    goes_on(&machine.gate);
    let gate = machine.gate.clone();
    answers("the end", move || gate.drain());
    calls.release();
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
}

/// A fence that always grants in its term.
struct InTerm(u64);

impl Fence for InTerm {
    fn ask(&self) -> Permission {
        Permission::Granted
    }

    fn term(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// P2: a write that hangs may reach the storage after the end of its machine, so this disk is not
/// freed. The other disk is. Fails if the end frees a disk whose write has only timed out.
#[test]
fn p2_a_disk_that_hangs_is_not_given_free_at_the_end() {
    let (image, other) = (image(SECTORS), image(SECTORS));
    let records = [image.path(), other.path()].map(DiskFence::beside);
    let fenced = |image, record: &std::path::Path| {
        open(image).fenced_by(DiskFence::open(record, "vm").unwrap())
    };
    let is_free = |record: &std::path::Path| DiskFence::look(record).unwrap().unwrap().free;
    let calls = BlockedCalls::of(&[libc::SYS_pwritev]);
    let memory = guest_memory();
    let (ledger, authority) = new_gate();
    let (fence, switch) =
        (Arc::new(InTerm(1)), Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false))));
    let gate = GateHost::new(
        ledger,
        memory.clone(),
        fence,
        GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() },
    )
    .unwrap();
    gate.attach(SLOT + 1, Port(0), Backend::Disk(fenced(&other, &records[1]))).unwrap();
    let mut machine = machine_of(memory, gate, authority, switch, fenced(&image, &records[0]));
    machine.gate.claim_disks().unwrap();
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.fill(DATA, &[5; 512]);
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    calls.wait_for(1);
    let gate = machine.gate.clone();
    let all_free = answers("the end", move || {
        gate.drain();
        gate.free_disks()
    });
    assert!(!all_free, "one is still being written to");
    assert!(!is_free(&records[0]) && is_free(&records[1]));
    calls.release();
    // The storage answers. From now on no request is performed.
    machine.write(1, DATA, 512);
    let _ = machine.kick();
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
    let found = std::fs::read(image.path()).unwrap();
    assert!(found[..512] == [5; 512] && found[512..1024] == [0; 512]);
    assert!(machine.gate.free_disks());
    assert!(is_free(&records[0]));
    records.iter().for_each(|record| std::fs::remove_file(record).unwrap());
}

/// While the machine's end waits for a lane, it holds no lock that an acknowledgement needs, so
/// heartbeats continue.
#[test]
fn an_acknowledgement_does_not_wait_for_the_end() {
    let image = image(SECTORS);
    let calls = BlockedCalls::of(&[libc::SYS_pwritev]);
    let mut machine = disk_machine(&calls, open(&image));
    machine.write(0, DATA, 512);
    let _ = machine.kick();
    let first = machine.gate.seal();
    machine.commit(first.epoch);
    calls.wait_for(1);
    machine.write(8, DATA, 512);
    let _ = machine.kick();
    let second = machine.gate.seal();
    let ending = machine.gate.clone();
    let (begun, begins) = mpsc::channel();
    let end = std::thread::spawn(move || {
        begun.send(()).unwrap();
        ending.drain();
    });
    begins.recv().unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let link = scope.spawn(|| {
            machine.commit(second.epoch);
            ended.store(true, Ordering::SeqCst);
        });
        while !link.is_finished() {
            assert!(!end.is_finished(), "the acknowledgement has waited for the end");
            std::thread::yield_now();
        }
    });
    calls.release();
    end.join().unwrap();
    let _ = DiskMachine::kick(&mut machine);
}

struct NetUnderTest {
    gate: Arc<GateHost>,
    slot: VirtioSlot,
    transmit: Driver,
}

fn net_machine(calls: &BlockedCalls, net: Net) -> (NetUnderTest, CommitAuthority) {
    let memory = guest_memory();
    let (ledger, mut authority) = new_gate();
    let gate = GateHost::new(
        ledger,
        memory.clone(),
        Arc::new(Unfenced),
        GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() },
    )
    .unwrap();
    gate.run_alone(authority.alone(Term(1)));
    let config = NetConfig { mac: MAC, offloads: net.has_offloads(), pairs: 1 };
    gate.attach(SLOT, Port(0), Backend::Net(net)).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(devices::Net::new(config)), gate.clone());
    let receive = Driver::new(&memory, 0x1000);
    let transmit = Driver::new(&memory, 0x8000);
    receive.install(&mut slot, RECEIVE);
    transmit.install(&mut slot, TRANSMIT);
    slot.driver_ok(VERSION_1).unwrap();
    (NetUnderTest { gate, slot, transmit }, authority)
}

/// P9: a network's lane hangs in a system call. Input, events, a new driver and the machine's end
/// continue.
#[test]
fn a_network_that_takes_no_frame_holds_nobody_up() {
    let (dir, listener) = listen();
    let (local, remote) = (dir.path().join("local"), dir.path().join("remote"));
    let _peer = UnixDatagram::bind(&remote).unwrap();
    let nets = [stream_net(&dir), Net::dgram(&local, &remote, MAC).unwrap()]
        .map(|net| (net, libc::SYS_sendmsg));
    for (net, call) in nets {
        let calls = BlockedCalls::of(&[call]);
        let (mut machine, _authority) = net_machine(&calls, net);
        machine.transmit.add(&[(0x10_0000, 100)], &[]);
        let _ = machine.slot.kick(TRANSMIT);
        calls.wait_for(1);
        goes_on(&machine.gate);
        let machine = answers("a vCPU", move || {
            let _ = machine.slot.intake(Port(0));
            let _ = machine.slot.kick(RECEIVE);
            machine
        });
        let gate = machine.gate.clone();
        answers("the end", move || gate.drain());
        calls.release();
        drop(machine);
    }
    drop(listener);
}

/// A fence without an answer holds only effects: the lane that waits for it holds no lock.
#[test]
fn an_arbiter_that_is_away_holds_effects_only() {
    let (dir, listener) = listen();
    let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(true)));
    let mut machine = common::net::NetMachine::fenced(stream_net(&dir), fence.clone());
    let (mut peer, _) = listener.accept().unwrap();
    machine.offer(&[3; 70]);
    let _ = machine.slot.kick(TRANSMIT);
    let sealed = machine.gate.seal();
    machine.gate.release(machine.authority.acknowledged(sealed.epoch));
    while !machine.gate.waits_for_fence() {
        std::thread::yield_now();
    }
    // Input arrives in the meantime.
    machine.room(2048);
    common::net::write_frame(&mut peer, &[4; 80]);
    let mut machine = answers("input", move || {
        assert!(machine.take_input());
        machine
    });
    let mut machine = answers("the reset", move || {
        machine.slot.reset();
        machine
    });
    assert!(!machine.slot.needs_reset());
    assert!(machine.gate.seal().in_flight.is_empty(), "the frame was the former driver's");
    machine.slot.driver_ok(VERSION_1).unwrap();
    fence.1.store(false, Ordering::SeqCst);
    machine.gate.announce(SLOT);
    assert_eq!(read_frame(&mut peer).len(), 60, "the announcement, and not the frame");
}

fn serial_on(calls: &BlockedCalls, console: Console) -> (Arc<GateHost>, RegisterSlot) {
    let (ledger, mut authority) = new_gate();
    let gate = GateHost::new(
        ledger,
        guest_memory(),
        Arc::new(Unfenced),
        GateOptions { lane_start: calls.lane_start(), ..GateOptions::default() },
    )
    .unwrap();
    gate.run_alone(authority.alone(Term(1)));
    gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
    let slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
    (gate, slot)
}

/// P9: the file of a console is on a dead server.
#[test]
fn a_console_that_takes_nothing_holds_nobody_up() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let calls = BlockedCalls::of(&[libc::SYS_write]);
    let (gate, mut slot) = serial_on(&calls, Console::file(file.path(), false).unwrap());
    let _ = slot.write(0, b"x");
    calls.wait_for(1);
    goes_on(&gate);
    let slot = answers("a vCPU", move || {
        let _ = slot.write(0, b"y");
        let _ = slot.intake(Port(0));
        slot
    });
    let ending = gate.clone();
    answers("the end", move || ending.drain());
    calls.release();
    drop(slot);
}

/// A FIFO in a directory of its own. It has no reader yet.
fn fifo() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    (dir, path)
}

/// P9: a driver of a virtio console blocks its whole guest while it waits for a buffer. So a
/// stopped reader keeps a buffer only for a short time. The unread output is bounded: the rest is
/// dropped, in one piece at the end.
#[test]
fn a_stopped_reader_keeps_no_driver_waiting() {
    const CHUNK: usize = 4096;
    let (_dir, path) = fifo();
    let memory = guest_memory();
    let (ledger, mut authority) = new_gate();
    let gate =
        GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    let console = Console::file(&path, true).unwrap();
    gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(devices::Console::new()), gate.clone());
    let mut driver = Driver::new(&memory, 0x1000);
    driver.install(&mut slot, 1);
    slot.driver_ok(VERSION_1).unwrap();
    let mut back = 0;
    for n in 0..100_u8 {
        memory.write_slice(&[n; CHUNK], GuestAddress(0x8000)).unwrap();
        driver.add(&[(0x8000, CHUNK as u32)], &[]);
        let _ = slot.kick(1);
        // The driver has one buffer at a time: it must return before the next one is added.
        while back <= usize::from(n) {
            let _ = gate.ready_inputs();
            let _ = slot.complete_all(gate.take_completions());
            back += driver.used().len();
            std::thread::yield_now();
        }
    }
    assert!(gate.seal().in_flight.is_empty());
    // The reader continues. The kept output is complete and in order, and is more than the pipe
    // holds.
    let mut reader = std::fs::File::open(&path).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while std::io::Read::read_exact(&mut reader, &mut chunk).is_ok() {
            sender.send(chunk.clone()).unwrap();
        }
    });
    let mut kept = 0;
    while kept < 16 + 32 {
        let _ = gate.ready_inputs();
        if let Ok(chunk) = receiver.try_recv() {
            assert!(chunk.iter().all(|byte| *byte == kept), "chunk {kept}");
            kept += 1;
        }
        std::thread::yield_now();
    }
    drop((slot, gate));
    assert!(receiver.recv_timeout(PATIENCE).is_err(), "no more than the bound was kept");
}

/// P3: the reader of a FIFO has stopped. Unread output is in flight, so the standby has it.
#[test]
fn p3_what_a_fifo_has_not_taken_is_in_flight() {
    const BYTES: usize = 85_000;
    let (_dir, path) = fifo();
    let calls = BlockedCalls::of(&[]);
    // There is no reader yet. The machine starts nevertheless.
    let opened = path.clone();
    let console = answers("a FIFO", move || Console::file(&opened, true).unwrap());
    let (gate, mut slot) = serial_on(&calls, console);
    let mut slot = answers("a vCPU", move || {
        for n in 0..BYTES {
            let _ = slot.write(0, &[n as u8 | 1]);
        }
        slot
    });
    let mut reader = std::fs::File::open(&path).unwrap();
    let in_pipe = || {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the argument points to an `int` that lives through the call.
        assert_eq!(unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
        bytes as usize
    };
    while in_pipe() < 65536 || !gate.lanes_idle() {
        std::thread::yield_now();
    }
    let in_flight: usize = gate
        .seal()
        .in_flight
        .iter()
        .map(|record| match &record.request {
            io_gate::host::Request::Effect(op) => op.payload().unwrap().len(),
            io_gate::host::Request::Input(_) | io_gate::host::Request::Own(_) => 0,
        })
        .sum();
    assert_eq!(in_flight + in_pipe(), BYTES, "none is on neither side");
    // The reader continues, and gets everything.
    let all = std::thread::spawn(move || {
        let mut seen = vec![0; BYTES];
        std::io::Read::read_exact(&mut reader, &mut seen).unwrap();
        seen
    });
    while !all.is_finished() {
        let _ = gate.ready_inputs();
        std::thread::yield_now();
    }
    let seen = all.join().unwrap();
    assert!(seen.iter().enumerate().all(|(n, byte)| *byte == n as u8 | 1));
    gate.drain();
    assert!(gate.seal().in_flight.is_empty());
    let _ = slot.write(0, b"z");
}
