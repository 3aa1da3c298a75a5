//! The engine's measurements, and the status that an operator sees.

use ft_core::primary::{Phase, Primary, Report};
use io_gate::host::{MAX_MEMORY, MAX_RECORDED};
use io_gate_host::{GateHost, LatencySummary};
use kemari_machine::Ended;
use serde_json::{Value, json};

use super::operator::STUCK;
use super::{Engine, STATUS_PATIENCE};
use crate::repeats::Repeats;
use crate::stats::{Distribution, Summary};

/// The state of a machine that makes no progress.
const STALLED: &str = "stalled";
/// The state of a machine whose standby holds a checkpoint and could not take over.
const DEGRADED: &str = "degraded";

/// Counters since this process began to run the guest.
#[derive(Debug, Default)]
pub struct EngineStats {
    pub(super) checkpoints: u64,
    pub(super) pause: Distribution,
    pub(super) kick: Distribution,
    pub(super) seal: Distribution,
    pub(super) save: Distribution,
    pub(super) collect: Distribution,
    pub(super) copy: Distribution,
    pub(super) resume: Distribution,
    /// From the first look that found held effects to the pause.
    pub(super) wait: Distribution,
    /// From the guest's resume until the checkpoint is encoded.
    pub(super) encode: Distribution,
    /// From the sender's first byte of a checkpoint until the operating system has the last one.
    pub(super) send: Distribution,
    pub(super) commit_latency: Distribution,
    pub(super) epoch_bytes: Distribution,
    pub(super) dirty_pages: Distribution,
    pub(super) verified: u64,
    pub(super) mismatches: u64,
    /// The last mismatch, in words.
    last_mismatch: Option<String>,
    takeover: Option<Takeover>,
    /// Repeated failures to reach the arbiter.
    unanswered: Repeats,
}

/// The cost of a takeover.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// From the grant to the guest's resume, in microseconds.
    pub micros: u64,
    /// Requests in flight that were performed again.
    pub replayed: usize,
}

impl EngineStats {
    /// Counts a report; returns whether to log it.
    pub(super) fn report(&mut self, report: &Report) -> bool {
        if let Report::ArbiterUnreachable { reason } = report {
            return self.unanswered.failed(reason);
        }
        if let Report::Joined { .. } | Report::LinkLost { .. } | Report::RunsAlone { .. } = report {
            self.unanswered.over();
        }
        if let Report::Verified { verified, .. } = report {
            self.verified += 1;
            self.mismatches += u64::from(!verified.agree);
            if !verified.agree {
                self.last_mismatch = Some(report.to_string());
            }
        }
        true
    }
}

/// How long effects wait at the gate, for each class.
fn effect_latencies(gate: &GateHost) -> Value {
    let latencies = gate.latencies().into_iter().map(|latency| {
        let LatencySummary { class, count, p50, p90, p99, p999, max } = latency;
        (class.name().to_owned(), json!(Summary { count, p50, p90, p99, p999, max }))
    });
    Value::Object(latencies.collect())
}

impl Engine {
    /// Resets all distributions. Counters continue.
    pub fn reset_stats(&self) {
        self.machine.gate().reset_latencies();
        let mut stats = self.stats();
        let EngineStats {
            pause,
            kick,
            seal,
            save,
            collect,
            copy,
            resume,
            wait,
            encode,
            send,
            commit_latency,
            epoch_bytes,
            dirty_pages,
            ..
        } = &mut *stats;
        for distribution in [
            pause,
            kick,
            seal,
            save,
            collect,
            copy,
            resume,
            wait,
            encode,
            send,
            commit_latency,
            epoch_bytes,
            dirty_pages,
        ] {
            distribution.reset();
        }
    }

    /// How often `--verify` has found a difference between the two sides (P8).
    pub fn mismatches(&self) -> u64 {
        self.stats().mismatches
    }

    /// Adds the mismatches found before this side ran the guest.
    pub fn note_mismatches(&self, found: u64) {
        self.stats().mismatches += found;
    }

    /// Records that this machine was started by a takeover.
    pub fn note_takeover(&self, takeover: Takeover) {
        self.stats().takeover = Some(takeover);
    }

    /// The status that is available while the engine is stuck.
    fn stuck_status(&self) -> Value {
        json!({
            "role": "primary",
            "state": STALLED,
            "name": self.options.name,
            "pid": std::process::id(),
            "reason": STUCK,
        })
    }

