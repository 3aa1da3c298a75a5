//! Whether the standby asks the same arbiter as this side: what it has left there has to be found here (P2).
//!
//! The handshake has shown that the standby sees what this side writes. Of a copy that is kept up that is true as well, and a
//! term that the standby wins in it would never be seen here.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use ft_core::handshake::{ArbiterView, compare_counter_marks};

use super::Engine;
use crate::arbiter::Arbiter;

/// A network file system's client may show for a while what was there before.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Waits for the answer for half as long at most as a standby that is being joined may be silent: nothing is held up by it.
    pub(super) fn check_counter_mark(&self, theirs: ArbiterView) -> Result<(), String> {
        let Some(arbiter) = self.arbiter.clone() else { return Ok(()) };
        let longest = self.options.primary.setup_timeout / 2;
        let patience = PATIENCE.min(longest / 2);
        let place = theirs.place.clone();
        let (tell, told) = sync_channel(1);
        let (failed, attempt) = (tell.clone(), self.attempts.clone());
        // The thread that reads the link may open nothing, and a directory may not answer. Whoever asked may have given up.
        let look = move || {
            let _ = tell.send(look_for(&*arbiter, &theirs, patience));
            // P9: one that hangs counts as an attempt to reach a standby.
            drop(attempt);
        };
        self.launcher.launch("arbiter", look, move |error| {
            let _ = failed.send(Err(format!("no thread to ask the arbiter with: {error}")));
        });
        told.recv_timeout(longest).unwrap_or_else(|_| {
            Err(format!(
                "arbiter: expected to find within {longest:?} what the standby has left in {place}, found no answer"
            ))
        })
    }
}

fn look_for(arbiter: &dyn Arbiter, theirs: &ArbiterView, patience: Duration) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let found = arbiter.read_marks().map_err(|error| error.to_string());
        let same = found.and_then(|ours| {
            compare_counter_marks(&ours, theirs).map_err(|refusal| refusal.to_string())
        });
        if same.is_ok() || begun.elapsed() >= patience {
            return same;
        }
        std::thread::sleep(PAUSE);
    }
}
