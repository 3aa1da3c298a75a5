//! The connections of a device of another crate: wires that only record.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;

/// All wires of a device.
#[derive(Clone, Debug, Default)]
pub struct Wires {
    /// The device's output, which becomes console output.
    pub output: StagingWriter,
    /// The device's interrupt line.
    pub interrupt: Line,
    /// The line that resets the machine.
    pub reset: Line,
}

impl Wires {
    /// Clears all wires.
    pub(super) fn clear(&self) {
        drop(self.output.take());
        self.interrupt.take();
        self.reset.take();
    }
}

/// A writer that accepts all bytes and sends none. Written bytes wait to be staged.
#[derive(Clone, Debug, Default)]
pub struct StagingWriter(Arc<Mutex<Vec<u8>>>);

impl StagingWriter {
    /// Takes the written bytes.
    #[must_use = "what is taken out and not staged is lost"]
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are appended whole, so a panic elsewhere leaves no partial state.
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

/// A line that records that it was raised.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<AtomicBool>);

impl Line {
    /// Raises the line.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the line is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the line was raised. Clears it.
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
