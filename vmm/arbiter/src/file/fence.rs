//! Whether nobody has won a later term: the directory is read before effects, each time that the last answer is older than
//! [`GOOD_FOR`] (P2). There is no lease here: the directory's own answer decides, and one that does not answer leaves it open.
//!
//! An answer that is older than [`ANSWER_MAX_AGE`] is not acted upon, and whoever wins a term keeps still for longer than that
//! ([`settle`]). Where the directory is too slow for it, the holder writes down which age it needs (its *pace*), makes sure
//! that nobody had won the next term when that was written, and only then acts on older answers; the winner reads it after it
//! has won.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use io_gate::host::Term;
use io_gate_host::{ANSWER_MAX_AGE, Fence, Permission};
use kemari_confine::threads;

use super::records::Records;
use crate::ArbiterError;

/// How long a look at the directory is good for: the effects of a batch share one, which takes longer than a frame does.
pub(super) const GOOD_FOR: Duration = Duration::from_micros(200);
/// How long whoever has won a term does nothing with it, at least.
pub(super) const SETTLE: Duration = Duration::from_millis(2);
/// P2: a winner waits longer than the oldest answer that a loser may still act on: by so many times.
const WAITS: u32 = 2;
/// A directory that is slower than this holds effects up.
pub(super) const LONGEST_PACE: Duration = Duration::from_secs(1);
/// So many answers, one after the other, have to be too old before a slower pace is written down.
const SLOW: u32 = 3;

const _: () = assert!(GOOD_FOR.as_micros() <= ANSWER_MAX_AGE.as_micros(), "P2");
const _: () = assert!(SETTLE.as_micros() >= WAITS as u128 * ANSWER_MAX_AGE.as_micros(), "P2");
const _: () = assert!(WAITS > 1, "P2: clocks of two hosts run at rates that differ a little");

/// How long to keep still after a term was won whose former holders act on answers as old as `pace`.
pub(super) fn settle(pace: Duration) -> Duration {
    SETTLE.max(WAITS * pace)
}

/// See the module.
#[derive(Debug)]
pub(super) struct TermFence {
    records: Records,
    holder: String,
    term: AtomicU64,
    /// In nanoseconds: the oldest answer that is acted upon.
    max_age: AtomicU64,
    /// How many answers in a row were too old.
    slow: AtomicU32,
    /// The shortest that one of them took, in nanoseconds.
    took: AtomicU64,
    /// Held by whoever changes what is written down about the pace, across that: threads that claim terms, and the one that
    /// keeps the pace; none that performs.
    pacing: Mutex<()>,
    /// Where a slower pace is asked for: performing threads may not write files.
    paces: SyncSender<Duration>,
    trouble: Mutex<String>,
}

impl TermFence {
    /// One for a process that holds nothing yet, and the thread that writes down its pace.
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
            trouble: Mutex::new("no term has been won here".to_owned()),
        });
        let weak = Arc::downgrade(&fence);
        threads::start("arbiter", move || keep_pace(&weak, &asked))?;
        Ok(fence)
    }

    /// `term` is this process's, and its winner has kept still.
    pub(super) fn won(&self, term: Term) {
        self.term.fetch_max(term.0, Ordering::SeqCst);
    }

    fn look(&self) -> Result<Permission, ArbiterError> {
        loop {
            let ours = Term(self.term.load(Ordering::SeqCst));
            match self.look_at(ours)? {
                // This process has won a further term meanwhile, and has told its own former one.
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
        // P2: the number is not enough. This term may have been won again, in a directory that went back.
        let succeeded = match self.records.term_and_succeeded(ours)? {
            Some((record, succeeded)) if record.holder == self.holder => succeeded,
            Some((record, _)) => {
                self.note(record.to_string());
                return Ok(Permission::Lost);
            }
            None => return Err(ArbiterError::missing(self.records.path(), ours)),
        };
        // Whoever wins the next term has a record before it tells this one.
        Ok(match self.records.term(ours.next())? {
            Some(next) if next.holder != self.holder => {
                self.note(next.to_string());
                Permission::Lost
            }
            // Made by this very process, which is about to learn whether it has won.
            Some(_) if succeeded => self.who_succeeded(ours)?,
            None if succeeded => {
                self.note(format!("a term after {ours} has been won by another"));
                Permission::Lost
            }
            Some(_) | None => Permission::Granted,
        })
    }

    /// P2: whether it is this process itself that has succeeded `ours`. A record of this process after it proves nothing: where terms have gaps,
    /// it may have been made too late, after another had won a term beyond it.
    fn who_succeeded(&self, ours: Term) -> Result<Permission, ArbiterError> {
        match self.records.later_than(ours)? {
            Some(last) if last.holder == self.holder => Ok(Permission::Granted),
            Some(last) => {
                self.note(last.to_string());
                Ok(Permission::Lost)
            }
            // The record that was there a moment ago is gone.
            None => Err(ArbiterError::missing(self.records.path(), ours.next())),
        }
    }

    /// Counts an answer that took `time`; asks for a slower pace when all are too old.
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
            // In whole microseconds, as it is written down.
            let pace = Duration::from_micros(u64::try_from(pace.as_micros()).unwrap_or(u64::MAX));
            // One that is asked for already is as good.
            let _ = self.paces.try_send(pace.min(LONGEST_PACE));
        }
    }

    /// P2: from when this returns, answers of that age are acted upon. Whoever wins the next term reads of it: it was written
    /// down before a look that has found nobody.
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
                "arbiter {}: it answers slowly; whoever takes over waits {:?} longer",
                self.records.path().display(),
                settle(pace)
            );
        }
        Ok(())
    }

    /// `term` has been won and its winner has kept still: what was written down by holders of earlier terms is of no use any
    /// more, and what this process has written holds on.
    pub(super) fn renew_pace(&self, term: Term) -> Result<(), ArbiterError> {
        let _pacing = self.pacing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.max_age() {
            pace if pace > ANSWER_MAX_AGE => self.records.set_pace(term, pace)?,
            _ => {}
        }
        self.records.forget_paces_before(term)
    }

    fn note(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
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
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
