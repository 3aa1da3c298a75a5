//! The thread of a standby's queue. It alone touches the files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ft_core::disks::{
    Cover, Entry, Extent, Geometry, Marks, Operation, Payload, Queue, Report, Seq, Sidecar,
    State as ImageState, Ticket, resync,
};

use super::pace::Pace;
use super::{Asked, Finished, MarkedDisk, News, QueueOptions, Shared};
use crate::own_disk::{OwnDisk, OwnDiskError};

/// Entries, and about the bytes, that are performed between two looks at what has come.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 4 << 20;

pub(super) struct Worker {
    shared: Arc<Shared>,
    disks: Vec<Disk>,
    options: QueueOptions,
    tell: Box<dyn Fn(News) + Send>,
    describes: bool,
    /// Blocks are overwritten: the images are inconsistent until they are covered.
    resync: bool,
    /// Of the hashes of this session.
    seed: u64,
    cover: Option<Vec<Cover>>,
    covered: bool,
    /// The list of this session has begun. An earlier list's numbers say nothing about it.
    begun: bool,
    reported: Option<Report>,
    /// R5: the first failure.
    failed: Option<String>,
    pace: Pace,
    synced_at: Instant,
    recorded_at: Instant,
}

struct Disk {
    files: OwnDisk,
    marks: Marks,
    /// The mark area was damaged when it was opened, and the images were not equal since then.
    damaged: bool,
}

/// What there is to do now.
struct Turn {
    asked: Asked,
    batch: Vec<(Ticket, Entry)>,
}

