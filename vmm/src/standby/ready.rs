//! Making ready for a takeover: what is behind the devices is opened before a term is asked for, and kept (P9).
//!
//! A term that was won by a side that then finds its tap taken, its console's file system full or its disk cut short is won
//! for nobody: the former primary has lost its right, and the guest stands still. Opening may block, on storage that hangs, so
//! that it is done in a thread of its own, which the asking thread waits for, and not for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::machine::Machine;

/// What has not answered for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether something is being opened: one thread at most is stuck in it (P9).
#[derive(Clone, Debug, Default)]
pub(crate) struct Preparing(Arc<AtomicBool>);

impl Preparing {
    /// Opens what a machine needs to go on here.
    pub(crate) fn prepare(&self, machine: &Arc<Machine>) -> Result<(), String> {
        if machine.is_prepared() {
            return Ok(());
        }
        if self.0.swap(true, Ordering::SeqCst) {
            return Err("what is behind the devices: still no answer".to_owned());
        }
        let (machine, going_on) = (machine.clone(), self.0.clone());
        let (tell, told) = sync_channel(1);
        let open = move || {
            let opened = machine.prepare_takeover().map_err(|error| error.to_string());
            // Before it is told: a machine that is given up has closed all that it had when its successor opens it.
            drop(machine);
            going_on.store(false, Ordering::SeqCst);
            // Nobody waits any more where it took too long.
            let _ = tell.send(opened);
        };
        if let Err(error) = std::thread::Builder::new().name("prepare".to_owned()).spawn(open) {
            self.0.store(false, Ordering::SeqCst);
            return Err(format!("no thread to open what is behind the devices: {error}"));
        }
        told.recv_timeout(PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                Err(format!("what is behind the devices: no answer for {PATIENCE:?}"))
            }
            RecvTimeoutError::Disconnected => Err("opening has panicked".to_owned()),
        })
    }
}
