//! Whether the standby asks the same arbiter as this side (P2), and writes to the same disks (P3): what it has left there has to be
//! found here.
//!
//! The handshake has shown that the standby sees what this side writes. Of a copy that is kept up that is true as well, and
//! what the standby writes to it, a term that it wins or a sector, would never be seen here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ft_core::handshake::{
    ArbiterView, DiskStorage, Hello, compare_counter_marks, compare_disk_counter_marks,
};
use kemari_arbiter::Arbiter;
use kemari_support::aside::{self, NoAnswer};

use super::Engine;
use crate::config::MachineConfig;
use crate::machine::storage::read_counter_marks;

/// A network file system's client may show for a while what was there before.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to look, and for what.
struct Look {
    config: MachineConfig,
    arbiter: Option<Arc<dyn Arbiter>>,
    view: ArbiterView,
    disks: Vec<DiskStorage>,
}

impl Engine {
    /// Waits for the answer for half as long at most as a standby that is being joined may be silent: nothing is held up by it.
    pub(super) fn check_counter_marks(&self, theirs: &Hello) -> Result<(), String> {
        let longest = self.options.primary.setup_timeout / 2;
        let patience = PATIENCE.min(longest / 2);
        let arbiter = self.arbiter.as_ref().map(|_| format!("in {} and ", theirs.arbiter.place));
        let look = Look {
            config: self.machine.config().clone(),
            arbiter: self.arbiter.clone(),
            view: theirs.arbiter.clone(),
            disks: theirs.disks.clone(),
        };
        let (tell, answer) = aside::answer();
        let (failed, attempt) = (tell.or_no_thread(), self.attempts.clone());
        // The thread that reads the link may open nothing, and a directory may not answer. Whoever asked may have given up.
        let look = move || {
            tell.done(look.until_found(patience));
            // P9: one that hangs counts as an attempt to reach a standby.
            drop(attempt);
        };
        self.launcher.launch("arbiter", look, failed);
        answer.within(longest).unwrap_or_else(|missing| match missing {
            NoAnswer::NoThread(error) => {
                Err(format!("cannot start a thread to look for the standby's counter-marks: {error}"))
            }
            NoAnswer::Late | NoAnswer::Panicked => Err(format!(
                "expected to find within {longest:?} what the standby has left {}beside the disks, found no answer",
                arbiter.unwrap_or_default()
            )),
        })
    }
}

impl Look {
    fn until_found(&self, patience: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let same = self.once();
            if same.is_ok() || begun.elapsed() >= patience {
                return same;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn once(&self) -> Result<(), String> {
        if let Some(arbiter) = &self.arbiter {
            let ours = arbiter.read_marks().map_err(|error| error.to_string())?;
            compare_counter_marks(&ours, &self.view).map_err(|refusal| refusal.to_string())?;
        }
        let ours = read_counter_marks(&self.config, self.arbiter.is_some());
        compare_disk_counter_marks(&ours, &self.disks).map_err(|refusal| refusal.to_string())
    }
}
