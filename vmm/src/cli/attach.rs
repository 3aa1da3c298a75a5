//! Attaches the backends of a guest that was taken over, and allocates the resources of its engine. The guest exists only here,
//! so a failure is retried (P7).
//!
//! Everything that the devices need was opened before the term was won (P9). Attaching it and starting an engine takes threads
//! and descriptors, which this host may lack for a moment.

use std::sync::Arc;
use std::time::Duration;

use kemari_arbiter::Arbiter;

use super::shortage;
use super::stages::Stages;
use super::standby::{Shown, shown};
use crate::engine::Makings;
use crate::standby::Preparing;
use kemari_machine::{AttachOptions, Ended, Machine};

/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Attaches the machine's backends and returns the resources of its engine, unless the machine is ended before.
pub(super) fn attach(
    machine: &Arc<Machine>,
    arbiter: Option<&Arc<dyn Arbiter>>,
    status: &Shown,
    stages: &Stages,
) -> Result<Makings, Ended> {
    let preparing = Preparing::default();
    loop {
        stages.at("what is behind the devices is attached, and the engine is started");
        // A failed attempt has closed the backends. They are opened in a thread of their own, so that ending this side does not
        // wait for storage that hangs (P9).
        let attached = preparing.prepare(machine).and_then(|()| {
            // Allocate these first: they are released if attaching fails.
            let makings = Makings::new(arbiter)
                .map_err(|error| format!("the engine cannot be started: {error}"))?;
            let attached = machine.attach_backends(AttachOptions::TAKEOVER);
            attached.map(|()| makings).map_err(|error| error.to_string())
        });
        stages.at(None);
        let reason = match attached.map_err(shortage::explained) {
            Ok(makings) => {
                shown(status).cannot_go_on(None);
                return Ok(makings);
            }
            Err(reason) => reason,
        };
        log::error!("the guest waits, and continues when this is fixed: {reason}");
        shown(status).cannot_go_on(Some(reason));
        if let Some(ended) = machine.events().wait_within(RETRY) {
            return Err(ended);
        }
    }
}
