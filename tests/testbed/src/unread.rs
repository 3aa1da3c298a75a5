//! Leaves a pipe of a process unread: stops its reader and fills the pipe.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};

/// The bytes that fill a pipe: empty lines, which the harness ignores in output.
const FILLING: [u8; 4096] = [b'\n'; 4096];

/// A valve between a pipe and the thread that reads it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Valve(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Whether the reader waits at the valve and does not read.
    waits: bool,
    /// Whether the reader has reached the end of the pipe.
    ended: bool,
}

impl Valve {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder panics")
    }

    /// The reader calls this before each read. Blocks while the valve is closed.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        while state.closed {
            state.waits = true;
            self.0.changed.notify_all();
            state = self.0.changed.wait(state).expect("no holder panics");
        }
        state.waits = false;
    }

    /// The reader calls this at the end of the pipe.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.0.changed.notify_all();
    }

    /// Opens the valve: the reader continues.
    pub(crate) fn open(&self) {
        self.state().closed = false;
        self.0.changed.notify_all();
    }

    /// Stops the reader and fills the pipe, which is descriptor `fd` of process `pid`. A writer
    /// then blocks, or gets EAGAIN.
    pub(crate) fn close(&self, pid: u32, fd: u32, patience: Duration) -> Result<()> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe =
            open(&path, flags, Mode::empty()).with_context(|| format!("cannot open {path}"))?;
        self.state().closed = true;
        // Fill twice: a reader that is in its system call takes another piece before it waits at
        // the valve.
        fill(&pipe).and_then(|()| self.wait_for_reader(patience)).and_then(|()| fill(&pipe))
    }

    fn wait_for_reader(&self, patience: Duration) -> Result<()> {
        let waiting = |state: &mut State| !state.waits && !state.ended;
        let waited = self.0.changed.wait_timeout_while(self.state(), patience, waiting);
        let (state, _) = waited.expect("no holder panics");
        ensure!(state.waits, "expected that the reader of a pipe stops, found it ended or busy");
        Ok(())
    }
}

/// Fills the pipe until no further byte fits.
fn fill(pipe: &impl std::os::fd::AsFd) -> Result<()> {
    let mut length = FILLING.len();
    loop {
        match write(pipe, &FILLING[..length]) {
            Ok(_) | Err(Errno::INTR) => {}
            // A pipe without room for many bytes may have room for a few.
            Err(Errno::AGAIN) if length > 1 => length /= 2,
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error).context("cannot fill a pipe"),
        }
    }
}
