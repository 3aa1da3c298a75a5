//! The standby's queue on real files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use ft_core::disks::{DiskId, Generation, Lineage, PairId, State as ImageState, resync};

use super::*;
use crate::own_disk::{Init, Look, Made, init};

const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;
const SEED: u64 = 9;

struct Bench {
    dir: tempfile::TempDir,
    news: Receiver<News>,
    queue: StandbyQueue,
}

fn options() -> QueueOptions {
    let soon = Duration::ZERO;
    QueueOptions { limit: 16 << 20, sync_after: soon, record_after: soon }
}

fn made(path: &std::path::Path) -> Made {
    let (pair, size) = (Some(PairId(1)), Some(SIZE));
    init(Init { image: path, meta: None, pair, size }).unwrap()
}

impl Bench {
    fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        (0..count).for_each(|at| drop(made(&dir.path().join(format!("disk{at}")))));
        Self::of(dir, count, options())
    }

    fn of(dir: tempfile::TempDir, count: usize, options: QueueOptions) -> Self {
        let open = |at| OwnDisk::open(&dir.path().join(format!("disk{at}")), None).unwrap();
        let (tell, news) = channel();
        let tell = move |one| tell.send(one).unwrap_or_default();
        let queue = StandbyQueue::start((0..count).map(open).collect(), options, tell).unwrap();
        Self { dir, news, queue }
    }

    /// With a list that has begun behind entry 0.
    fn begun(count: usize, resync: bool) -> Self {
        let bench = Self::new(count);
        bench.begin(resync);
        bench
    }

    fn begin(&self, resync: bool) {
        self.queue.connect();
        self.hear(|news| matches!(news, News::Described(_)));
        self.queue.begin(Seq(0), resync, SEED).unwrap();
    }

    /// Waits for news, and returns it.
    fn hear(&self, wanted: impl Fn(&News) -> bool) -> News {
        loop {
            let news = self.news.recv_timeout(PATIENCE).expect("it comes");
            if wanted(&news) {
                return news;
            }
        }
    }

    fn performed(&self, seq: u64) -> Report {
        let found = self.hear(|news| matches!(news, News::Report(r) if r.performed >= Seq(seq)));
        let News::Report(report) = found else { unreachable!("it is one") };
        report
    }

    fn send(&self, epoch: u64, entries: Vec<Entry>) {
        self.queue.receive(Some(Epoch(epoch)), entries).unwrap();
    }

    fn commit(&self, epoch: u64) {
        self.queue.commit(Epoch(epoch), &|_, _| None).unwrap();
    }

    fn path(&self, disk: u16) -> PathBuf {
        self.dir.path().join(format!("disk{disk}"))
    }

    fn block(&self, disk: u16, block: u64) -> u8 {
        let bytes = fs::read(self.path(disk)).unwrap();
        let bytes = &bytes[block as usize * 4096..][..4096];
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is written as a whole");
        bytes[0]
    }

    fn look(&self) -> Look {
        Look::at(&self.path(0), None).unwrap()
    }
}

fn extent(disk: u16, block: u64) -> Extent {
    Extent { disk, start: block * 4096, len: 4096 }
}

fn write(disk: u16, block: u64, value: u8) -> Operation {
    let payload = Payload::Inline(vec![value; 4096]);
    Operation::Write { extent: extent(disk, block), payload }
}

/// Entries with the numbers from `first` on.
fn entries(first: u64, operations: impl IntoIterator<Item = Operation>) -> Vec<Entry> {
    let numbered = (first..).zip(operations);
    numbered.map(|(seq, operation)| Entry { seq: Seq(seq), operation }).collect()
}

fn cover(end: u64) -> Vec<Cover> {
    let generation = Generation { term: 3, id: 4 };
    let lineage = Lineage::new(generation);
    vec![Cover { end: Seq(end), disk: DiskId(5), lineage, point: 6 }]
}

/// R1. Fails if overlapping entries swap, or if entries are performed before their checkpoint is
/// committed.
#[test]
fn r1_committed_entries_are_performed_in_their_order_on_all_disks() {
    let bench = Bench::begun(2, false);
    let zero = Operation::Zero { extent: extent(0, 1) };
    let first = [write(0, 0, 1), write(0, 0, 2), write(0, 1, 3), zero, write(1, 0, 4)];
    bench.send(1, entries(1, first));
    bench.send(2, entries(6, [write(0, 0, 9)]));
    bench.commit(1);
    bench.performed(5);
    let found = [bench.block(0, 0), bench.block(0, 1), bench.block(1, 0)];
    assert_eq!(found, [2, 0, 4]);
    bench.commit(2);
    bench.performed(6);
    assert_eq!(bench.block(0, 0), 9);
    let finished = bench.queue.finish();
    assert!(finished.queue.unwrap().is_drained() && finished.failed.is_none());
}

