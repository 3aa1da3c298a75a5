//! The fence of a `file:` arbiter: checks that no other process has won a later term (P2).
//!
//! Before effects, the fence reads the directory if its last answer is older than [`GOOD_FOR`].
//! There is no lease: the directory's answer decides, and without an answer the right is unknown.
//!
//! A holder does not act on an answer older than [`ANSWER_MAX_AGE`]. The winner of a term waits
//! longer than that before it acts ([`settle`]). For a slower directory, the holder writes down the
//! age that it needs (its *pace*), checks that no other process had won the next term by then, and
//! only then acts on older answers. A winner reads the pace after its win.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use io_gate::host::Term;
use io_gate_host::{ANSWER_MAX_AGE, Fence, Permission};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use super::records::Records;
use crate::ArbiterError;

/// How long one look at the directory is valid. The effects of a batch share it: a look takes
/// longer than sending a frame.
pub(super) const GOOD_FOR: Duration = Duration::from_micros(200);
/// Minimum time that the winner of a term waits before it acts.
pub(super) const SETTLE: Duration = Duration::from_millis(2);
/// P2: factor by which a winner's wait exceeds the age of the oldest answer that a loser may still
/// act on.
const WAITS: u32 = 2;
/// Upper bound of the pace: a slower directory delays effects.
pub(super) const LONGEST_PACE: Duration = Duration::from_secs(1);
/// Number of consecutive late answers before the holder asks for a slower pace.
const SLOW: u32 = 3;

const _: () = assert!(GOOD_FOR.as_micros() <= ANSWER_MAX_AGE.as_micros(), "P2");
const _: () = assert!(SETTLE.as_micros() >= WAITS as u128 * ANSWER_MAX_AGE.as_micros(), "P2");
const _: () = assert!(WAITS > 1, "P2: clocks of two hosts run at rates that differ a little");

/// How long the winner of a term waits if former holders act on answers as old as `pace`.
pub(super) fn settle(pace: Duration) -> Duration {
    SETTLE.max(WAITS * pace)
}

/// The fence of one process.
#[derive(Debug)]
pub(super) struct TermFence {
    records: Records,
    holder: String,
    term: AtomicU64,
    /// Age in nanoseconds of the oldest answer that this process acts on.
    max_age: AtomicU64,
    /// Number of consecutive late answers.
    slow: AtomicU32,
    /// Duration in nanoseconds of the fastest of those answers.
    took: AtomicU64,
    /// Held while the written pace changes, across file operations of the directory. The threads
    /// that claim terms and the thread that keeps the pace take it; no thread that performs effects
    /// does.
    pacing: Mutex<()>,
    /// Requests for a slower pace: threads that perform effects may not write files. Holds at most
    /// one.
    paces: SyncSender<Duration>,
    reason: Mutex<String>,
}

impl TermFence {
    /// Creates the fence of a process that holds no term yet, and starts the thread that writes
    /// down its pace.
    pub(super) fn start(records: Records, holder: String) -> std::io::Result<Arc<Self>> {
        let (paces, asked) = sync_channel(1);
        let fence = Arc::new(Self {
            records,
            holder,
            term: AtomicU64::new(0),
            max_age: AtomicU64::new(nanos(ANSWER_MAX_AGE)),
            slow: AtomicU32::new(0),
            took: AtomicU64::new(0),
            pacing: Mutex::default(),
            paces,
            reason: Mutex::new("this process has not won a term".to_owned()),
        });
        let weak = Arc::downgrade(&fence);
        threads::start("pace", Role::Main, move || keep_pace(&weak, &asked))?;
        Ok(fence)
    }

    /// Records that this process has won `term` and has waited.
    pub(super) fn won(&self, term: Term) {
        self.term.fetch_max(term.0, Ordering::SeqCst);
    }

    fn look(&self) -> Result<Permission, ArbiterError> {
        loop {
            let ours = Term(self.term.load(Ordering::SeqCst));
            match self.look_at(ours)? {
                // This process has won a later term meanwhile and has marked its own former one.
                Permission::Lost if self.term.load(Ordering::SeqCst) != ours.0 => {}
                answer => return Ok(answer),
            }
        }
    }

