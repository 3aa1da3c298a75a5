//! What an operator sees of a standby.

use ft_core::standby::Standby;
use serde_json::{Value, json};

use crate::stats::Distribution;

/// A copy of what matters, for threads other than the standby's own.
#[derive(Debug)]
pub struct StandbyStatus {
    name: String,
    state: &'static str,
    term: u64,
    epoch: u64,
    checkpoints: u64,
    dirty_pages: Distribution,
    verified: u64,
    mismatches: u64,
    reason: Option<String>,
}

impl StandbyStatus {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: "waiting",
            term: 0,
            epoch: 0,
            checkpoints: 0,
            dirty_pages: Distribution::default(),
            verified: 0,
            mismatches: 0,
            reason: None,
        }
    }

    pub(super) fn update(&mut self, core: &Standby) {
        self.state = core.phase().name();
        self.term = core.term().0;
        self.epoch = core.epoch().map_or(0, |epoch| epoch.0);
        if self.reason.as_deref() != core.reason() {
            self.reason = core.reason().map(str::to_owned);
        }
    }

    pub(super) fn applied(&mut self, pages: u64) {
        self.checkpoints += 1;
        self.dirty_pages.add(pages);
    }

    pub(super) fn verified(&mut self, agree: bool) {
        self.verified += 1;
        self.mismatches += u64::from(!agree);
    }

    /// The status as JSON.
    pub fn json(&self) -> Value {
        json!({
            "role": "standby",
            "state": self.state,
            "name": self.name,
            "term": self.term,
            "epoch": self.epoch,
            "acknowledged": self.epoch,
            "checkpoints": self.checkpoints,
            "dirty_pages": self.dirty_pages.summary(),
            "verify": { "checked": self.verified, "mismatches": self.mismatches },
            "takeover_us": null,
            "pid": std::process::id(),
            "reason": self.reason,
        })
    }
}