    /// The state for the operator: `protected` only if a takeover would succeed now (P9).
    fn state_of(&self, primary: &Primary) -> &'static str {
        match primary.phase() {
            // A machine whose output cannot leave is not protected.
            _ if self.watchdog.is_stalled() || primary.is_stalled() => STALLED,
            Phase::Protected | Phase::Alone if self.watchdog.lane_hangs().is_some() => STALLED,
            // The standby holds a checkpoint but could not take over.
            Phase::Protected if primary.lack().is_some() => DEGRADED,
            phase => phase.name(),
        }
    }

    /// As [`state`](Self::state), for a thread that also serves other requests and must not block.
    ///
    /// # Errors
    /// When the engine is stuck.
    pub fn state_now(&self) -> Result<&'static str, String> {
        let state = self.lock_within(STATUS_PATIENCE).ok_or(STUCK)?;
        Ok(self.state_of(&state.primary))
    }

    /// The state of the protection, as in `status`.
    pub fn state(&self) -> &'static str {
        self.state_of(&self.lock().primary)
    }

    /// Whether a takeover would succeed now, as far as this side knows.
    pub fn is_protected(&self) -> bool {
        self.state() == Phase::Protected.name()
    }

    /// The status as JSON.
    pub fn status(&self) -> Value {
        let (state, term, sealed, acknowledged, reason, lack) = {
            let Some(state) = self.lock_within(STATUS_PATIENCE) else { return self.stuck_status() };
            let primary = &state.primary;
            (
                self.state_of(primary),
                primary.term().0,
                primary.sealed().map_or(0, |epoch| epoch.0),
                primary.acknowledged().map_or(0, |epoch| epoch.0),
                primary.reason().map(str::to_owned),
                primary
                    .lack()
                    .map(|lack| format!("the standby could not continue the guest: {lack}")),
            )
        };
        // While a machine is being stopped, errors are not a reason to show.
        let failed = match self.machine.events().ended() {
            Some(Ended::Failed(why)) => Some(why),
            _ => None,
        };
        let hangs = self.watchdog.lane_hangs();
        let gate = self.machine.gate();
        // Read the counts before locking the figures: another thread may hold the gate's own lock
        // for long.
        let counts = gate.counts();
        let (latencies, held) = (effect_latencies(gate), gate.held());
        let load = gate.load();
        let stats = self.stats();
        json!({
            "role": "primary",
            "state": state,
            "name": self.options.name,
            "term": term,
            "epoch": sealed,
            "acknowledged": acknowledged,
            "checkpoints": stats.checkpoints,
            "pause_us": stats.pause.summary(),
            "pause_parts_us": {
                "kick": stats.kick.summary(),
                "seal": stats.seal.summary(),
                "save": stats.save.summary(),
                "collect": stats.collect.summary(),
                "copy": stats.copy.summary(),
                "resume": stats.resume.summary(),
            },
            "commit_parts_us": {
                "wait": stats.wait.summary(),
                "encode": stats.encode.summary(),
                "send": stats.send.summary(),
            },
            "commit_latency_us": stats.commit_latency.summary(),
            "effect_latency_us": latencies,
            "epoch_bytes": stats.epoch_bytes.summary(),
            "dirty_pages": stats.dirty_pages.summary(),
            "verify": {
                "checked": stats.verified,
                "mismatches": stats.mismatches,
                "last_mismatch": stats.last_mismatch,
            },
            "takeover_us": stats.takeover.map(|takeover| takeover.micros),
            "replayed": counts.replayed,
            "in_flight_at_takeover": stats.takeover.map(|takeover| takeover.replayed),
            "released": counts.performed,
            "held": held,
            // Bytes of effects that are staged and not settled, held or not, and their upper
            // bounds.
            "unsettled_bytes": { "memory": load.memory, "memory_max": MAX_MEMORY, "checkpoint": load.recorded, "checkpoint_max": MAX_RECORDED },
            // `None`: not known at this moment.
            "listens_to_power_button": self.machine.power_button().map(|button| button.enabled),
            "waits_for_arbiter": gate.waits_for_fence(),
            "unanswered": stats.unanswered.count(),
            "pid": std::process::id(),
            "reason": failed.or(hangs.filter(|_| state == STALLED)).or(lack).or(reason),
        })
    }
}
