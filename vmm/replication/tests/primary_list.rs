//! The driver of a primary's own disks: places, marks and order, with a ledger and without lanes.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ft_core::disks::{Area, Geometry, Limits, Marks, Operation, Payload, Report, Sealed, Seq};
use io_gate::host::{
    GuestBytes, GuestRange, Ledger, MemoryFault, Origin, OwnGate, OwnPorts, Performable,
    lend_chain, new_gate_with_own_disks,
};
use io_gate::{BlockDiscard, BlockFlush, BlockWrite, Payload as Bytes, Port};
use io_gate_host::ListDriver;
use kemari_replication::own_disk::{DiskPlace, Orders, PrimaryList};

const SLOT: u16 = 1;
const PORT: Port = Port(0);
const GEOMETRY: Geometry = Geometry { coarse: 1 << 20, fine: 1 << 16 };
const LIMITS: Limits = Limits { bytes: 4096, epoch: 2048, drain: Duration::from_secs(1) };

#[derive(Default)]
struct Ordered {
    performable: Vec<Performable>,
    resumed: usize,
    failures: Vec<String>,
}

struct Collector(Arc<Mutex<Ordered>>);

impl Orders for Collector {
    fn perform(&self, requests: Vec<Performable>) {
        self.0.lock().unwrap().performable.extend(requests);
    }

    // The test is the thread of the marks.
    fn mark(&self) {}

    fn resume(&self) {
        self.0.lock().unwrap().resumed += 1;
    }

    fn failed(&self, reason: &str) {
        self.0.lock().unwrap().failures.push(reason.to_owned());
    }
}

struct Side {
    ledger: Ledger,
    driver: PrimaryList,
    ordered: Arc<Mutex<Ordered>>,
    head: u16,
}

struct Nothing;

impl GuestBytes for Nothing {
    fn read_at(&self, addr: u64, _: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault(addr))
    }

    fn write_at(&self, addr: u64, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault(addr))
    }
}

impl Side {
    fn new() -> Self {
        let ports = OwnPorts::new(vec![(SLOT, PORT)]);
        let OwnGate { ledger, list, .. } = new_gate_with_own_disks(ports);
        let ordered = Arc::new(Mutex::new(Ordered::default()));
        let marks = Marks::load(GEOMETRY, Area::default());
        let disks = vec![DiskPlace { slot: SLOT, port: PORT, marks }];
        let orders = Box::new(Collector(ordered.clone()));
        let driver = PrimaryList::new(list, LIMITS, Seq(0), disks, orders);
        Self { ledger, driver, ordered, head: 0 }
    }

    fn recording() -> Self {
        let side = Self::new();
        assert!(side.driver.begin());
        side
    }

    fn origin(&mut self) -> Origin {
        self.head += 1;
        Origin::Chain { slot: SLOT, queue: 0, head: self.head }
    }

    /// The end of a session.
    fn staged(&mut self) -> Vec<u64> {
        let requests = self.ledger.take_own(|_| None);
        let ready = self.driver.staged(&mut self.ledger, requests);
        let ids = ready.iter().map(|request| request.record().id.0).collect();
        self.ordered().performable.extend(ready);
        ids
    }

    fn write(&mut self, sector: u64, byte: u8) -> Vec<u64> {
        let (origin, data) = (self.origin(), Bytes::inline(vec![byte; 512]));
        let staged = self
            .ledger
            .chain_session(origin, |gate| Ok(gate.token::<BlockWrite>().stage(PORT, sector, data)));
        staged.unwrap();
        self.staged()
    }

    fn discard(&mut self, sector: u64) -> Vec<u64> {
        let origin = self.origin();
        let staged = self
            .ledger
            .chain_session(origin, |gate| Ok(gate.token::<BlockDiscard>().stage(PORT, sector, 1)));
        staged.unwrap();
        self.staged()
    }

    fn flush(&mut self) -> Vec<u64> {
        let origin = self.origin();
        let staged =
            self.ledger.chain_session(origin, |gate| Ok(gate.token::<BlockFlush>().stage(PORT)));
        staged.unwrap();
        self.staged()
    }

    fn read(&mut self, sector: u64) -> Vec<u64> {
        let origin = self.origin();
        let mut chain = lend_chain(&Nothing, Vec::new(), vec![GuestRange { addr: 0, len: 512 }]);
        let asked = self.ledger.chain_session(origin, |gate| {
            let into = chain.take_space(512)?;
            Ok(gate.block_read(PORT, sector, into))
        });
        asked.unwrap();
        self.staged()
    }

    fn ordered(&self) -> MutexGuard<'_, Ordered> {
        self.ordered.lock().unwrap()
    }

    /// The requests that the lanes have, by id.
    fn with_lanes(&self) -> Vec<u64> {
        self.ordered().performable.iter().map(|request| request.record().id.0).collect()
    }

    /// Makes the wanted marks durable.
    fn mark(&self) -> usize {
        let mut written = 0;
        while let Some((disk, _)) = self.driver.next_marks() {
            self.driver.marks_written(disk);
            written += 1;
        }
        written
    }

    /// The lane has performed its oldest request.
    fn perform(&mut self, durable: bool) {
        let request = self.ordered().performable.remove(0);
        self.driver.performed(request.record(), durable);
        self.ledger.settle(request);
    }

    /// A side whose marks of the first extents are durable.
    fn marked() -> Self {
        let mut side = Self::recording();
        side.write(0, 0);
        side.mark();
        side.perform(false);
        side
    }
}