/// Why an entry was not performed.
type Failure = String;

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        disks: Vec<OwnDisk>,
        options: QueueOptions,
        tell: Box<dyn Fn(News) + Send>,
    ) -> Self {
        let disks: Vec<Disk> = disks.into_iter().map(Disk::new).collect();
        let is_failed = |disk: &&Disk| disk.files.store.sidecar().state == ImageState::Failed;
        let failed = disks.iter().find(is_failed).map(|_| "an image has failed before".to_owned());
        let now = Instant::now();
        Self {
            shared,
            disks,
            options,
            tell,
            describes: false,
            resync: false,
            seed: 0,
            cover: None,
            covered: false,
            begun: false,
            reported: None,
            failed,
            pace: Pace::default(),
            synced_at: now,
            recorded_at: now,
        }
    }

    pub(super) fn run(mut self) -> Finished {
        if let Some(reason) = &self.failed {
            (self.tell)(News::Failed(reason.clone()));
        }
        loop {
            let turn = self.next_turn();
            if turn.asked.stops {
                return self.finish();
            }
            self.note(turn.asked);
            if self.failed.is_none()
                && let Err(reason) = self.work(turn.batch)
            {
                self.fail(reason);
            }
            self.report();
        }
    }

    fn finish(self) -> Finished {
        let queue = self.shared.lock().queue.take();
        let disks =
            self.disks.into_iter().map(|disk| MarkedDisk { disk: disk.files, marks: disk.marks });
        Finished { disks: disks.collect(), queue, failed: self.failed }
    }

    /// Waits until there is something to do, and takes it. The entries begin here.
    fn next_turn(&self) -> Turn {
        let mut state = self.shared.lock();
        loop {
            if state.asked.stops {
                return Turn { asked: std::mem::take(&mut state.asked), batch: Vec::new() };
            }
            let due = self.due(state.queue.as_ref());
            let queue = state.queue.as_mut().filter(|_| self.failed.is_none());
            let batch = queue.map(take_batch).unwrap_or_default();
            if !batch.is_empty() || state.asked.is_any() || due == Some(Duration::ZERO) {
                let asked = std::mem::take(&mut state.asked);
                return Turn { asked, batch };
            }
            let shared = &self.shared;
            state = match due {
                None => shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(due) => {
                    let waited = shared.changed.wait_timeout(state, due);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
            };
        }
    }

    /// When there is something to do although nothing has come; zero: now.
    fn due(&self, queue: Option<&Queue>) -> Option<Duration> {
        let (Some(queue), None) = (queue, &self.failed) else { return None };
        if self.cover.is_some() && queue.wants_sync() {
            return Some(Duration::ZERO);
        }
        let left = |since: Instant, after: Duration| after.saturating_sub(since.elapsed());
        let sync = queue.wants_sync().then(|| left(self.synced_at, self.options.sync_after));
        let record = self.wants_record(queue.durable());
        let record = record.then(|| left(self.recorded_at, self.options.record_after));
        sync.into_iter().chain(record).min()
    }

    fn wants_record(&self, durable: Seq) -> bool {
        let is_behind = |disk: &Disk| disk.files.store.sidecar().durable < durable;
        self.covered && self.disks.iter().any(is_behind)
    }

    fn note(&mut self, asked: Asked) {
        if asked.gone {
            self.disks.iter_mut().for_each(|disk| disk.marks.peer_gone());
            (self.begun, self.describes, self.cover) = (false, false, None);
        }
        if asked.connects {
            (self.describes, self.begun, self.covered) = (true, false, false);
            (self.cover, self.reported) = (None, None);
        }
        if let Some((resync, seed)) = asked.begins {
            (self.begun, self.resync, self.seed) = (true, resync, seed);
        }
        if let Some(seq) = asked.both_durable.filter(|_| self.covered) {
            self.disks.iter_mut().for_each(|disk| disk.marks.both_durable(seq));
        }
        self.cover = asked.cover.or(self.cover.take());
    }

    fn work(&mut self, batch: Vec<(Ticket, Entry)>) -> Result<(), Failure> {
        if self.resync {
            // R8: durable before the first block is overwritten.
            self.record(|sidecar| sidecar.state = ImageState::Inconsistent)?;
        }
        self.perform(batch)?;
        self.sync_if_due()?;
        self.cover_if_durable()?;
        self.record_if_due()?;
        if self.with_queue(|queue| queue.is_drained()).unwrap_or(true) {
            self.settle_marks()?;
            self.describe();
        }
        Ok(())
    }

    // ---- entries ----

    fn perform(&mut self, batch: Vec<(Ticket, Entry)>) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.mark(&batch)?;
        let bytes = batch.iter().map(|(_, entry)| entry.operation.bytes()).sum();
        for (ticket, entry) in batch {
            match self.perform_one(&entry) {
                Ok(true) => {}
                Ok(false) => {
                    let extent = entry.operation.extent().expect("a comparison has an extent");
                    (self.tell)(News::Different(entry.seq, extent));
                }
                Err(reason) => {
                    self.with_queue(|queue| queue.fail(ticket));
                    return Err(format!("entry {}: {reason}", entry.seq.0));
                }
            }
            self.with_queue(|queue| queue.done(ticket));
        }
        self.pace.took(bytes, begun.elapsed());
        Ok(())
    }

    /// R3: the intents of all entries are durable before the first one is performed.
    fn mark(&mut self, batch: &[(Ticket, Entry)]) -> Result<(), Failure> {
        for entry in batch.iter().map(|(_, entry)| entry).filter(|entry| entry.operation.changes())
        {
            if let Some(extent) = entry.operation.extent() {
                self.disk(&extent).marks.begin(&extent, entry.seq);
            }
        }
        self.disks.iter_mut().try_for_each(Disk::write_marks)
    }

    /// Performs an entry; `false` if it is a comparison that has found a difference.
    fn perform_one(&mut self, entry: &Entry) -> Result<bool, Failure> {
        let Some(extent) = entry.operation.extent() else {
            return self.sync().map(|()| true);
        };
        let failed = |error| {
            format!("bytes {} to {} of disk {}: {error}", extent.start, extent.end(), extent.disk)
        };
        let seed = self.seed;
        let disk = self.disk(&extent);
        let image = &disk.files.image;
        let changed = match &entry.operation {
            Operation::Compare { hash, .. } => {
                let mut bytes = vec![0; extent.len as usize];
                let read = image.read(extent.start, &mut bytes);
                return read.map(|()| resync::hash(&bytes, seed) == *hash).map_err(failed);
            }
            Operation::Zero { .. } => image.zero(extent.start, extent.len),
            Operation::Write { payload: Payload::Inline(bytes), .. }
            | Operation::Copy { bytes, .. } => image.write(extent.start, bytes),
            Operation::Write { .. } | Operation::Flush => {
                return Err("its bytes were not copied out of the checkpoint".to_owned());
            }
        };
        changed.map_err(failed)?;
        disk.marks.performed(&extent);
        Ok(true)
    }

    fn disk(&mut self, extent: &Extent) -> &mut Disk {
        // `StandbyQueue::receive` refuses entries of other disks.
        &mut self.disks[usize::from(extent.disk)]
    }

    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.shared.lock().queue.as_mut().map(change)
    }

    // ---- durability ----

    fn sync(&mut self) -> Result<(), Failure> {
        self.synced_at = Instant::now();
        for disk in &self.disks {
            disk.files.image.sync().map_err(|error| format!("a sync has failed: {error}"))?;
        }
        Ok(())
    }

    fn sync_if_due(&mut self) -> Result<(), Failure> {
        let due = self.synced_at.elapsed() >= self.options.sync_after;
        let Some((list, performed)) = self.to_sync().filter(|_| due || self.cover.is_some()) else {
            return Ok(());
        };
        let begun = Instant::now();
        let synced = self.sync();
        self.pace.took(0, begun.elapsed());
        match synced {
            Ok(()) => {
                let mut state = self.shared.lock();
                // The numbers of a list that has begun meanwhile are others.
                let same = state.list == list;
                state.queue.iter_mut().filter(|_| same).for_each(|queue| queue.synced(performed));
                Ok(())
            }
            Err(reason) => {
                self.with_queue(Queue::sync_failed);
                Err(reason)
            }
        }
    }

    /// The list, and its last entry that is performed, if one is not durable. Only this thread
    /// performs entries, so a sync that begins now covers them.
    fn to_sync(&self) -> Option<(u64, Seq)> {
        let state = self.shared.lock();
        let queue = state.queue.as_ref().filter(|queue| queue.wants_sync())?;
        Some((state.list, queue.performed()))
    }

    fn durable(&self) -> Option<Seq> {
        self.with_queue(|queue| queue.durable())
    }

    /// R6: the images are equal up to the covering checkpoint, and durable; then sidecars and marks
    /// say so.
    fn cover_if_durable(&mut self) -> Result<(), Failure> {
        let (Some(covers), Some(durable)) = (&self.cover, self.durable()) else { return Ok(()) };
        if !covers.iter().all(|cover| cover.end <= durable) {
            return Ok(());
        }
        let covers = self.cover.take().unwrap_or_default();
        for (disk, cover) in self.disks.iter_mut().zip(covers) {
            disk.marks.equal(cover.disk, cover.point, cover.end);
            disk.damaged = false;
            disk.write_marks()?;
            disk.record(|sidecar| {
                (sidecar.state, sidecar.pending) = (ImageState::Whole, None);
                (sidecar.lineage, sidecar.peer) = (cover.lineage, Some(cover.disk));
                sidecar.durable = durable;
            })?;
        }
        (self.resync, self.covered) = (false, true);
        (self.tell)(News::Covered);
        Ok(())
    }

    fn record_if_due(&mut self) -> Result<(), Failure> {
        let Some(durable) = self.durable() else { return Ok(()) };
        let is_due = self.recorded_at.elapsed() >= self.options.record_after;
        if !is_due || !self.wants_record(durable) {
            return Ok(());
        }
        self.recorded_at = Instant::now();
        self.record(|sidecar| sidecar.durable = durable)
    }

    /// Changes what the sidecars say, durably. A sidecar that says it already is not written.
    fn record(&mut self, change: impl Fn(&mut Sidecar)) -> Result<(), Failure> {
        self.disks.iter_mut().try_for_each(|disk| disk.record(&change))
    }

    /// Writes the marks that may go, and the fine marks that take the place of coarse ones.
    fn settle_marks(&mut self) -> Result<(), Failure> {
        self.disks.iter_mut().try_for_each(Disk::write_marks)
    }

    // ---- what the session hears ----

    /// What is left of an earlier session is performed: its marks say what it has changed.
    fn describe(&mut self) {
        if !self.describes {
            return;
        }
        self.describes = false;
        let described = self.disks.iter_mut().map(|disk| {
            disk.marks.peer_connects();
            let area = (!disk.damaged).then(|| disk.marks.described());
            (disk.files.store.sidecar().clone(), area)
        });
        let described = described.collect();
        let still = {
            let mut state = self.shared.lock();
            // A connection that ended meanwhile is not answered.
            state.described = !state.asked.gone && !state.asked.connects;
            state.described
        };
        if still {
            (self.tell)(News::Described(described));
        }
    }

    fn report(&mut self) {
        let Some((mut report, bytes)) = self.with_queue(|queue| {
            let report = Report {
                performed: queue.performed(),
                durable: queue.durable(),
                ..Report::default()
            };
            (report, queue.bytes())
        }) else {
            return;
        };
        let recorded = self.disks.iter().map(|disk| disk.files.store.sidecar().durable).min();
        match self.covered {
            true => report.recorded = recorded.unwrap_or_default(),
            false => report.durable = Seq::default(),
        }
        if !self.begun || self.reported == Some(report) {
            return;
        }
        self.reported = Some(report);
        report.drain = self.pace.time_for(bytes);
        (self.tell)(News::Report(report));
    }

    /// R5: the first failure is final. The sidecars say so where they can.
    fn fail(&mut self, reason: Failure) {
        log::error!("own disks: {reason}; nothing more is written to them");
        self.with_queue(Queue::sync_failed);
        if let Err(error) = self.record(|sidecar| sidecar.state = ImageState::Failed) {
            log::error!("own disks: cannot record the failure: {error}");
        }
        self.failed = Some(reason.clone());
        (self.tell)(News::Failed(reason));
    }
}

