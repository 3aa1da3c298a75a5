//! The question that is asked before anything is let out: may this machine still perform?

/// Asked right before each effect is performed (P2).
pub trait Fence: Send + Sync {
    /// Whether this machine still has the right to perform effects.
    fn may_perform(&self) -> bool;
}

/// The fence of a machine that shares its right with nobody: no arbiter, no standby.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unfenced;

impl Fence for Unfenced {
    fn may_perform(&self) -> bool {
        true
    }
}
