//! A pipe of a process that can be left unread: as if whoever reads it had stopped, and full at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};

/// What a pipe is filled with: empty lines, which nobody takes for said.
const FILLING: [u8; 4096] = [b'\n'; 4096];

/// Between a pipe and the thread that reads it.
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
    /// The reader has come to the valve, and reads no more.
    waits: bool,
    /// There is nothing more to read.
    ended: bool,
}

impl Valve {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder panics")
    }

    /// The reader comes here before it reads on.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        while state.closed {
            state.waits = true;
            self.0.changed.notify_all();
            state = self.0.changed.wait(state).expect("no holder panics");
        }
        state.waits = false;
    }

    /// The reader has come to the end.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.0.changed.notify_all();
    }

    /// The reader reads on.
    pub(crate) fn open(&self) {
        self.state().closed = false;
        self.0.changed.notify_all();
    }

    /// Has the reader stop, and fills the pipe, which is descriptor `fd` of process `pid`: whoever writes to it now waits, or is
    /// told that there is no room.
    pub(crate) fn close(&self, pid: u32, fd: u32, patience: Duration) -> Result<()> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe =
            open(&path, flags, Mode::empty()).with_context(|| format!("cannot open {path}"))?;
        self.state().closed = true;
        // A reader that is in its system call takes a last piece, and comes to the valve then.
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

/// Until not a single byte more goes in.
fn fill(pipe: &impl std::os::fd::AsFd) -> Result<()> {
    let mut length = FILLING.len();
    loop {
        match write(pipe, &FILLING[..length]) {
            Ok(_) | Err(Errno::INTR) => {}
            // A pipe may have room for a few bytes, and not for so many.
            Err(Errno::AGAIN) if length > 1 => length /= 2,
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error).context("cannot fill a pipe"),
        }
    }
}