impl Disk {
    fn new(files: OwnDisk) -> Self {
        let area = files.store.area().cloned();
        let damaged = area.is_none();
        let marks = Marks::load(Geometry::PRODUCT, area.unwrap_or_default());
        Self { files, marks, damaged }
    }

    fn write_marks(&mut self) -> Result<(), Failure> {
        if let Some(area) = self.marks.next_write() {
            self.files.store.write_marks(area).map_err(|error| error.to_string())?;
            self.marks.written();
        }
        Ok(())
    }

    fn record(&mut self, change: impl FnOnce(&mut Sidecar)) -> Result<(), Failure> {
        let mut next = self.files.store.sidecar().clone();
        change(&mut next);
        if next == *self.files.store.sidecar() {
            return Ok(());
        }
        self.files.store.record(&next).map_err(|error: OwnDiskError| error.to_string())
    }
}

/// Begins entries, in order, up to the bounds of a batch.
fn take_batch(queue: &mut Queue) -> Vec<(Ticket, Entry)> {
    let mut bytes = 0;
    let mut tickets: Vec<Ticket> = Vec::new();
    for ticket in queue.startable() {
        if tickets.len() == BATCH || bytes >= BATCH_BYTES {
            break;
        }
        bytes += queue.get(ticket).map_or(0, |entry| entry.operation.bytes());
        tickets.push(ticket);
    }
    let begun = tickets.into_iter().map(|ticket| (ticket, queue.start(ticket).cloned()));
    begun.filter_map(|(ticket, entry)| Some((ticket, entry?))).collect()
}

impl Asked {
    fn is_any(&self) -> bool {
        let Self { gone, connects, begins, cover, both_durable, stops } = self;
        *gone
            || *connects
            || begins.is_some()
            || cover.is_some()
            || both_durable.is_some()
            || *stops
    }
}
