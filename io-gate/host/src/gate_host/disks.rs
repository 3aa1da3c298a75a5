//! The disks of a gate: sharing them with another host, and the fence records that name their
//! writer (P2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use io_gate::Port;

use super::GateHost;
use crate::attached::Attached;
use crate::backend::ShareError;
use crate::backend::disk::DiskError;

/// How long [`free_disks`](GateHost::free_disks) waits for a lane that waits only for the fence:
/// such a lane soon finds that nothing may leave any more.
const CLOSING: Duration = Duration::from_millis(500);

impl GateHost {
    /// Prepares a disk for use by another host too (P3). Its lock becomes the lock of a pair's
    /// active side. With `durably`, each later write is in the storage when it completes, and all
    /// earlier writes are in the storage when this returns. Waits for the disk's lane.
    ///
    /// # Errors
    /// When the disk cannot be shared. The guest's use of it then continues unchanged.
    pub fn share_disk(&self, slot: u16, port: Port, durably: bool) -> Result<(), ShareError> {
        let backend = self.backend(slot, port).ok_or(ShareError::NoDisk)?;
        backend.share_disk(durably, self.has_term())
    }

    /// Claims the disks for this machine in the records beside them.
    ///
    /// # Errors
    /// When a record cannot be written, or names another writer.
    pub fn claim_disks(&self) -> Result<(), DiskError> {
        self.far_side.records().iter().try_for_each(|record| self.far_side.claim(record))
    }

    /// As [`claim_disks`](Self::claim_disks), and rewrites each record, so that no earlier copy of
    /// it has the same content.
    ///
    /// # Errors
    /// As [`claim_disks`](Self::claim_disks).
    pub fn renew_records(&self) -> Result<(), DiskError> {
        self.far_side.records().iter().try_for_each(|record| self.far_side.renew(record))
    }

    /// Frees the disks at the end of the machine: nothing more leaves, and the fence records of
    /// this term are marked as free. Returns whether all disks are freed. Call it after
    /// [`drain`](Self::drain).
    ///
    /// P2: if a disk's lane is in an unfinished system call, the disk may still be written to when
    /// its storage answers. So its record continues to name this machine as the holder.
    #[must_use]
    pub fn free_disks(&self) -> bool {
        // Close first: a lane that is found idle begins no write afterwards.
        self.far_side.close();
        let until = Instant::now() + CLOSING;
        let busy = |disk: &Arc<Attached>| disk.may_write() && !disk.lane().drain(until);
        let busy: Vec<_> = self.every_attached().into_iter().filter(busy).collect();
        for record in self.far_side.records() {
            if busy.iter().any(|disk| disk.has_record(&record)) {
                continue;
            }
            if let Err(error) = self.far_side.free(&record) {
                log::warn!("the next start on this disk needs --seize: {error}");
            }
        }
        for disk in &busy {
            log::error!(
                "{}: expected its storage to answer before the end of the machine, found a request in progress, which \
                 may still be carried out: the disk is not released, and the next start needs --seize; before it, \
                 make sure that the process on this host has ended",
                disk.name()
            );
        }
        busy.is_empty()
    }

    /// Whether a write to a disk may be in an unfinished system call now. P2: it may arrive
    /// whenever the storage answers.
    #[must_use]
    pub fn may_be_writing(&self) -> bool {
        let writes = |at: &Arc<Attached>| {
            at.may_write() && at.lane().may_be_letting_out(self.far_side.asks())
        };
        self.every_attached().iter().any(writes)
    }
}
