//! Attaches what is behind the devices of a guest that goes on here: the guest is here and nowhere else, so that what fails is
//! tried again (P7).
//!
//! All of it was opened before the term was won (P9). To attach it takes threads and descriptors of its own, which this host
//! may be out of for a moment.

use std::sync::Arc;
use std::time::Duration;

use super::shortage;
use super::standby::{Shown, shown};
use crate::machine::{AttachOptions, Ended, Machine};
use crate::standby::Preparing;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Attaches the machine's backends, unless it is ended first.
pub(super) fn attach(machine: &Arc<Machine>, status: &Shown) -> Result<(), Ended> {
    let preparing = Preparing::default();
    loop {
        // An attempt that has failed has closed what was open. It is opened in a thread of its own: who ends this side does not
        // wait for storage that hangs (P9).
        let attached = preparing.prepare(machine).and_then(|()| {
            machine.attach_backends(AttachOptions::TAKEOVER).map_err(|error| error.to_string())
        });
        let Err(reason) = attached.map_err(shortage::explained) else {
            shown(status).cannot_go_on(None);
            return Ok(());
        };
        log::error!("the guest cannot go on yet, put this right and it will: {reason}");
        shown(status).cannot_go_on(Some(reason));
        if let Some(ended) = machine.events().wait_within(RETRY) {
            return Err(ended);
        }
    }
}
