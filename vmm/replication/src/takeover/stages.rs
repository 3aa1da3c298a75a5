//! Reports a stage of a takeover that does not finish (P9). The engine's watchdog cannot: it starts
//! when the guest runs.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use crate::standby::{Shown, shown};

/// The stages of a takeover. Dropping this ends the last one. A stage of `None` is a wait that
/// other code reports.
pub(super) struct Stages(Option<SyncSender<Option<&'static str>>>);

/// Larger than the number of stages in one takeover, so that the channel never fills.
const ROOM: usize = 16;

impl Stages {
    /// Starts the thread that watches the stages. It reports a stage longer than `patience` in the
    /// log and in the status. Without a thread the takeover continues unwatched (P7).
    pub(super) fn watched(status: &Shown, patience: Duration) -> Self {
        let (tell, told) = sync_channel(ROOM);
        let status = status.clone();
        let started = threads::start("stages", Role::Timer, move || {
            listen(&told, &status, patience);
        });
        Self(started.map(|_| tell).inspect_err(|error| log::warn!("{error}")).ok())
    }

    /// Ends the current stage and begins `stage`.
    pub(super) fn at(&self, stage: impl Into<Option<&'static str>>) {
        if let Some(tell) = &self.0 {
            let _ = tell.try_send(stage.into());
        }
    }
}

fn listen(told: &Receiver<Option<&'static str>>, status: &Shown, patience: Duration) {
    let mut at: Option<&'static str> = None;
    loop {
        let next = match at {
            Some(_) => told.recv_timeout(patience),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match (next, at) {
            (Ok(stage), _) => at = stage,
            (Err(RecvTimeoutError::Timeout), Some(stage)) => {
                let reason = format!("{stage}: not finished after {patience:?}");
                log::error!("the guest does not continue: {reason}");
                shown(status).cannot_go_on(Some(reason));
                let next = told.recv();
                shown(status).cannot_go_on(None);
                let Ok(stage) = next else { return };
                at = stage;
            }
            (Err(_), _) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;
    use crate::standby::StandbyStatus;

    fn until(status: &Shown, wanted: impl Fn(&serde_json::Value) -> bool) {
        let begun = Instant::now();
        loop {
            let found = shown(status).json();
            if wanted(&found) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{found}");
            std::thread::yield_now();
        }
    }

    /// P9. Fails if a takeover that hangs is not reported, or is still reported after its end.
    #[test]
    fn what_hangs_is_told_until_it_is_over() {
        let status = Shown::new(Mutex::new(StandbyStatus::new("vm")));
        let stages = Stages::watched(&status, Duration::from_millis(1));
        stages.at("the first");
        until(&status, |found| found["lacks"] == "the first: not finished after 1ms");
        stages.at("the second");
        until(&status, |found| found["lacks"] == "the second: not finished after 1ms");
        stages.at(None);
        until(&status, |found| found["lacks"].is_null());
    }
}