    fn look_at(&self, ours: Term) -> Result<Permission, ArbiterError> {
        if ours == Term(0) {
            return Ok(Permission::Unknown);
        }
        self.records.check_place()?;
        // P2: the number alone is not enough. After the directory was set back, another process may
        // have won the same term.
        let succeeded = match self.records.term_and_succeeded(ours)? {
            Some((record, succeeded)) if record.holder == self.holder => succeeded,
            Some((record, _)) => {
                self.note(record.to_string());
                return Ok(Permission::Lost);
            }
            None => return Err(ArbiterError::missing(self.records.path(), ours)),
        };
        // Read the next term second: its winner creates its record before it marks this one.
        Ok(match self.records.term(ours.next())? {
            Some(next) if next.holder != self.holder => {
                self.note(next.to_string());
                Permission::Lost
            }
            // This process created that record and is about to learn whether it has won.
            Some(_) if succeeded => self.who_succeeded(ours)?,
            None if succeeded => {
                self.note(format!("another process has won a later term than {ours}"));
                Permission::Lost
            }
            Some(_) | None => Permission::Granted,
        })
    }

    /// P2: whether this process itself has succeeded `ours`. A later record of this process is no
    /// proof: where terms have gaps, this process may have created it after another process won a
    /// term beyond it.
    fn who_succeeded(&self, ours: Term) -> Result<Permission, ArbiterError> {
        match self.records.later_than(ours)? {
            Some(last) if last.holder == self.holder => Ok(Permission::Granted),
            Some(last) => {
                self.note(last.to_string());
                Ok(Permission::Lost)
            }
            // The record existed a moment ago and is gone.
            None => Err(ArbiterError::missing(self.records.path(), ours.next())),
        }
    }

    /// Counts an answer that took `time`; requests a slower pace after [`SLOW`] late answers.
    fn count(&self, time: Duration) {
        if time <= self.max_age() {
            self.slow.store(0, Ordering::Relaxed);
            return;
        }
        let first = self.slow.fetch_add(1, Ordering::Relaxed) == 0;
        let least = if first { u64::MAX } else { self.took.load(Ordering::Relaxed) };
        self.took.store(least.min(nanos(time)), Ordering::Relaxed);
        if self.slow.load(Ordering::Relaxed) >= SLOW {
            let pace = 2 * Duration::from_nanos(self.took.load(Ordering::Relaxed));
            // Whole microseconds, as in the file.
            let pace = Duration::from_micros(u64::try_from(pace.as_micros()).unwrap_or(u64::MAX));
            // A full channel already holds a request, and one is enough.
            let _ = self.paces.try_send(pace.min(LONGEST_PACE));
        }
    }

    /// P2: after this returns, this process acts on answers of that age. The winner of the next
    /// term reads this pace: it is written before a look that finds no later term.
    fn set_pace(&self, pace: Duration) -> Result<(), ArbiterError> {
        let _pacing = self.pacing.lock().unwrap_or_else(PoisonError::into_inner);
        if pace <= self.max_age() {
            return Ok(());
        }
        self.records.set_pace(Term(self.term.load(Ordering::SeqCst)), pace)?;
        if self.look()? == Permission::Granted {
            self.max_age.store(nanos(pace), Ordering::SeqCst);
            self.slow.store(0, Ordering::Relaxed);
            log::warn!(
                "arbiter {}: it answers slowly; a takeover waits {:?} longer",
                self.records.path().display(),
                settle(pace)
            );
        }
        Ok(())
    }

    /// Call this after this process has won `term` and has waited: removes the paces of earlier
    /// holders, which have no effect any more, and writes this process's own again.
    pub(super) fn renew_pace(&self, term: Term) -> Result<(), ArbiterError> {
        let _pacing = self.pacing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.max_age() {
            pace if pace > ANSWER_MAX_AGE => self.records.set_pace(term, pace)?,
            _ => {}
        }
        self.records.forget_paces_before(term)
    }

    fn note(&self, reason: String) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

fn keep_pace(fence: &Weak<TermFence>, asked: &Receiver<Duration>) {
    while let Ok(pace) = asked.recv() {
        let Some(fence) = fence.upgrade() else { return };
        if let Err(error) = fence.set_pace(pace) {
            log::debug!("arbiter: {error}");
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Fence for TermFence {
    fn good_for(&self) -> Duration {
        GOOD_FOR
    }

    fn max_age(&self) -> Duration {
        Duration::from_nanos(self.max_age.load(Ordering::SeqCst))
    }

    fn ask(&self) -> Permission {
        let asked = Instant::now();
        let answer = self.look();
        self.count(asked.elapsed());
        answer.unwrap_or_else(|error| {
            self.note(error.to_string());
            Permission::Unknown
        })
    }

    fn term(&self) -> Option<u64> {
        Some(self.term.load(Ordering::SeqCst))
    }

    fn holder(&self) -> &str {
        &self.holder
    }

    fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
