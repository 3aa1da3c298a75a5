//! The takeover: a standby that has won the term begins to run the guest.
//!
//! ```text
//!   restore   KVM and the devices take on the state of the last acknowledged checkpoint
//!   attach    the devices get their backends; a failure is retried, as the guest is only here (P7)
//!   begin     an engine performs the requests in flight again (P3) and looks for a standby
//!   announce  the networks learn where the guest is now
//!   start     the vCPUs run
//! ```
//!
//! P9: the standby tries everything that can fail before it claims the term: see
//! [`crate::standby`]. The process adds its own work at these steps (its terminal, its panic hook):
//! see [`Process`].

mod stages;

use std::sync::Arc;
use std::time::Duration;

use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::{AttachOptions, Ended, Machine, MachineError};
use kemari_support::shortage;

use crate::primary::{Engine, EngineOptions, EngineResources, SealerError, Takeover};
use crate::session::StateBlobError;
use crate::standby::{Inheritance, Preparing, Shown, shown};

use stages::Stages;

/// Time between two attempts to attach the backends.
const RETRY: Duration = Duration::from_secs(1);

/// The work of the surrounding process at the steps of a takeover.
pub trait Process {
    /// Called when the backends are attached and no effect has reached them yet.
    fn has_backends(&mut self, machine: &Machine);
    /// Called when `engine` drives the guest and the guest has not run yet.
    fn has_engine(&mut self, engine: &Arc<Engine>);
}

/// Why the guest does not run on this host.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// This side was ended while it waited for its backends.
    #[error("this side was ended before the guest could continue")]
    Ended(Ended),
    /// The machine refuses the state.
    #[error(transparent)]
    State(#[from] StateBlobError),
    /// The engine cannot end epochs.
    #[error(transparent)]
    Sealer(#[from] SealerError),
    /// The machine cannot start.
    #[error(transparent)]
    Start(#[from] MachineError),
}

/// Continues the guest on this host from the checkpoint in `inheritance`. Returns the engine of the
/// running guest.
///
/// # Errors
/// The reason why the guest does not run on this host. No machine runs the guest then: the caller
/// releases the term.
pub fn take_over(
    inheritance: Inheritance,
    options: EngineOptions,
    arbiter: Option<&Arc<dyn Arbiter>>,
    status: &Shown,
    process: &mut dyn Process,
) -> Result<Arc<Engine>, TakeoverError> {
    let Inheritance { machine, authority, state, taken, reason, won_at } = inheritance;
    let (term, epoch) = (taken.term(), taken.epoch());
    let stages = Stages::watched(status, options.stall_timeout);

    stages.at("restore the guest's state in KVM and the devices");
    let replays = state.restore(&machine)?;

    // Attach after the restore: the backends need the features that the guest's drivers have
    // negotiated.
    let resources = attach(&machine, arbiter, status, &stages).map_err(TakeoverError::Ended)?;
    process.has_backends(&machine);

    // The engine performs the requests in flight again (P3): the term is won (P2).
    let engine = Engine::after_takeover(
        resources,
        machine.clone(),
        authority,
        arbiter.cloned(),
        taken,
        options,
    );
    stages.at("start the guest on the device thread");
    process.has_engine(&engine);
    engine.install_sealer()?;

    announce(&machine);

    machine.start_after({
        let (engine, mismatches) = (engine.clone(), shown(status).mismatches());
        move || {
            let micros = u64::try_from(won_at.elapsed().as_micros()).unwrap_or(u64::MAX);
            engine.note_takeover(Takeover { micros, replayed: replays });
            engine.note_mismatches(mismatches);
            log::info!(
                "took over in term {term} at epoch {epoch}: {replays} requests replayed, {micros} us ({reason})"
            );
        }
    })?;
    drop(stages);
    Ok(engine)
}

/// Attaches the machine's backends and returns the resources of its engine, unless the machine is
/// ended before.
///
/// Everything that the devices need was opened before the term was won (P9). Attaching it and
/// starting an engine takes threads and descriptors: this host may be out of them for a moment.
fn attach(
    machine: &Arc<Machine>,
    arbiter: Option<&Arc<dyn Arbiter>>,
    status: &Shown,
    stages: &Stages,
) -> Result<EngineResources, Ended> {
    let preparing = Preparing::default();
    loop {
        stages.at("attach the backends and start the engine");
        // A failed attempt closes the backends. A thread of its own opens them again, so that an
        // end of this side does not wait for storage that hangs (P9).
        let attached = preparing.prepare(machine).and_then(|()| {
            // Allocate these first: a failed attach releases them.
            let resources = EngineResources::new(arbiter)
                .map_err(|error| format!("cannot start the engine: {error}"))?;
            let attached = machine.attach_backends(AttachOptions::TAKEOVER);
            attached.map(|()| resources).map_err(|error| error.to_string())
        });
        stages.at(None);
        let reason = match attached.map_err(shortage::explained) {
            Ok(resources) => {
                shown(status).cannot_go_on(None);
                return Ok(resources);
            }
            Err(reason) => reason,
        };
        log::error!("the guest waits until this is fixed: {reason}");
        shown(status).cannot_go_on(Some(reason));
        if let Some(ended) = machine.events().wait_within(RETRY) {
            return Err(ended);
        }
    }
}

/// Announces the guest's addresses to the networks several times: a broadcast can be lost.
fn announce(machine: &Arc<Machine>) {
    /// The same schedule as QEMU's after a migration: five rounds, with growing gaps.
    const ROUNDS: u64 = 5;
    const FIRST_GAP: Duration = Duration::from_millis(50);
    let (machine, wakes) = (machine.clone(), machine.wakes());
    let rounds = move || {
        for round in 1..=ROUNDS {
            for slot in machine.devices().slots() {
                machine.gate().announce(slot);
            }
            std::thread::sleep(FIRST_GAP * u32::try_from(round).unwrap_or(1));
        }
    };
    if let Err(error) = threads::start_waking("announce", Role::Timer, wakes, rounds) {
        log::warn!("cannot announce the guest's new host to the network: {error}");
    }
}
