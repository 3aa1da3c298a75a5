//! Checks that the standby uses the same arbiter (P2) and the same disks (P3) as this side: this
//! side must find the marks that the standby has written.
//!
//! The handshake has shown only that the standby sees what this side writes. A one-way copy passes
//! that check too, and this side would never see a term that the standby wins there, or a sector
//! that it writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ft_core::handshake::{
    ArbiterView, DiskStorage, Hello, compare_counter_marks, compare_disk_counter_marks,
};
use kemari_arbiter::Arbiter;
use kemari_machine::config::MachineConfig;
use kemari_support::aside::{self, NoAnswer};

use super::Engine;
use crate::session::marks::read_counter_marks;

/// Time for a mark to appear: the client of a network file system may return old content for a
/// while.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two reads of the marks.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to look for counter-marks, and which ones are expected.
struct Look {
    config: MachineConfig,
    arbiter: Option<Arc<dyn Arbiter>>,
    view: ArbiterView,
    disks: Vec<DiskStorage>,
}

impl Engine {
    /// Compares the counter-marks. Waits at most half as long as a joining standby may stay silent,
    /// so that the check does not run into that time-out.
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
        let (sender, receiver) = aside::result_channel();
        let (failed, attempt) = (sender.or_no_thread(), self.attempts.clone());
        // Look in a thread of its own: the thread that reads the link may not open files, and a
        // directory may not answer. The caller may have given up when the answer comes.
        let look = move || {
            sender.done(look.until_found(patience));
            // P9: a look that hangs counts as an attempt to reach a standby.
            drop(attempt);
        };
        self.launcher.launch("mark-check", look, failed);
        receiver.within(longest).unwrap_or_else(|missing| match missing {
            NoAnswer::NoThread(error) => {
                Err(format!("cannot read the standby's counter-marks: {error}"))
            }
            NoAnswer::Late | NoAnswer::Panicked => Err(format!(
                "expected to read the standby's counter-marks {}beside the disks within {longest:?}, found no answer",
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
