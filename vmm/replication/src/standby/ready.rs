//! Prepares a takeover: opens the backends before a term is claimed, and keeps them open (P9).
//!
//! Without this, a side could win a term and only then find that its tap is taken, its console's file system is full or its
//! disk is cut short: the former primary has lost its right, and the guest stands still. Opening may block on storage that
//! hangs, so another thread does it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kemari_arbiter::Arbiter;
use kemari_machine::Machine;
use kemari_support::aside::Aside;

/// A resource that has not answered within this time counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine that has open, or is opening, what a takeover needs: these resources then count as in use by this process.
#[derive(Clone, Default)]
pub(crate) struct Prepared(Arc<Mutex<Weak<Machine>>>);

impl Prepared {
    /// `true` until the machine is dropped, by any thread.
    pub(crate) fn is_open(&self) -> bool {
        self.machine().strong_count() > 0
    }

    /// Guards the reference to the machine only.
    fn machine(&self) -> MutexGuard<'_, Weak<Machine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Preparing {
    aside: Aside,
    prepared: Prepared,
    /// Checks that the arbiter can be asked.
    look: Aside,
}

impl Preparing {
    /// Makes one that notes its machine in `prepared`.
    pub(crate) fn telling(prepared: Prepared) -> Self {
        Self { prepared, ..Self::default() }
    }

    /// Opens what `machine` needs to continue the guest here.
    pub(crate) fn prepare(&self, machine: &Arc<Machine>) -> Result<(), String> {
        if machine.is_prepared() {
            return Ok(());
        }
        let (machine, prepared) = (machine.clone(), self.prepared.clone());
        let what = ("prepare", "the device thread or a backend");
        self.aside.run(what, PATIENCE, move || {
            // The device thread will serve the guest: it must answer before a term is claimed. If it has ended, its machine is
            // being dropped.
            let _ = machine.device_loop().call(|_| ());
            *prepared.machine() = Arc::downgrade(&machine);
            let opened = machine.prepare_takeover().map_err(|error| error.to_string());
            if opened.is_err() {
                // What was opened is closed again.
                *prepared.machine() = Weak::new();
            }
            // Drop the machine before the result is reported: a dropped machine has closed everything when its successor opens
            // it.
            drop(machine);
            opened
        })
    }

    /// Checks that the arbiter can be asked now: from an operator's request on the primary's output waits for the arbiter's
    /// answer (P7).
    pub(crate) fn can_ask(&self, arbiter: Arc<dyn Arbiter>) -> Result<(), String> {
        let what = ("arbiter", "the arbiter");
        self.look.run(what, PATIENCE, move || arbiter.answers().map_err(|error| error.to_string()))
    }
}
