//! Opens what is behind the devices of a guest that goes on here, however long it takes: the guest is here and nowhere else (P7).
//!
//! Storage and networks may not answer, so a thread of its own opens them. Whoever ends this side meanwhile does not wait for it
//! (P9).

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::standby::{Shown, shown};
use crate::machine::{AttachOptions, Ended, Events, Machine, MachineError};
use crate::seccomp::{self, Role};

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often an attempt that is under way is looked after.
const LOOK: Duration = Duration::from_millis(50);
/// An attempt that takes longer is told of.
const SLOW: Duration = Duration::from_secs(10);
/// How long an attempt that is under way may take when this side has been ended.
const LAST: Duration = Duration::from_secs(5);

/// This side was ended before the guest could go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAttached {
    /// How.
    pub(super) ended: Ended,
    /// An attempt did not come back: what it waits for may still be taken (P2).
    pub(super) hangs: bool,
}

/// Attaches the machine's backends, unless it ends first.
pub(super) fn attach(machine: &Arc<Machine>, status: &Shown) -> Result<(), NotAttached> {
    let tell = |reason| shown(status).cannot_go_on(reason);
    loop {
        let opening = machine.clone();
        let attempt = move || {
            seccomp::enter(Role::Main, &[]);
            opening.attach_backends(AttachOptions { shared_disks: true, append: true })
        };
        match watched(machine.events(), attempt, tell)? {
            Ok(()) => {
                tell(None);
                return Ok(());
            }
            Err(error) => {
                log::error!("the guest cannot go on yet, put this right and it will: {error}");
                tell(Some(error.to_string()));
            }
        }
        if let Some(ended) = machine.events().wait_within(RETRY) {
            return Err(NotAttached { ended, hangs: false });
        }
    }
}

/// What comes of `attempt`, in a thread of its own.
fn watched(
    events: &Events,
    attempt: impl FnOnce() -> Result<(), MachineError> + Send + 'static,
    tell: impl Fn(Option<String>),
) -> Result<Result<(), MachineError>, NotAttached> {
    let (done, is_done) = sync_channel(1);
    // Nobody waits any more when this side has been ended.
    let attempt = move || drop(done.send(attempt()));
    if let Err(error) = std::thread::Builder::new().name("attach".to_owned()).spawn(attempt) {
        return Ok(Err(error.into()));
    }
    let begun = Instant::now();
    let (mut told, mut ended_at) = (false, None);
    loop {
        match is_done.recv_timeout(LOOK) {
            Ok(outcome) => return Ok(outcome),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("a panic ends the process"),
        }
        if let Some(ended) = events.ended()
            && ended_at.get_or_insert_with(Instant::now).elapsed() >= LAST
        {
            return Err(NotAttached { ended, hangs: true });
        }
        if !told && begun.elapsed() >= SLOW {
            told = true;
            let reason = format!("what is behind the devices has not answered for {SLOW:?}");
            log::error!("the guest cannot go on yet: {reason}");
            tell(Some(reason));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// P9. Fails where whoever waits for storage that does not answer waits for ever.
    #[test]
    fn an_attempt_that_hangs_does_not_keep_this_side_from_ending() {
        let events = Events::new().unwrap();
        let (let_go, hangs) = channel::<()>();
        events.end(Ended::Signal(15));
        let begun = Instant::now();
        let attempt = move || {
            let _ = hangs.recv();
            Ok(())
        };
        let outcome = watched(&events, attempt, |_| {});
        let expected = NotAttached { ended: Ended::Signal(15), hangs: true };
        assert_eq!(outcome.unwrap_err(), expected);
        assert!(begun.elapsed() >= LAST, "it was not given its time");
        drop(let_go);
    }

    #[test]
    fn an_attempt_that_comes_back_counts_also_when_this_side_has_ended() {
        let events = Events::new().unwrap();
        events.end(Ended::Signal(15));
        assert!(watched(&events, || Ok(()), |_| {}).unwrap().is_ok());
    }
}
