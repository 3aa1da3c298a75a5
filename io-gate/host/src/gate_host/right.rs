//! The right to perform, as the fence knows it (P2).

use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::GateHost;

impl GateHost {
    /// Records that the right to perform is lost (P2): nothing is performed any more.
    pub fn set_fenced_off(&self) {
        self.far_side.fence_off();
    }

    /// Whether the right to perform has been lost.
    #[must_use]
    pub fn is_fenced_off(&self) -> bool {
        self.far_side.is_fenced_off()
    }

    /// Whether terms decide who may perform. If so, a disk that other hosts can reach must have a
    /// record of the term beside it ([`DiskFence`](crate::backend::disk_fence::DiskFence)).
    #[must_use]
    pub fn has_term(&self) -> bool {
        self.far_side.has_term()
    }

    /// Whether released effects wait because the fence gives no answer.
    #[must_use]
    pub fn waits_for_fence(&self) -> bool {
        self.far_side.waits_for_fence()
    }

    /// Logs, once each time, where effects wait for an answer that does not come. A thread that
    /// performs no effects calls it regularly.
    pub fn tell_of_late_answers(&self) {
        self.far_side.asks().tell();
    }

    /// Since when a lane has waited for an answer of the fence or of a disk's record: the longest
    /// wait.
    #[must_use]
    pub fn asks_since(&self) -> Option<Instant> {
        self.far_side.asks().oldest()
    }

    /// Signalled when the right to perform is lost.
    #[must_use]
    pub fn fenced_event(&self) -> &EventFd {
        self.far_side.fenced_event()
    }
}
