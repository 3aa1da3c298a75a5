//! The right to perform effects, as the fence reports it (P2).

use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::GateHost;

impl GateHost {
    /// Records that the right to perform is lost (P2). Nothing is performed from now on.
    pub fn set_fenced_off(&self) {
        self.far_side.fence_off();
    }

    /// Whether the right to perform has been lost.
    #[must_use]
    pub fn is_fenced_off(&self) -> bool {
        self.far_side.is_fenced_off()
    }

    /// Whether terms decide who may perform. If so, a disk that other hosts can reach must have a
    /// record of the term beside it ([`DiskFence`](crate::disk_use::disk_fence::DiskFence)).
    #[must_use]
    pub fn has_term(&self) -> bool {
        self.far_side.has_term()
    }

    /// Whether released effects wait because the fence gives no answer.
    #[must_use]
    pub fn waits_for_fence(&self) -> bool {
        self.far_side.waits_for_fence()
    }

    /// Logs when an answer of the fence is late, and when answers come again. A thread that
    /// performs no effects must call it regularly.
    pub fn tell_of_late_answers(&self) {
        self.far_side.asks().tell();
    }

    /// When the oldest unanswered question to the fence or to a disk's record began. `None` if no
    /// question is pending.
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
