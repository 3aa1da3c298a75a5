//! The options of the protection.

use std::sync::Arc;
use std::time::Duration;

use ft_core::policy::PolicyOptions;
use ft_core::primary::PrimaryOptions;
use kemari_audit::Recorder;

use super::StepHooks;
use crate::link::{LinkAddr, LinkSecurity};

/// The options of the protection.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The virtual machine's name.
    pub name: String,
    /// The standby's address. With `None` the machine is not protected until `kemari ctl protect`.
    pub standby: Option<LinkAddr>,
    /// How the link is secured.
    pub security: LinkSecurity,
    /// The audit log of this side.
    pub audit: Option<Arc<Recorder>>,
    /// Whether both sides hash memory and state at each epoch.
    pub verify: bool,
    /// Size in bytes of the cache of sent pages. With 0, changed pages are always sent whole.
    pub delta_cache: u64,
    /// How long the machine may make no progress before its standby takes over.
    pub stall_timeout: Duration,
    /// The protocol core's options.
    pub primary: PrimaryOptions,
    /// When epochs end.
    pub policy: PolicyOptions,
    /// Hooks for tests.
    pub steps: StepHooks,
}
