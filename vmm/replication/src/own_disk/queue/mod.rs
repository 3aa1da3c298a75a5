//! The standby's queue over real files (R1, R2, R5): `ft_core::disks::Queue` with a thread that
//! performs its entries, makes marks, syncs and writes the sidecars.
//!
//! ```text
//!   session ─ begin, receive, commit, cover ─► state (a lock) ─► thread `own-disks` ─► files
//!      ▲                                                              │
//!      └────────────────────────────── News ◄─────────────────────────┘
//! ```
//!
//! The session's calls block for a copy of memory at most: no file is touched under the lock. The
//! queue is bounded by the bytes that the primary may list; everything else that waits for the
//! thread is one flag or one number each.

mod pace;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ft_core::Epoch;
use ft_core::disks::{
    Area, Cover, Entry, Extent, Marks, Operation, Payload, Queue, QueueError, Report, Seq, Sidecar,
};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use super::OwnDisk;
use worker::Worker;

/// The bounds and the times of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Bytes of operations that are not performed.
    pub limit: u64,
    /// How long performed operations may wait for a sync, if no flush comes.
    pub sync_after: Duration,
    /// How long a durable entry may be missing from the sidecar.
    pub record_after: Duration,
}

/// What the session has to know. A report supersedes those before.
#[derive(Debug, PartialEq)]
pub enum News {
    /// What is left of earlier sessions is performed, and the images are as described: the sidecar
    /// and the marks (`None`: damaged) of each disk.
    Described(Vec<(Sidecar, Option<Area>)>),
    /// What is performed and durable.
    Report(Report),
    /// The images differ at this comparison.
    Different(Seq, Extent),
    /// The images are equal to the primary's, durably, and their sidecars say so (R6).
    Covered,
    /// A file has failed. Nothing more is performed (R5).
    Failed(String),
}

/// What a primary sent cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// No list has begun.
    #[error("expected the beginning of a list of disk operations, found its entries")]
    NotBegun,
    /// A list begins before the images were described.
    #[error("expected a list to begin after the images were described, found one before")]
    NotDescribed,
    /// An entry is for no disk, or lies beyond its end.
    #[error("entry {seq}: expected bytes of a disk of this machine, found {found:?}")]
    Extent {
        /// The entry.
        seq: u64,
        /// What was found.
        found: Extent,
    },
    /// An entry has more or fewer bytes than its extent.
    #[error("entry {seq}: expected {expected} bytes, found {found}")]
    Bytes {
        /// The entry.
        seq: u64,
        /// The length of its extent.
        expected: u64,
        /// Its bytes.
        found: u64,
    },
    /// There is not one cover for each disk.
    #[error("expected the state of {expected} disks at the covering checkpoint, found {found}")]
    Covers {
        /// The number of disks.
        expected: usize,
        /// What was found.
        found: usize,
    },
    /// The list does not fit.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// An image with its sidecar and its marks.
#[derive(Debug)]
pub struct MarkedDisk {
    /// The files.
    pub disk: OwnDisk,
    /// The marks.
    pub marks: Marks,
}

/// What a queue leaves when it ends.
#[derive(Debug)]
pub struct Finished {
    /// The disks, with their locks.
    pub disks: Vec<MarkedDisk>,
    /// What is left to perform.
    pub queue: Option<Queue>,
    /// Why nothing more may be performed, if a file has failed.
    pub failed: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct StandbyQueue {
    shared: Arc<Shared>,
    sizes: Vec<u64>,
    limit: u64,
    thread: Option<JoinHandle<Finished>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for copies of memory only, never across a system call on a file.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Option<Queue>,
    /// The number of the list: a list's numbers are its own.
    list: u64,
    /// Since the images were described, no list has begun.
    described: bool,
    begun: bool,
    asked: Asked,
}

/// What the thread has still to take note of.
#[derive(Debug, Default)]
struct Asked {
    gone: bool,
    connects: bool,
    /// A list has begun: whether blocks will be overwritten, and the seed of its hashes.
    begins: Option<(bool, u64)>,
    cover: Option<Vec<Cover>>,
    both_durable: Option<Seq>,
    stops: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_one();
        result
    }
}

