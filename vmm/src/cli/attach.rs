//! Attaches what is behind the devices of a guest that goes on here, and has what its engine takes of the system: the guest is
//! here and nowhere else, so that what fails is tried again (P7).
//!
//! All that the devices need was opened before the term was won (P9). To attach it, and to start an engine, takes threads and
//! descriptors, which this host may be out of for a moment.

use std::sync::Arc;
use std::time::Duration;

use kemari_arbiter::Arbiter;

use super::shortage;
use super::stages::Stages;
use super::standby::{Shown, shown};
use crate::engine::Makings;
use crate::machine::{AttachOptions, Ended, Machine};
use crate::standby::Preparing;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Attaches the machine's backends, unless it is ended first; gives what its engine is made of.
pub(super) fn attach(
    machine: &Arc<Machine>,
    arbiter: Option<&Arc<dyn Arbiter>>,
    status: &Shown,
    stages: &Stages,
) -> Result<Makings, Ended> {
    let preparing = Preparing::default();
    loop {
        stages.at("what is behind the devices is attached, and the engine is started");
        // An attempt that has failed has closed what was open. It is opened in a thread of its own: who ends this side does not
        // wait for storage that hangs (P9).
        let attached = preparing.prepare(machine).and_then(|()| {
            // First: it is given back where the other fails.
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
