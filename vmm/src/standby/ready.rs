//! Making ready for a takeover: what is behind the devices is opened before a term is asked for, and kept (P9).
//!
//! A term that was won by a side that then finds its tap taken, its console's file system full or its disk cut short is won
//! for nobody: the former primary has lost its right, and the guest stands still. Opening may block, on storage that hangs, so
//! that it is done aside.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::machine::Machine;
use kemari_arbiter::Arbiter;
use kemari_support::aside::Aside;

/// What has not answered for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which machine has open, or is opening, what a takeover needs: it is in use then, and by nobody else.
#[derive(Clone, Default)]
pub(crate) struct Prepared(Arc<Mutex<Weak<Machine>>>);

impl Prepared {
    /// Until the machine is given up, whoever gives it up.
    pub(crate) fn is_open(&self) -> bool {
        self.machine().strong_count() > 0
    }

    /// Guards the name of the machine only.
    fn machine(&self) -> MutexGuard<'_, Weak<Machine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Preparing {
    aside: Aside,
    prepared: Prepared,
    /// Looks whether the arbiter can be asked.
    look: Aside,
}

impl Preparing {
    /// Which machine it is, `prepared` is told.
    pub(crate) fn telling(prepared: Prepared) -> Self {
        Self { prepared, ..Self::default() }
    }

    /// Opens what a machine needs to go on here.
    pub(crate) fn prepare(&self, machine: &Arc<Machine>) -> Result<(), String> {
        if machine.is_prepared() {
            return Ok(());
        }
        let (machine, prepared) = (machine.clone(), self.prepared.clone());
        let what = ("prepare", "the device thread, or what is behind the devices");
        self.aside.run(what, PATIENCE, move || {
            // It serves the guest, so that it is asked before a term is. One that has ended has a machine that is given up.
            let _ = machine.device_loop().call(|_| ());
            *prepared.machine() = Arc::downgrade(&machine);
            let opened = machine.prepare_takeover().map_err(|error| error.to_string());
            if opened.is_err() {
                // What was opened is closed again.
                *prepared.machine() = Weak::new();
            }
            // Before it is told: a machine that is given up has closed all that it had when its successor opens it.
            drop(machine);
            opened
        })
    }

    /// Whether the arbiter could be asked now: from an operator's wish on the primary's output waits for its answer (P7).
    pub(crate) fn can_ask(&self, arbiter: Arc<dyn Arbiter>) -> Result<(), String> {
        let what = ("arbiter", "the arbiter, which has to be asked");
        self.look.run(what, PATIENCE, move || arbiter.answers().map_err(|error| error.to_string()))
    }
}
