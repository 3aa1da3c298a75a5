//! Making ready for a takeover: what is behind the devices is opened before a term is asked for, and kept (P9).
//!
//! A term that was won by a side that then finds its tap taken, its console's file system full or its disk cut short is won
//! for nobody: the former primary has lost its right, and the guest stands still. Opening may block, on storage that hangs, so
//! that it is done aside.

use std::sync::Arc;
use std::time::Duration;

use super::aside::Aside;
use crate::machine::Machine;

/// What has not answered for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preparing(Aside);

impl Preparing {
    /// Opens what a machine needs to go on here.
    pub(crate) fn prepare(&self, machine: &Arc<Machine>) -> Result<(), String> {
        if machine.is_prepared() {
            return Ok(());
        }
        let machine = machine.clone();
        self.0.run(("prepare", "what is behind the devices"), PATIENCE, move || {
            let opened = machine.prepare_takeover().map_err(|error| error.to_string());
            // Before it is told: a machine that is given up has closed all that it had when its successor opens it.
            drop(machine);
            opened
        })
    }
}
