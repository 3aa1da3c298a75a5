//! The search for a standby.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Phase, Primary, Report, Result};
use crate::{Time, deliberate};

/// Counted as this many failures in a row: an early retry would most likely fail in the same way.
const UNLIKELY: u32 = 8;

impl Primary {
    pub(super) fn may_look(&self) -> bool {
        let free = self.phase == Phase::Alone && !self.trying && self.stalled.is_none();
        free && !self.holds_takeover()
    }

    pub(super) fn look_for_standby(&mut self, now: Time, out: &mut Vec<Action>) {
        let due = self.search.is_some_and(|time| time <= now);
        if due && self.may_look() {
            self.trying = true;
            out.push(Action::Connect);
        }
    }

    pub(super) fn search_later(&mut self, now: Time) {
        if self.search.is_some() {
            self.search_failures += 1;
            self.search = Some(now + self.options.connect_retry.after(self.search_failures));
        }
    }

    /// The next attempt is made as after many failures: it will probably fail in the same way.
    pub(super) fn search_rarely(&mut self) {
        self.search_failures = self.search_failures.max(UNLIKELY);
    }

    pub(super) fn connect_failed(
        &mut self,
        now: Time,
        reason: String,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        if !self.trying {
            return Err(self.illegal_named("connect failed", "no connection was asked for"));
        }
        self.trying = deliberate!(SearchOnce);
        self.search_later(now);
        self.reason = Some(format!("no standby: {reason}"));
        out.push(Action::Report(Report::NoStandby { reason }));
        Ok(())
    }
}