/// R1, R2. Fails if a payload is read from the memory when its entry is performed.
#[test]
fn r2_a_payload_is_copied_when_its_checkpoint_is_committed() {
    let bench = Bench::begun(1, false);
    let by_memory = Operation::Write { extent: extent(0, 3), payload: Payload::Memory(0x1000) };
    bench.send(1, entries(1, [by_memory.clone()]));
    let memory = std::cell::Cell::new(7);
    let read = |address, len| (address == 0x1000).then(|| vec![memory.get(); len as usize]);
    bench.queue.commit(Epoch(1), &read).unwrap();
    memory.set(8);
    bench.performed(1);
    assert_eq!(bench.block(0, 3), 7);
    bench.send(2, entries(2, [by_memory]));
    let missing = bench.queue.commit(Epoch(2), &|_, _| None).unwrap_err();
    assert!(matches!(missing, ReceiveError::Queue(QueueError::Memory { .. })), "{missing}");
}

/// R3. Fails if an entry is performed before its coarse mark is durable: the look is at the medium.
#[test]
fn r3_what_was_written_is_marked_until_both_sides_are_durable() {
    let bench = Bench::begun(1, false);
    bench.queue.cover(cover(0)).unwrap();
    bench.hear(|news| *news == News::Covered);
    bench.send(1, entries(1, [write(0, 0, 1), write(0, 1500, 2)]));
    bench.commit(1);
    // With these times, each turn of the thread ends with a sync and a record.
    assert_eq!(bench.performed(2).recorded, Seq(2));
    let area = bench.look().area.unwrap();
    assert_eq!(area.coarse, [0, 1].into());
    bench.queue.both_durable(Seq(1));
    // The orders of the session are noted before a later entry is performed.
    bench.send(2, entries(3, [write(0, 3000, 3)]));
    bench.commit(2);
    bench.performed(3);
    let finished = bench.queue.finish();
    let area = finished.disks[0].disk.store.area().unwrap();
    assert_eq!((&area.coarse, area.cleared), (&[1, 2].into(), Seq(1)));
}

/// R4, R6. Fails if a durable entry is reported before the sidecar says that the image is covered.
#[test]
fn r6_nothing_is_durable_to_the_primary_before_the_images_are_covered() {
    let bench = Bench::begun(1, true);
    let copy = Operation::Copy { extent: extent(0, 0), bytes: vec![5; 4096] };
    bench.queue.receive(None, entries(1, [copy, Operation::Flush])).unwrap();
    assert_eq!(bench.performed(2).durable, Seq(0));
    // R8: durably inconsistent since before the first block.
    assert_eq!(bench.look().sidecar.state, ImageState::Inconsistent);
    bench.send(1, entries(3, [write(0, 1, 6)]));
    bench.commit(1);
    bench.queue.cover(cover(3)).unwrap();
    bench.hear(|news| *news == News::Covered);
    let look = bench.look();
    assert_eq!((look.sidecar.state, look.sidecar.peer), (ImageState::Whole, Some(DiskId(5))));
    assert_eq!(look.sidecar.lineage.current(), Generation { term: 3, id: 4 });
    assert_eq!(look.area.unwrap().point, 6);
    bench.hear(
        |news| matches!(news, News::Report(r) if (r.durable, r.recorded) == (Seq(3), Seq(3))),
    );
    assert_eq!(bench.look().sidecar.durable, Seq(3));
}

/// R4. Fails if a report says that something is durable and no flush or sync of it has ended.
#[test]
fn r4_a_flush_makes_durable_what_is_before_it() {
    let bench = Bench::new(1);
    let never = Duration::from_secs(3600);
    let dir = bench.dir;
    drop(bench.queue.finish());
    let bench = Bench::of(dir, 1, QueueOptions { sync_after: never, ..options() });
    bench.begin(false);
    bench.queue.cover(cover(0)).unwrap();
    bench.hear(|news| *news == News::Covered);
    let operations = [write(0, 0, 1), Operation::Flush, write(0, 1, 2)];
    bench.send(1, entries(1, operations));
    bench.commit(1);
    let report = bench.performed(3);
    assert_eq!((report.durable, report.performed), (Seq(2), Seq(3)));
}

