//! Prepares a takeover: opens the backends before a term is claimed, and keeps them open (P9).
//!
//! Otherwise a side could win a term and only then find that its tap is in use, its console's file
//! system is full or its disk is too short. The former primary would have lost its right, and no
//! host would run the guest. Another thread opens the backends, because storage may hang.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kemari_arbiter::Arbiter;
use kemari_machine::Machine;
use kemari_support::aside::Aside;

/// A resource that has not answered within this time counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine that has opened, or is opening, the resources of a takeover. They then count as in
/// use by this process.
#[derive(Clone, Default)]
pub(crate) struct Prepared(Arc<Mutex<Weak<Machine>>>);

impl Prepared {
    /// `true` until all threads have dropped the machine.
    pub(crate) fn is_open(&self) -> bool {
        self.machine().strong_count() > 0
    }

    /// This lock guards only the reference to the machine.
    fn machine(&self) -> MutexGuard<'_, Weak<Machine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Preparing {
    aside: Aside,
    prepared: Prepared,
    /// The thread that checks that the arbiter answers.
    look: Aside,
}

impl Preparing {
    /// Creates one that records its machine in `prepared`.
    pub(crate) fn telling(prepared: Prepared) -> Self {
        Self { prepared, ..Self::default() }
    }

    /// Opens the resources with which `machine` can continue the guest here.
    pub(crate) fn prepare(&self, machine: &Arc<Machine>) -> Result<(), String> {
        if machine.is_prepared() {
            return Ok(());
        }
        let (machine, prepared) = (machine.clone(), self.prepared.clone());
        let what = ("prepare", "the device thread or a backend");
        self.aside.run(what, PATIENCE, move || {
            // The device thread will serve the guest: it must answer before a term is claimed. A
            // device thread that has ended belongs to a machine that is being dropped.
            let _ = machine.device_loop().call(|_| ());
            *prepared.machine() = Arc::downgrade(&machine);
            let opened = machine.prepare_takeover().map_err(|error| error.to_string());
            if opened.is_err() {
                // A failed preparation has closed everything again.
                *prepared.machine() = Weak::new();
            }
            // Drop the machine before the result is reported: a dropped machine has closed
            // everything before its successor opens it.
            drop(machine);
            opened
        })
    }

    /// Checks that the arbiter answers now: after an operator's request the primary's output waits
    /// for the arbiter's answer (P7).
    pub(crate) fn can_ask(&self, arbiter: Arc<dyn Arbiter>) -> Result<(), String> {
        let what = ("arbiter-check", "the arbiter");
        self.look.run(what, PATIENCE, move || arbiter.answers().map_err(|error| error.to_string()))
    }
}
