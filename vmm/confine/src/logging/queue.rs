//! The queue of log lines, and the one thread that writes them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::STATE;
use super::limit::{Limiter, Line, Place};
use crate::terminal;

/// Upper bound in bytes of the waiting lines. Each line counts as its text and [`OVERHEAD`].
const MAX_WAITING: usize = 256 << 10;
const OVERHEAD: usize = 64;
/// Minimum interval between two reports of dropped lines.
const TELL_DROPPED: Duration = Duration::from_secs(1);

/// Lines that wait to be written to standard error.
#[derive(Default)]
pub(super) struct Queue {
    /// Never held across a system call that can block: device, vCPU and engine threads take it
    /// while they hold locks of their own.
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes threads that wait, for a bounded time, until all is written.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    limiter: Limiter,
    lines: VecDeque<Vec<u8>>,
    waiting: usize,
    dropped: u64,
    /// Whether a writing thread exists or is being started.
    writer: bool,
    /// Whether the writer is inside the system call.
    writing: bool,
    /// Whether standard error refused the last line: no dropped lines are reported until it accepts
    /// one.
    failing: bool,
    /// The message of a panic, which is written last, with the exit code.
    panic: Option<(String, Option<u8>)>,
}

impl State {
    fn push(&mut self, line: Vec<u8>) {
        let weight = line.len() + OVERHEAD;
        if self.waiting + weight > MAX_WAITING {
            self.dropped += 1;
            return;
        }
        self.waiting += weight;
        self.lines.push_back(line);
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.pop_front()?;
        self.waiting -= line.len() + OVERHEAD;
        Some(line)
    }

    fn is_idle(&self) -> bool {
        self.lines.is_empty() && !self.writing && self.panic.is_none()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the line if it may be logged now. Otherwise this line, or a later one of its place,
    /// is logged later.
    pub(super) fn admit(&self, place: Place, line: Line, now: Instant) -> Option<Line> {
        let mut state = self.lock();
        let due = state.limiter.next_due();
        let admitted = state.limiter.admit(place, line, now);
        // The first suppressed line sets the time at which the writer must wake.
        if due.is_none() && state.limiter.next_due().is_some() {
            self.work.notify_one();
        }
        admitted
    }

    /// Adds a line, or drops it if the queue is full.
    pub(super) fn push(&self, line: Vec<u8>) {
        self.lock().push(line);
        self.work.notify_one();
    }

    pub(super) fn take_suppressed(&self) -> Vec<Line> {
        self.lock().limiter.take_all()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    /// Calls `spawn` to start the writing thread, unless there is one.
    pub(super) fn begin_writing(&self, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if std::mem::replace(&mut self.lock().writer, true) {
            return Ok(());
        }
        spawn().inspect_err(|_| self.lock().writer = false)
    }

    pub(super) fn panic(&self, message: String, code: Option<u8>) {
        self.lock().panic.get_or_insert((message, code));
        self.work.notify_one();
    }

    /// Waits until all is written, at most for `patience`.
    pub(super) fn wait_idle(&self, patience: Duration) {
        let state = self.lock();
        let waited = self.idle.wait_timeout_while(state, patience, |state| !state.is_idle());
        drop(waited);
    }

    /// Writes the waiting lines on the calling thread, for use when no thread can be started. Drops
    /// what standard error does not accept within `patience` in total (P9).
    pub(super) fn write_here(&self, error: &impl AsFd, patience: Duration) {
        let begun = Instant::now();
        while let Some(line) = self.take() {
            let left = Timespec::try_from(patience.saturating_sub(begun.elapsed())).ok();
            let mut takes = [PollFd::new(error, PollFlags::OUT)];
            if poll(&mut takes, left.as_ref()).ok() != Some(1) || !write(error, &line) {
                return;
            }
        }
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.lock().pop()
    }

    /// Writes lines forever. `show` formats a line and pushes it.
    pub(super) fn write_all(&self, show: impl Fn(Line)) -> ! {
        let mut tell_dropped = Instant::now();
        loop {
            let mut state = self.lock();
            if let Some(line) = state.pop() {
                self.write_unlocked(state, &line);
                continue;
            }
            if let Some((message, code)) = state.panic.take() {
                state.writing = true;
                drop(state);
                terminal::restore();
                write(&io::stderr(), format!("{message}\n").as_bytes());
                end(code);
            }
            let now = Instant::now();
            let mut due = state.limiter.take_due(now);
            if state.dropped > 0 && !state.failing && now >= tell_dropped {
                tell_dropped = now + TELL_DROPPED;
                due.push(dropped(std::mem::take(&mut state.dropped)));
            }
            if due.is_empty() {
                self.idle.notify_all();
                self.wait(state, now, tell_dropped);
            } else {
                drop(state);
                due.into_iter().for_each(&show);
            }
        }
    }

    fn write_unlocked(&self, mut state: MutexGuard<'_, State>, line: &[u8]) {
        state.writing = true;
        drop(state);
        let written = write(&io::stderr(), line);
        let mut state = self.lock();
        state.writing = false;
        state.failing = !written;
        state.dropped += u64::from(!written);
    }

    fn wait(&self, state: MutexGuard<'_, State>, now: Instant, tell_dropped: Instant) {
        let tell = (state.dropped > 0 && !state.failing).then_some(tell_dropped);
        match state.limiter.next_due().into_iter().chain(tell).min() {
            None => drop(self.work.wait(state)),
            Some(until) => {
                let timeout = until.saturating_duration_since(now);
                drop(self.work.wait_timeout(state, timeout));
            }
        }
    }
}

/// Ends the process after a panic.
pub(super) fn end(code: Option<u8>) -> ! {
    match code {
        Some(code) => std::process::exit(code.into()),
        None => std::process::abort(),
    }
}

fn dropped(count: u64) -> Line {
    let text = format!("{count} log lines are missing: standard error did not accept them in time");
    Line { level: Level::Warn, target: STATE.to_owned(), text }
}

/// Writes to standard error without the lock of std, which a thread that panics may hold. Returns
/// whether all bytes were written.
fn write(error: &impl AsFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(error, bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // A failure of standard error cannot be reported anywhere.
            Err(_) => return false,
        }
    }
    true
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::io::{PipeReader, Read, pipe};

    use super::*;

    /// A full pipe has room again once this many bytes are read.
    const PAGE: usize = 4096;
    /// The capacity of a pipe (pipe(7)).
    const FULL: usize = 16 * PAGE;

    /// Reads a page every 100 ms.
    fn take_slowly(mut reader: PipeReader) {
        let mut page = vec![0; PAGE];
        while reader.read_exact(&mut page).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// P9. Fails if each line gets the whole time-out: the end of the process would take as long as
    /// its reader wants.
    #[test]
    fn last_lines_wait_for_a_slow_reader_no_longer_than_all_in_all() {
        const LINES: usize = 100;
        let (reader, mut writer) = pipe().unwrap();
        let queue = Queue::default();
        (0..LINES).for_each(|_| queue.push(vec![0; PAGE / 2]));
        std::thread::spawn(move || take_slowly(reader));
        io::Write::write_all(&mut writer, &[0; FULL]).unwrap();
        queue.write_here(&writer, Duration::from_millis(300));
        assert!(!queue.is_idle(), "{LINES} lines are not taken in so short a time");
    }
}