#[test]
fn r9_a_comparison_tells_a_difference_at_its_place() {
    let bench = Bench::begun(1, false);
    let hash = |value: u8| resync::hash(&[value; 4096], SEED);
    let compare = |hash| Operation::Compare { extent: extent(0, 0), hash };
    let operations =
        [write(0, 0, 1), compare(hash(1)), write(0, 0, 2), compare(hash(1)), compare(hash(2))];
    bench.send(1, entries(1, operations));
    bench.commit(1);
    let found = bench.hear(|news| matches!(news, News::Different(..)));
    assert_eq!(found, News::Different(Seq(4), extent(0, 0)));
    // Only this one: the report of the end comes next.
    let report = bench.hear(|news| !matches!(news, News::Report(r) if r.performed < Seq(5)));
    assert!(matches!(report, News::Report(_)), "{report:?}");
}

#[test]
fn r1_without_its_primary_what_is_committed_is_performed_and_the_rest_dropped() {
    let bench = Bench::begun(1, false);
    bench.send(1, entries(1, [write(0, 0, 1)]));
    bench.send(2, entries(2, [write(0, 1, 2)]));
    bench.commit(1);
    bench.queue.peer_gone();
    let late = bench.queue.receive(Some(Epoch(2)), entries(3, [write(0, 2, 3)]));
    assert_eq!(late, Err(ReceiveError::NotBegun));
    bench.queue.connect();
    let News::Described(described) = bench.hear(|news| matches!(news, News::Described(_))) else {
        unreachable!("it is that")
    };
    assert_eq!([bench.block(0, 0), bench.block(0, 1)], [1, 0]);
    // The peer is gone: the block is marked, and its extent no longer.
    let area = described[0].1.as_ref().unwrap();
    assert_eq!((&area.fine, area.coarse.len()), (&[0].into(), 0));
}

#[test]
fn r8_a_list_begins_only_after_the_images_were_described() {
    let bench = Bench::new(1);
    let begin = || bench.queue.begin(Seq(0), false, SEED);
    assert_eq!(begin(), Err(ReceiveError::NotDescribed));
    let early = bench.queue.receive(None, entries(1, [Operation::Flush]));
    assert_eq!(early, Err(ReceiveError::NotBegun));
    bench.queue.connect();
    bench.hear(|news| matches!(news, News::Described(_)));
    begin().unwrap();
    assert_eq!(begin(), Err(ReceiveError::NotDescribed), "once for each connection");
}

/// The entries are of another host: nothing of a wrong one is performed.
#[test]
fn p4_entries_that_do_not_fit_the_disks_are_refused() {
    let bench = Bench::begun(1, false);
    let write_at = |extent: Extent, len: usize| Operation::Write {
        extent,
        payload: Payload::Inline(vec![1; len]),
    };
    let at = |start: u64, len: u64| Extent { disk: 0, start, len };
    let limit = options().limit;
    for operation in [
        write_at(Extent { disk: 1, ..extent(0, 0) }, 4096),
        write_at(at(SIZE, 1), 1),
        write_at(at(SIZE - 1, 2), 2),
        write_at(at(u64::MAX, 2), 2),
        write_at(at(0, 0), 0),
        write_at(at(0, 4), 5),
        write_at(at(0, 4), 3),
        Operation::Copy { extent: at(0, 4), bytes: vec![1; 3] },
        Operation::Zero { extent: at(1, SIZE) },
        Operation::Compare { extent: at(0, limit + 1), hash: 0 },
        Operation::Write { extent: at(0, limit + 1), payload: Payload::Memory(0) },
    ] {
        let refused = bench.queue.receive(None, entries(1, [operation.clone()]));
        assert!(
            matches!(refused, Err(ReceiveError::Extent { .. } | ReceiveError::Bytes { .. })),
            "{operation:?}: {refused:?}"
        );
    }
    let gap = bench.queue.receive(None, entries(2, [Operation::Flush]));
    assert!(matches!(gap, Err(ReceiveError::Queue(QueueError::Gap { .. }))), "{gap:?}");
    assert_eq!(bench.queue.cover(Vec::new()), Err(ReceiveError::Covers { expected: 1, found: 0 }));
    bench.queue.receive(None, entries(1, [Operation::Zero { extent: at(0, SIZE) }])).unwrap();
    bench.performed(1);
}

#[test]
fn r5_an_image_that_has_failed_before_is_not_written() {
    let bench = Bench::new(1);
    let mut disk = bench.queue.finish().disks.remove(0).disk;
    let failed = Sidecar { state: ImageState::Failed, ..disk.store.sidecar().clone() };
    disk.store.record(&failed).unwrap();
    drop(disk);
    let bench = Bench::of(bench.dir, 1, options());
    bench.hear(|news| matches!(news, News::Failed(_)));
    bench.queue.connect();
    let finished = bench.queue.finish();
    assert!(finished.failed.is_some());
    assert_eq!(finished.disks[0].disk.store.sidecar(), &failed);
}
