//! Tears down the machine of an ended session in another thread (P7, P9).
//!
//! The teardown waits for the machine's threads and closes its disks, networks and KVM descriptors.
//! Each of these may be slow, and a standby that was denied a term must be ready for the primary
//! that continues.

use std::time::{Duration, Instant};

use kemari_support::aside::Aside;

/// Time to wait for a teardown, which usually takes some milliseconds.
const MOMENT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Former(Aside);

impl Former {
    /// Tears `machine` down. Returns when that is done, or after [`MOMENT`].
    pub(super) fn take_apart(&self, machine: impl Send + 'static) {
        let begun = Instant::now();
        let work = move || {
            drop(machine);
            let took = begun.elapsed();
            if took >= MOMENT {
                log::info!("the machine of an earlier session was removed in {took:?}");
            }
            Ok(())
        };
        let task = ("former", "remove the machine of the session that has ended");
        if let Err(reason) = self.0.run(task, MOMENT, work) {
            log::warn!("{reason}; the next primary waits for it");
        }
    }

    /// P9: waits until the former machine is gone, so that at most one is kept.
    ///
    /// When the teardown is not done within `patience`: a large machine takes long.
    pub(super) fn is_gone_within(&self, patience: Duration) -> Result<(), String> {
        if self.0.is_over_within(patience) {
            return Ok(());
        }
        Err("expected that the machine of the earlier session was removed, found that it is still there: its backends \
        or this host's KVM do not answer; check them, or start this standby again"
            .to_owned())
    }
}
