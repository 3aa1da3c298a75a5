//! The right to run a machine: its name at the arbiter and its disks, from the start until the
//! guest runs (P2). The end of a running guest releases the same right ([`release`]).

use std::sync::Arc;

use ft_core::Term;
use kemari_arbiter::{Arbiter, ArbiterError};
use kemari_machine::{Machine, MachineError};

use crate::session::disk_claim;

/// Why this process may not run the machine.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A disk is in use, or its record cannot be read or written.
    #[error(transparent)]
    Disks(#[from] MachineError),
    /// The arbiter names another holder, or cannot be asked.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
}

/// The machine's name at the arbiter and on its disks, while the start may still fail. Dropping
/// this releases the name, so that a corrected command does not need to seize it.
pub struct OwnershipGuard<'a> {
    arbiter: Option<&'a Arc<dyn Arbiter>>,
    /// The machine whose disks are released.
    machine: Option<&'a Machine>,
    term: Term,
    before_release: fn(),
}

impl<'a> OwnershipGuard<'a> {
    /// Claims the name, unless the arbiter or a fence record names another holder. `before_release`
    /// is called before the name is released: the storage or the arbiter may not answer then.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn begin(
        arbiter: Option<&'a Arc<dyn Arbiter>>,
        machine: &'a Machine,
        seize: bool,
        before_release: fn(),
    ) -> Result<Self, ClaimError> {
        let term = match arbiter {
            Some(arbiter) => {
                let disk = disk_claim(machine)?;
                // Find a disk that is in use before this process takes the term from the process
                // that uses it.
                machine.reserve_disks(seize)?;
                arbiter.begin_on(disk.as_ref(), seize)?
            }
            None if seize => {
                machine.seize_disks()?;
                Term(0)
            }
            None => Term(0),
        };
        Ok(Self::of(arbiter, machine, term, before_release))
    }

    /// The guard of a machine that has won `term` and is about to run. See [`begin`](Self::begin)
    /// for `before_release`.
    pub fn of(
        arbiter: Option<&'a Arc<dyn Arbiter>>,
        machine: &'a Machine,
        term: Term,
        before_release: fn(),
    ) -> Self {
        Self { arbiter, machine: Some(machine), term, before_release }
    }

    /// The term that was won.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Keeps the name: the guest runs, and from here on the guest's end releases the name.
    pub fn keep(mut self) {
        self.machine = None;
    }
}

impl Drop for OwnershipGuard<'_> {
    fn drop(&mut self) {
        let Some(machine) = self.machine else { return };
        (self.before_release)();
        // P2: the guest has not run, but its requests in flight may have been started.
        if machine.gate().free_disks() {
            release(self.arbiter, self.term);
        }
    }
}

/// Releases the term, so that the next start needs no `--seize`.
pub fn release(arbiter: Option<&Arc<dyn Arbiter>>, term: Term) {
    if let Some(arbiter) = arbiter
        && let Err(error) = kemari_arbiter::end(arbiter, term)
    {
        log::warn!(
            "cannot record the machine's end, so that the next start needs --seize: {error}"
        );
    }
}
