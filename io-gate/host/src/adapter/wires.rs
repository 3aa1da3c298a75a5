//! What a device of another crate is given instead of the outside: wires that only remember.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;

/// Everything that a device can be wired to.
#[derive(Clone, Debug, Default)]
pub struct Wires {
    /// What it writes becomes console output.
    pub output: StagingWriter,
    /// Its interrupt line.
    pub interrupt: Line,
    /// The line that resets the machine.
    pub reset: Line,
}

impl Wires {
    /// Forgets what is on them.
    pub(super) fn clear(&self) {
        drop(self.output.take());
        self.interrupt.take();
        self.reset.take();
    }
}

/// A writer that takes everything and lets nothing out: what was written waits to be staged.
#[derive(Clone, Debug, Default)]
pub struct StagingWriter(Arc<Mutex<Vec<u8>>>);

impl StagingWriter {
    /// Takes out what was written.
    #[must_use = "what is taken out and not staged is lost"]
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are appended whole, so that a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for StagingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line that remembers that it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<AtomicBool>);

impl Line {
    /// Asks for it.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has been asked for.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it has been asked for; it is answered with this.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.raise();
        Ok(())
    }
}
