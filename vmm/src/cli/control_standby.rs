//! The control socket of a standby, and of a side that is taking over: each command, and when it is
//! done.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};

use ft_core::standby::Event;
use kemari_machine::{Ended, Machine};
use kemari_replication::primary::Engine;
use kemari_replication::standby::{Input, OperatorRequest, Shown, shown};
use serde_json::json;

use super::control_guest;
use crate::control::{Command, Handler, Outcome, Reply, done};

/// The handler while this side is a standby.
pub(super) fn handler(inputs: SyncSender<Input>, status: Shown) -> Handler {
    Arc::new(move |command| match command {
        Command::Status => Reply::Now(Ok(shown(&status).json())),
        Command::TakeOver => take_over_command(inputs.clone(), status.clone()),
        Command::Discard => {
            let said = shown(&status).session();
            let request =
                OperatorRequest::event(inputs.clone(), Event::OperatorDiscard, Some(said));
            reply(request, status.clone(), || Some(Ok(done("waiting"))))
        }
        Command::PowerOff => {
            let request = OperatorRequest::stop(inputs.clone());
            let seen = status.clone();
            reply(request, status.clone(), move || stopped(shown(&seen).state()))
        }
        Command::RotateKeys => {
            let request = OperatorRequest::new(inputs.clone(), Input::RotateKeys);
            let seen = status.clone();
            reply(request, status.clone(), move || Some(Ok(done(shown(&seen).state()))))
        }
        Command::Protect { .. } | Command::RunAlone | Command::ResetStats | Command::Shutdown => {
            Reply::refused("expected the side that runs the guest, found a standby")
        }
    })
}

/// The outcome of a request to stop the standby.
fn stopped(state: &str) -> Option<Outcome> {
    match state {
        "stopped" => Some(Ok(done("stopped"))),
        // The request had no effect: the standby is taking over, and there is a guest to power off.
        "active" => Some(Err(
            "expected a standby, found one that is taking over now: to end the guest, send power-off again".to_owned(),
        )),
        _ => None,
    }
}

fn take_over_command(inputs: SyncSender<Input>, status: Shown) -> Reply {
    let (said, seen) = (shown(&status).session(), status.clone());
    let request = OperatorRequest::event(inputs, Event::OperatorTakeOver, Some(said));
    reply(request, status, move || {
        let seen = shown(&seen);
        if ![0, said].contains(&seen.session()) {
            return Some(Err(format!(
                "expected a takeover in this session, found that another session has begun: {}",
                seen.so_far()
            )));
        }
        let term = seen.takeover()?;
        Some(term.map(|term| json!({ "done": true, "state": "active", "term": term })))
    })
}

/// Replies with `outcome` once the standby has accepted `request`.
fn reply(
    mut request: OperatorRequest,
    status: Shown,
    mut outcome: impl FnMut() -> Option<Outcome> + Send + 'static,
) -> Reply {
    let look = move || match request.accepted()? {
        Ok(()) => outcome(),
        Err(refusal) => Some(Err(refusal)),
    };
    Reply::later(look, move || shown(&status).so_far())
}

/// The handler from the won term until the guest runs here.
pub(super) fn active_handler(
    machine: &Arc<Machine>,
    status: &Shown,
    goes_on: &Arc<OnceLock<Arc<Engine>>>,
) -> Handler {
    let (machine, status, goes_on) = (machine.clone(), status.clone(), goes_on.clone());
    Arc::new(move |command| match command {
        Command::Status => Reply::Now(Ok(shown(&status).json())),
        Command::PowerOff => {
            machine.end(Ended::PoweredOff);
            let (looked_at, seen, goes_on) = (status.clone(), status.clone(), goes_on.clone());
            let off = move || match goes_on.get() {
                Some(engine) => control_guest::outcome(engine),
                // The guest has not run here.
                None => match shown(&looked_at).takeover()? {
                    Ok(_) => None,
                    Err(_) => Some(Ok(done("powered-off"))),
                },
            };
            Reply::later(off, move || shown(&seen).so_far())
        }
        _ => Reply::refused(format!(
            "expected a running guest, found one that is being taken over: {}",
            shown(&status).so_far()
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if a client that sends `power-off` during a takeover does not learn that the standby
    /// is taking over.
    #[test]
    fn stopping_a_standby_that_takes_over_is_refused_with_the_reason() {
        assert!(matches!(stopped("stopped"), Some(Ok(_))));
        assert!(matches!(stopped("active"), Some(Err(_))));
        assert!(stopped("doubting").is_none(), "it may still be stopped");
    }
}