impl StandbyQueue {
    /// Starts the thread. It calls `tell` with no lock held; `tell` does not block.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        disks: Vec<OwnDisk>,
        options: QueueOptions,
        tell: impl Fn(News) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let sizes = disks.iter().map(|disk| disk.image.id().size).collect();
        let worker = Worker::new(shared.clone(), disks, options, Box::new(tell));
        let thread = threads::start("own-disks", Role::Lane, move || worker.run())?;
        Ok(Self { shared, sizes, limit: options.limit, thread: Some(thread) })
    }

    /// A primary has connected. [`News::Described`] follows when everything of earlier sessions is
    /// performed.
    pub fn connect(&self) {
        self.shared.change(|state| {
            (state.begun, state.described) = (false, false);
            state.asked.connects = true;
        });
    }

    /// The primary is gone: what is not committed never happened. The rest is performed.
    pub fn peer_gone(&self) {
        self.shared.change(|state| {
            (state.begun, state.described) = (false, false);
            state.queue.iter_mut().for_each(Queue::drop_uncommitted);
            let asked = &mut state.asked;
            (asked.connects, asked.gone) = (false, true);
            (asked.cover, asked.both_durable) = (None, None);
        });
    }

    /// A list begins behind `last` (R12). If blocks will be overwritten, the images are durably
    /// inconsistent before the first one (R8). `seed` is that of the session's hashes.
    ///
    /// # Errors
    /// When the images were not described since the primary has connected: entries of an earlier
    /// list may be under way.
    pub fn begin(&self, last: Seq, resync: bool, seed: u64) -> Result<(), ReceiveError> {
        let limit = self.limit;
        self.shared.change(|state| {
            if !std::mem::take(&mut state.described) {
                return Err(ReceiveError::NotDescribed);
            }
            state.queue = Some(Queue::new(limit, last));
            (state.begun, state.asked.begins) = (true, Some((resync, seed)));
            state.list += 1;
            Ok(())
        })
    }

    /// Entries have come: of a checkpoint, or before the first one.
    ///
    /// # Errors
    /// When they do not fit the disks or the list, or are too many.
    pub fn receive(&self, epoch: Option<Epoch>, entries: Vec<Entry>) -> Result<(), ReceiveError> {
        entries.iter().try_for_each(|entry| self.check(entry))?;
        self.shared.change(|state| match &mut state.queue {
            Some(queue) if state.begun => Ok(queue.receive(epoch, entries)?),
            _ => Err(ReceiveError::NotBegun),
        })
    }

    /// The checkpoint of `epoch` is committed and applied, and the next one is not: payloads that
    /// are in its memory are copied now (R2).
    ///
    /// # Errors
    /// When a payload is not there.
    pub fn commit(
        &self,
        epoch: Epoch,
        memory: &dyn Fn(u64, u64) -> Option<Vec<u8>>,
    ) -> Result<(), ReceiveError> {
        self.shared.change(|state| match &mut state.queue {
            Some(queue) => Ok(queue.commit(epoch, memory)?),
            None => Ok(()),
        })
    }

    /// A checkpoint that covers the resync is held: [`News::Covered`] follows when the images are
    /// durable up to it, and say so.
    ///
    /// # Errors
    /// When there is not one for each disk.
    pub fn cover(&self, covers: Vec<Cover>) -> Result<(), ReceiveError> {
        let (expected, found) = (self.sizes.len(), covers.len());
        if expected != found {
            return Err(ReceiveError::Covers { expected, found });
        }
        self.shared.change(|state| state.asked.cover = Some(covers));
        Ok(())
    }

    /// Both sides' sidecars say that everything up to `seq` is durable: its marks may go.
    pub fn both_durable(&self, seq: Seq) {
        self.shared
            .change(|state| state.asked.both_durable = state.asked.both_durable.max(Some(seq)));
    }

    /// Ends the thread after what it is performing, and returns what is left. Waits for storage.
    ///
    /// # Panics
    /// When the thread has panicked.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        self.shared.change(|state| state.asked.stops = true);
        let thread = self.thread.take().expect("it is taken here only");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A primary's entries are of another host: they are not trusted.
    fn check(&self, entry: &Entry) -> Result<(), ReceiveError> {
        let Some(extent) = entry.operation.extent() else { return Ok(()) };
        let seq = entry.seq.0;
        let size = self.sizes.get(usize::from(extent.disk)).copied().unwrap_or(0);
        let end = extent.start.checked_add(extent.len);
        let is_on_disk = extent.len > 0 && end.is_some_and(|end| end <= size);
        // A comparison reads its bytes into memory.
        let is_small =
            extent.len <= self.limit || matches!(entry.operation, Operation::Zero { .. });
        if !is_on_disk || !is_small {
            return Err(ReceiveError::Extent { seq, found: extent });
        }
        let bytes = match &entry.operation {
            Operation::Write { payload: Payload::Inline(bytes), .. }
            | Operation::Copy { bytes, .. } => bytes.len() as u64,
            _ => extent.len,
        };
        match bytes == extent.len {
            true => Ok(()),
            false => Err(ReceiveError::Bytes { seq, expected: extent.len, found: bytes }),
        }
    }
}

impl Drop for StandbyQueue {
    fn drop(&mut self) {
        self.shared.change(|state| state.asked.stops = true);
    }
}
