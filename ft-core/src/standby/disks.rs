//! The rules of a standby with own disks. If its image is not in the set, the standby neither takes
//! over nor asks the arbiter (R7). If an image has failed, it gives up its checkpoint (R5).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Phase, Result, Standby, StandbyOptions};
use crate::deliberate;
use crate::disks::Standing;

impl Standby {
    /// As [`new`](Self::new), for a side with own disks. Its images are in no set.
    #[must_use]
    pub fn with_disks(options: StandbyOptions) -> Self {
        Self { disks: Some(Standing::Syncing), ..Self::new(options) }
    }

    /// Whether the set may name this side's images, if it has any. Whether it does is a condition
    /// of the claim: only the arbiter knows it.
    #[must_use]
    pub fn may_take_over(&self) -> bool {
        deliberate!(TakeOverWhileSyncing) || matches!(self.disks, None | Some(Standing::Covered))
    }

    /// R5: why the term that was won must not be used, if a disk has failed while the arbiter was
    /// asked.
    pub(super) fn won_too_late(&self) -> Option<String> {
        match &self.disks {
            Some(Standing::Failed { reason }) => Some(format!(
                "the next term is won, but a disk of this side has failed: {reason}; start another host"
            )),
            _ => None,
        }
    }

    /// A primary is about to be joined: its images have to be copied first. Returns why they
    /// cannot.
    pub(super) fn disks_begin(&mut self) -> Option<String> {
        match &mut self.disks {
            Some(Standing::Failed { reason }) => {
                Some(format!("a disk of this standby has failed: {reason}; replace it"))
            }
            Some(standing) => {
                *standing = Standing::Syncing;
                None
            }
            None => None,
        }
    }

    pub(super) fn disks(&mut self, standing: Standing, out: &mut Vec<Action>) -> Result<()> {
        if self.disks.is_none() {
            return Err(self.illegal("disks", "this side has no own disks"));
        }
        self.disks = Some(standing.clone());
        if let Standing::Failed { reason } = standing {
            let why = format!("a disk of the standby has failed: {reason}");
            match self.phase {
                Phase::Ready => self.give_up(why, out),
                // Without a word the primary would wait for a resync that does not go on.
                Phase::Greeting | Phase::Filling => self.break_off(why, out),
                _ => {}
            }
        }
        Ok(())
    }
}
