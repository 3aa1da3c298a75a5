//! The recorder: a buffer of a fixed size, and the thread that writes its records.
//!
//! A thread that records does not wait for the files (P7): a full buffer drops the record and
//! counts it. There is one exception. Before a standby sends an acknowledgement, it waits up to 50
//! ms until the kernel has the acknowledgement's record: the evidence then survives if the standby
//! dies right afterwards. If the files are slower than that, no thread waits again until the writer
//! has caught up.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_gate::host::{EffectId, Term};
use io_gate_host::own_files::{self, FileId};
use io_gate_host::{Noted, Observer};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_support::identity::holder_name;
use rustix::time::{ClockId, clock_gettime};

use super::entry::{Entry, Event};
use super::files::{AuditError, AuditSpec, Files};
use super::format::{Header, Side};
use super::summary::Summary;

/// Upper bound of the records that wait to be written (P9). There are two such buffers.
pub(super) const CAPACITY: usize = 1 << 15;
/// How long the writer gathers records: at its death, a process has performed at most this much
/// that is not recorded.
const GATHER: Duration = Duration::from_millis(1);
/// Time limit of an acknowledgement's wait for its record.
const SETTLE: Duration = Duration::from_millis(50);
/// Time limit of the wait for the last records at the end of the process.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// Records the events of one process.
pub struct Recorder {
    /// Never held across a system call that can block: the gate takes it while it holds the
    /// ledger's lock.
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes threads that wait for the writer.
    written: Condvar,
    /// The start of the log, by the clock of `Instant` and in nanoseconds of CLOCK_MONOTONIC.
    origin: (Instant, u64),
}

/// Owned by the writing thread alone, outside of the lock: a file system may hang.
struct Writer {
    files: Files,
    taken: Vec<Entry>,
    failing: bool,
}

impl Writer {
    fn write(&mut self) {
        let result = self.files.append(&self.taken);
        self.taken.clear();
        match &result {
            Err(error) if !self.failing => log::error!(
                "the audit log cannot be written, and will be incomplete: {error}; free some disk space, or check the \
                 directory of --audit"
            ),
            Ok(()) if self.failing => log::warn!("the audit log can be written again"),
            _ => {}
        }
        self.failing = result.is_err();
    }
}

struct State {
    waiting: Vec<Entry>,
    /// Number of records dropped since the last record that was kept.
    dropped: u64,
    /// The number of the next record.
    next: u64,
    /// Records below this number have been given to the kernel.
    written: u64,
    /// The id of the effect staged last.
    last_staged: u64,
    /// The last term that was won.
    term: u64,
    fenced: bool,
    /// Whether the writer waits without a time-out and must be woken. Otherwise no wake-up, a
    /// system call, is needed.
    writer_waits: bool,
    /// Whether a thread waits for the writer.
    urgent: bool,
    /// Whether a wait for the writer has timed out: until the writer has caught up, no thread waits
    /// again.
    late: bool,
    ended: bool,
}

