//! Ends a machine that is not protected in time: `--require-protected`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::Ended;

use super::Engine;

/// Time between two looks at the state.
const EVERY: Duration = Duration::from_millis(20);

impl Engine {
    /// Ends the machine if it is not protected within `patience`, or as soon as a standby refuses
    /// it. Once the machine has been protected, it may continue alone (P7).
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn require_protected(self: &Arc<Self>, patience: Duration) -> std::io::Result<()> {
        let engine = self.clone();
        threads::start_waking("protected", Role::Timer, self.machine.wakes(), move || {
            if let Some(reason) = engine.stays_unprotected(patience) {
                engine.machine.end(Ended::Unprotected(reason));
            }
        })?;
        Ok(())
    }

    /// Returns `None` when the machine is protected, or the reason why it is not.
    fn stays_unprotected(&self, patience: Duration) -> Option<String> {
        let begun = Instant::now();
        while !self.is_protected() {
            if let Some(reason) = self.refusal() {
                return Some(format!("the standby refuses: {reason}"));
            }
            let reason = self.reason();
            if begun.elapsed() >= patience {
                let state = self.state();
                let reason = reason.unwrap_or_else(|| "the reason is not known".to_owned());
                return Some(format!(
                    "expected `protected` after {} ms, found `{state}`: {reason}",
                    patience.as_millis()
                ));
            }
            std::thread::sleep(EVERY);
        }
        None
    }
}