fn seqs(sealed: &Sealed) -> Vec<u64> {
    sealed.entries.iter().map(|entry| entry.seq.0).collect()
}

/// R3. Fails if a write begins before the area with its mark is written.
#[test]
fn r3_a_write_begins_when_its_mark_is_durable() {
    let mut side = Side::recording();
    assert!(side.write(8, 7).is_empty());
    let (disk, area) = side.driver.next_marks().unwrap();
    assert_eq!((disk, area.coarse.into_iter().collect::<Vec<_>>()), (0, vec![0]));
    assert!(side.driver.next_marks().is_none(), "one write of the area at a time");
    assert!(side.with_lanes().is_empty());
    side.driver.marks_written(0);
    assert_eq!(side.with_lanes(), [1]);
    side.perform(false);
    // The extent has its mark.
    assert_eq!(side.write(9, 7), [2]);
}

/// R1: the place is that of the request, and the bytes are those of the staging, although the write
/// has not begun.
#[test]
fn r1_the_list_has_each_operation_at_its_place() {
    let mut side = Side::recording();
    side.write(8, 7);
    side.discard(9);
    side.flush();
    let sealed = side.driver.seal();
    assert_eq!((seqs(&sealed), sealed.end, sealed.flushed), (vec![1, 2, 3], Seq(3), Seq(0)));
    let operations: Vec<&Operation> = sealed.entries.iter().map(|entry| &entry.operation).collect();
    assert!(matches!(operations[0], Operation::Write { extent, payload: Payload::Inline(bytes) }
        if (extent.start, extent.len) == (8 * 512, 512) && bytes == &[7; 512]));
    assert!(matches!(operations[1], Operation::Zero { extent } if extent.start == 9 * 512));
    assert_eq!(operations[2], &Operation::Flush);
    // The checkpoint's records have their places.
    side.ledger.seal();
}

/// R1: overlapping operations begin in the order of the list, others at the same time.
#[test]
fn r1_overlapping_operations_wait_for_each_other() {
    let mut side = Side::marked();
    assert_eq!(side.write(4, 1), [2]);
    assert_eq!(side.write(5, 1), [3]);
    assert!(side.write(4, 2).is_empty());
    assert!(side.read(4).is_empty());
    assert_eq!(side.read(6), [6]);
    side.perform(false);
    assert_eq!(side.with_lanes(), [3, 6, 4]);
    for _ in 0..3 {
        side.perform(false);
    }
    assert_eq!(side.with_lanes(), [5], "the read gets the second write's bytes");
}

/// R4: a flush begins when every change before it is performed, and outputs wait for it from then
/// on.
#[test]
fn r4_a_flush_waits_for_the_changes_before_it() {
    let mut side = Side::marked();
    side.write(4, 1);
    assert!(side.flush().is_empty());
    side.perform(false);
    assert_eq!(side.with_lanes(), [3]);
    assert_eq!(side.driver.seal().flushed, Seq(0));
    side.perform(true);
    assert_eq!(side.driver.seal().flushed, Seq(3));
}

/// R4: a write of a driver that cannot flush is durable when it completes.
#[test]
fn r4_a_durable_write_counts_as_a_flush() {
    let mut side = Side::marked();
    side.write(4, 1);
    side.perform(true);
    assert_eq!(side.driver.seal().flushed, Seq(2));
}

/// R12: recording begins with an empty lane. Before it, operations are performed and not listed.
#[test]
fn r12_recording_begins_when_the_lane_is_empty() {
    let mut side = Side::new();
    side.write(4, 1);
    side.mark();
    assert!(!side.driver.begin());
    side.perform(false);
    assert!(side.driver.begin());
    side.write(4, 2);
    assert_eq!(seqs(&side.driver.seal()), [2], "the number before it was given too");
    side.perform(false);
    side.driver.end();
    side.write(4, 3);
    assert!(side.driver.seal().entries.is_empty());
}

/// R2: staging stops at the list's bound, and continues when the standby has performed enough.
#[test]
fn r2_the_list_is_bounded() {
    let mut side = Side::marked();
    let mut written = 0;
    while !side.driver.is_full() {
        side.write(4, 1);
        side.perform(false);
        written += 1;
        assert!(written <= LIMITS.bytes / 512, "no bound");
    }
    let end = side.driver.seal().end;
    side.driver.report(&Report { performed: Seq(1), ..Report::default() });
    let all = Report { performed: end, ..Report::default() };
    side.driver.report(&all);
    assert!(!side.driver.is_full());
    assert_eq!(side.ordered().resumed, 1);
    // A standby that is slow counts like one that has too much.
    side.write(4, 1);
    let _ = side.driver.seal();
    side.driver.report(&Report { drain: Duration::from_secs(2), ..all });
    assert!(side.driver.is_full());
    side.driver.end();
    assert!(!side.driver.is_full());
    assert_eq!(side.ordered().resumed, 2);
}

/// R5: after the first failure nothing begins, and the core learns of it.
#[test]
fn r5_after_a_failure_nothing_begins() {
    let mut side = Side::marked();
    side.write(4, 1);
    side.driver.failed("EIO");
    assert!(side.write(5, 1).is_empty() && side.flush().is_empty());
    assert_eq!(side.mark(), 0);
    assert_eq!(side.with_lanes(), [2], "what was under way");
    assert_eq!(side.ordered().failures, ["EIO"]);
    // The standby performs them: they are listed.
    assert_eq!(seqs(&side.driver.seal()), [1, 2, 3, 4]);
}
