//! The end of a machine in good order: waits until the released effects are performed.

use std::time::{Duration, Instant};

use super::GateHost;

/// How long the end of a machine waits for a fence or a backend that does not answer.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

impl GateHost {
    /// Whether all released effects have been performed. Only tests ask: the product learns it from
    /// [`drain`](Self::drain), which also ends the lanes.
    #[must_use]
    pub fn lanes_idle(&self) -> bool {
        self.power.is_idle() && self.every_attached().iter().all(|backend| backend.lane().is_idle())
    }

    /// Waits until all released effects have been performed and consoles have taken their output:
    /// for a clean shutdown. If the fence or a backend does not answer, the wait ends after
    /// [`LAST_PATIENCE`]. What has not been performed by then is never performed.
    pub fn drain(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        self.far_side.give_up_after(LAST_PATIENCE);
        if self.far_side.is_fenced_off() {
            return;
        }
        let attached = self.every_attached();
        attached.iter().for_each(|backend| backend.lane().finish(until));
        for (lane, name) in
            attached.iter().map(|at| (at.lane(), at.name())).chain([(&self.power, "power")])
        {
            if !lane.drain(until) {
                log::warn!(
                    "{name}: has not accepted its output within {LAST_PATIENCE:?}: the output is lost, as at a power \
                     failure"
                );
            }
        }
    }
}