impl Recorder {
    pub(super) fn new(monotonic: u64) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Vec::with_capacity(CAPACITY),
                dropped: 0,
                next: 0,
                written: 0,
                last_staged: 0,
                term: 0,
                fenced: false,
                writer_waits: false,
                urgent: false,
                late: false,
                ended: false,
            }),
            work: Condvar::new(),
            written: Condvar::new(),
            origin: (Instant::now(), monotonic),
        }
    }

    /// Records an event that is not about an effect.
    pub fn record(&self, event: Event) {
        let mut state = self.lock();
        if let Event::TermWon { term, .. } = event {
            state.term = term;
        }
        state.push(self.now(), event);
        self.wake(state);
    }

    /// Records an event and waits up to 50 ms until the kernel has the record, so that it survives
    /// this process. Do not call it on a thread that runs the guest.
    pub fn settle(&self, event: Event) {
        let mut state = self.lock();
        state.push(self.now(), event);
        if state.late {
            return self.wake(state);
        }
        let target = state.next;
        state.urgent = true;
        state.writer_waits = false;
        self.work.notify_one();
        let (mut state, timeout) = self
            .written
            .wait_timeout_while(state, SETTLE, |state| state.written < target)
            .unwrap_or_else(PoisonError::into_inner);
        state.late |= timeout.timed_out();
    }

    fn now(&self) -> u64 {
        let (origin, monotonic) = self.origin;
        monotonic + u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let wake = std::mem::take(&mut state.writer_waits);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    fn write(&self, files: Files) {
        let mut writer = Writer { files, taken: Vec::with_capacity(CAPACITY), failing: false };
        while self.wait_for_work() {
            self.flush(&mut writer);
        }
    }

    /// Writes the waiting records.
    fn flush(&self, writer: &mut Writer) {
        let mut state = self.lock();
        std::mem::swap(&mut state.waiting, &mut writer.taken);
        let until = state.next;
        drop(state);
        writer.write();
        let mut state = self.lock();
        // Records that could not be written leave a gap in the numbers, which a reader reports.
        state.written = until;
        state.late &= state.waiting.len() > CAPACITY / 2;
        if std::mem::take(&mut state.urgent) {
            self.written.notify_all();
        }
    }

    /// Waits for a record, then a little for more records. `false`: there will be no more.
    fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.ended {
                return false;
            }
            state.writer_waits = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writer_waits = false;
        let gather =
            |state: &mut State| !state.urgent && !state.ended && state.waiting.len() < CAPACITY / 2;
        let gathered = self.work.wait_timeout_while(state, GATHER, gather);
        drop(gathered.unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// The number of waiting records and of dropped ones.
    #[cfg(test)]
    pub(super) fn backlog(&self) -> (usize, u64) {
        let state = self.lock();
        (state.waiting.len(), state.dropped)
    }

    /// Writes all waiting records, then the last record.
    #[cfg(test)]
    pub(super) fn finish(&self, files: Files) {
        let mut writer = Writer { files, taken: Vec::with_capacity(CAPACITY), failing: false };
        self.flush(&mut writer);
        self.record(Event::Fenced);
        self.lock().push(self.now(), Event::Ended);
        self.flush(&mut writer);
    }

    /// Adds the last record and waits up to 1 s until it is written.
    fn end(&self) {
        let mut state = self.lock();
        state.push(self.now(), Event::Ended);
        state.ended = true;
        state.urgent = true;
        let target = state.next;
        self.work.notify_one();
        // The time limit keeps a stalled disk from blocking the exit.
        let _ =
            self.written.wait_timeout_while(state, LAST_RECORDS, |state| state.written < target);
    }
}

impl State {
    fn push(&mut self, time: u64, event: Event) {
        if self.ended {
            return;
        }
        // Reserve room for the record that reports dropped ones.
        if self.waiting.len() + 2 > CAPACITY {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let count = std::mem::take(&mut self.dropped);
            self.keep(time, Event::Dropped { count });
        }
        self.keep(time, event);
    }

    fn keep(&mut self, time: u64, event: Event) {
        self.waiting.push(Entry { sequence: self.next, time, event });
        self.next += 1;
    }
}

impl Observer for Recorder {
    fn staged(&self, effects: &[Noted]) {
        if effects.is_empty() {
            return;
        }
        let mut state = self.lock();
        let time = self.now();
        for Noted { id: EffectId(id), slot, op, epoch } in effects.iter().copied() {
            if id > state.last_staged {
                let previous = std::mem::replace(&mut state.last_staged, id);
                state.push(time, Event::Staged { id, slot, op, epoch: epoch.0, previous });
            }
        }
        self.wake(state);
    }

    fn held(&self, next: EffectId) {
        self.record(Event::Held { next: next.0 });
    }

    fn opened(&self, term: Term) {
        self.record(Event::Opened { term: term.0 });
    }

    fn adopted(&self, effects: &[Noted], next: EffectId) {
        let mut state = self.lock();
        let time = self.now();
        for Noted { id, slot, op, epoch } in effects.iter().copied() {
            state.push(time, Event::Adopted { id: id.0, slot, op, epoch: epoch.0 });
        }
        state.last_staged = next.0.saturating_sub(1);
        self.wake(state);
    }

    fn performing(&self, effect: Noted, replay: bool, term: Option<u64>) -> bool {
        let mut state = self.lock();
        if state.fenced {
            return false;
        }
        let Noted { id, slot, op, epoch } = effect;
        let term = term.unwrap_or(state.term);
        let event = Event::Performing { id: id.0, slot, op, epoch: epoch.0, term, replay };
        state.push(self.now(), event);
        self.wake(state);
        true
    }

    fn withheld(&self, effect: Noted) {
        self.record(Event::Withheld { id: effect.id.0 });
    }

    fn returned(&self, effect: Noted) {
        self.record(Event::Returned { id: effect.id.0 });
    }

    fn cancelled(&self, effects: &[EffectId]) {
        let mut state = self.lock();
        let time = self.now();
        effects.iter().for_each(|id| state.push(time, Event::Cancelled { id: id.0 }));
        self.wake(state);
    }

    fn fenced_off(&self) {
        self.lock().fenced = true;
        self.record(Event::Fenced);
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("next", &self.lock().next).finish_non_exhaustive()
    }
}

/// The log of this process. Dropping it writes the last record.
pub struct AuditLog {
    recorder: Arc<Recorder>,
    /// The files, to remove those that are still empty at the end.
    spare: Vec<(PathBuf, File)>,
    /// Whether files with records stay at the end.
    kept: AtomicBool,
}

impl AuditLog {
    /// Creates the files and starts the thread that writes them. Call it before other threads give
    /// up rights.
    ///
    /// # Errors
    /// When the files cannot be created, or the thread cannot be started.
    pub fn start(spec: &AuditSpec, vm: &str, side: Side) -> Result<Self, AuditError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let monotonic = nanos(ClockId::Monotonic);
        let header = Header {
            vm: vm.to_owned(),
            holder: holder_name(side.name()),
            boot: boot.trim().to_owned(),
            side,
            number: 0,
            realtime: nanos(ClockId::Realtime),
            monotonic,
            before: Summary::default(),
        };
        let files = Files::create(spec, header)?;
        let spare = files.names().map_err(|source| AuditError {
            what: "look at",
            path: spec.base.display().to_string(),
            source,
        })?;
        let recorder = Arc::new(Recorder::new(monotonic));
        let writer = recorder.clone();
        threads::start("audit", Role::Audit, move || writer.write(files)).map_err(|source| {
            AuditError {
                what: "start the thread that writes",
                path: spec.base.display().to_string(),
                source,
            }
        })?;
        Ok(Self { recorder, spare, kept: AtomicBool::new(true) })
    }

    /// Sets whether files with records stay at the end. A failed start removes its files.
    pub fn keep(&self, kept: bool) {
        self.kept.store(kept, Ordering::Relaxed);
    }

    /// The recorder to give records to.
    #[must_use]
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.recorder.end();
        let spare = std::mem::take(&mut self.spare);
        let kept = self.kept.load(Ordering::Relaxed);
        let (done, is_done) = sync_channel(1);
        let remove = move || {
            spare.iter().for_each(|(path, file)| remove_unless_kept(path, file, kept));
            let _ = done.send(());
        };
        // Remove the files on a thread of its own: the file system may hang, and the process must
        // not. A file that stays does no harm, since a reader skips it.
        if threads::start("audit-end", Role::Main, remove).is_ok() {
            let _ = is_done.recv_timeout(LAST_RECORDS);
        }
    }
}

fn remove_unless_kept(path: &Path, file: &File, kept: bool) {
    let Ok(found) = file.metadata() else { return };
    if !kept || found.len() == 0 {
        own_files::give_back(path, FileId::of(&found));
    }
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}
