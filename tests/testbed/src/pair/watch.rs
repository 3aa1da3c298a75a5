//! Waits for conditions on a pair, with a time limit. Each wait also checks the processes and
//! Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::members::Member;

/// Interval of status requests.
const INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    patience: Duration,
}

impl Watch {
    pub(super) fn new(stop: Arc<AtomicBool>, patience: Duration) -> Self {
        Self { stop, patience }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Calls `ask` until it returns an answer. None of `members` may end in the meantime. Returns
    /// an error of `ask` only if it lasts until the time limit.
    pub(super) fn until<R>(
        &self,
        what: &str,
        members: &mut [&mut Member],
        mut ask: impl FnMut(&mut [&mut Member]) -> Result<Option<R>>,
    ) -> Result<R> {
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = ask(members);
            if let Ok(Some(answer)) = answer {
                return Ok(answer);
            }
            self.check_stop()?;
            members.iter_mut().try_for_each(|member| still_runs(member, what))?;
            if Instant::now() >= deadline {
                answer?;
                let states: Vec<String> = members.iter().map(|member| state_of(member)).collect();
                bail!(
                    "expected that {what} within {:?}, found {}",
                    self.patience,
                    states.join(", ")
                );
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Waits for `time`. None of `members` may end in the meantime.
    pub(super) fn pass(&self, time: Duration, members: &mut [&mut Member]) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.check_stop()?;
            members.iter_mut().try_for_each(|member| still_runs(member, "it runs under load"))?;
            std::thread::sleep(left.min(INTERVAL));
        }
        Ok(())
    }

    /// Fails if one of `members` has ended.
    pub(super) fn check_running(&self, members: &mut [&mut Member]) -> Result<()> {
        members.iter_mut().try_for_each(|member| still_runs(member, "it runs"))
    }

    fn check_stop(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }
}

fn state_of(member: &Member) -> String {
    let state = member
        .status()
        .map_or_else(|error| format!("{error:#}"), |status| status.json().to_string());
    format!("{}: {state}", member.process.name())
}

fn still_runs(member: &mut Member, what: &str) -> Result<()> {
    if let Some(exit) = member.process.exited() {
        let lines = member.process.lines();
        // Show the reason, not the lines after it, for instance a hint at `--help`.
        let reason =
            lines.iter().rfind(|line| line.starts_with("error: ") || line.starts_with("kemari: "));
        let said = reason.or(lines.last()).map_or("nothing", String::as_str);
        bail!(
            "expected that {what}, but {} ended ({exit}); it said: {said}",
            member.process.name()
        );
    }
    Ok(())
}
