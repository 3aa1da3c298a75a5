//! What the flags of `kemari run` and `kemari standby` mean for the crates below: the fence, the
//! observer of effects, the security of links and the engine's options.

use std::sync::Arc;
use std::time::Duration;

use ft_core::policy::PolicyOptions;
use ft_core::primary::PrimaryOptions;
use io_gate_host::{Fence, Observer, Unfenced};
use kemari_arbiter::Arbiter;
use kemari_audit::Recorder;
use kemari_replication::link::{Credentials, LinkSecurity};
use kemari_replication::primary::{EngineOptions, StepHooks};

use super::CliError;
use super::args::{ReplicationArgs, SecurityArgs};

/// The check before each effect.
pub(super) fn fence(arbiter: Option<&Arc<dyn Arbiter>>) -> Arc<dyn Fence> {
    match arbiter {
        Some(arbiter) => arbiter.fence(),
        None => Arc::new(Unfenced),
    }
}

/// The observer of effects.
pub(super) fn observer(recorder: Option<&Arc<Recorder>>) -> Option<Arc<dyn Observer>> {
    recorder.map(|recorder| recorder.clone() as Arc<dyn Observer>)
}

/// How links are secured. Errors in the files are found here.
pub(super) fn link_security(args: &SecurityArgs) -> Result<LinkSecurity, CliError> {
    let tls = args
        .tls
        .as_deref()
        .map(|dir| Credentials::open(dir, args.tls_peer.as_deref()))
        .transpose()
        .map_err(|error| CliError::usage(error.to_string()))?;
    Ok(LinkSecurity { tls, allow_plain: args.insecure_plain_tcp })
}

/// The engine's options.
pub(super) fn engine_options(
    args: &ReplicationArgs,
    name: &str,
    security: LinkSecurity,
    audit: Option<Arc<Recorder>>,
) -> EngineOptions {
    EngineOptions {
        name: name.to_owned(),
        standby: args.standby.clone(),
        security,
        audit,
        verify: args.verify,
        delta_cache: args.delta_cache << 20,
        stall_timeout: Duration::from_millis(args.stall_timeout),
        primary: PrimaryOptions {
            heartbeat_interval: Duration::from_millis(args.heartbeat_interval),
            heartbeat_timeout: Duration::from_millis(args.heartbeat_timeout),
            ack_timeout: Duration::from_millis(args.ack_timeout),
            // Allow more time before the first checkpoint: no effect waits for the other side then.
            setup_timeout: Duration::from_millis(args.heartbeat_timeout.saturating_mul(20)),
            max_in_flight: args.max_in_flight as usize,
            ..PrimaryOptions::default()
        },
        policy: PolicyOptions {
            interval: Duration::from_millis(args.epoch_interval),
            ..PolicyOptions::default()
        },
        steps: StepHooks::default(),
    }
}
