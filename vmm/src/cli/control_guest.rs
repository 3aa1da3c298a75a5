//! The control socket of the side that runs the guest: each command, and when it is done.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use devices::Button;
use kemari_machine::Ended;
use kemari_replication::link::LinkAddr;
use kemari_replication::primary::Engine;
use serde_json::json;

use super::CliError;
use super::args::OperationArgs;
use crate::control::{Command, ControlPlace, ControlSocket, Handler, Outcome, Reply, done};

/// The control socket, if `--control` is given. It has no handler yet.
pub(super) fn take(args: &OperationArgs) -> Result<Option<ControlPlace>, CliError> {
    args.control.as_deref().map(ControlPlace::take).transpose().map_err(CliError::usage)
}

/// Starts to answer requests on the control socket.
pub(super) fn serve(
    place: Option<ControlPlace>,
    handler: Handler,
) -> Result<Option<ControlSocket>, CliError> {
    place.map(|place| place.serve(handler)).transpose().map_err(CliError::failed)
}

/// The handler of the control socket while the guest runs here.
pub(super) fn handler(engine: &Arc<Engine>) -> Handler {
    let engine = engine.clone();
    Arc::new(move |command| control(&engine, command))
}

fn control(engine: &Arc<Engine>, command: Command) -> Reply {
    match command {
        Command::Status => Reply::Now(Ok(engine.status())),
        Command::Protect { standby } => protect(engine, &standby),
        Command::RunAlone => run_alone(engine),
        Command::TakeOver | Command::Discard => {
            Reply::refused("expected a standby, found the side that runs the guest")
        }
        Command::RotateKeys => rotate_keys(engine),
        Command::ResetStats => {
            engine.reset_stats();
            Reply::Now(Ok(done(engine.state_now().unwrap_or("stalled"))))
        }
        Command::Shutdown => shutdown(engine),
        Command::PowerOff => {
            engine.machine().end(Ended::PoweredOff);
            ended(engine, || "the released effects are being performed".to_owned())
        }
    }
}

fn protect(engine: &Arc<Engine>, addr: &str) -> Reply {
    let attempt = match addr.parse::<LinkAddr>().and_then(|addr| engine.protect(addr)) {
        Ok(attempt) => attempt,
        Err(refusal) => return Reply::refused(refusal),
    };
    let (looked_at, engine) = (engine.clone(), engine.clone());
    let look = move || {
        let outcome = looked_at.attempt(attempt)?;
        let protected = |epoch| json!({ "done": true, "state": "protected", "epoch": epoch });
        Some(outcome.map(protected).map_err(|why| format!("not protected: {why}")))
    };
    Reply::later(look, move || engine.so_far())
}

fn run_alone(engine: &Arc<Engine>) -> Reply {
    if let Err(refusal) = engine.run_alone() {
        return Reply::refused(refusal);
    }
    let (looked_at, engine) = (engine.clone(), engine.clone());
    let look = move || Some(looked_at.runs_alone()?.map(|()| done("alone")));
    Reply::later(look, move || engine.so_far())
}

fn rotate_keys(engine: &Arc<Engine>) -> Reply {
    let told = match engine.rotate_keys() {
        Ok(told) => told,
        Err(refusal) => return Reply::refused(refusal),
    };
    let (looked_at, engine) = (engine.clone(), engine.clone());
    let look = move || match told.try_recv() {
        Ok(rotated) => Some(rotated.map(|()| done(looked_at.state_now().unwrap_or("stalled")))),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Err("the link has ended".to_owned())),
    };
    Reply::later(look, move || engine.so_far())
}

/// Presses the power button. If the guest does not power off in time, the button's registers show
/// how it has reacted.
fn shutdown(engine: &Arc<Engine>) -> Reply {
    engine.machine().press_power_button();
    let machine = engine.machine().clone();
    ended(engine, move || {
        let found = match machine.power_button() {
            Some(Button { pressed: false, .. }) => {
                "it has read the power button, and has not powered off yet"
            }
            Some(Button { enabled: true, .. }) => {
                "it has enabled the power button, and has not read it yet: it may hang"
            }
            _ => "it ignores its power button (no ACPI driver has enabled it)",
        };
        format!("the guest runs: {found}; `kemari ctl power-off` cuts the power")
    })
}

/// Replies when the machine is off and everything is shut down.
fn ended(engine: &Arc<Engine>, so_far: impl FnMut() -> String + Send + 'static) -> Reply {
    let engine = engine.clone();
    Reply::later(move || outcome(&engine), so_far)
}

/// The answer to a client that has requested the machine's end; `None` before the machine has ended
/// and is shut down.
pub(super) fn outcome(engine: &Engine) -> Option<Outcome> {
    Some(match engine.put_away()? {
        Ended::PoweredOff => Ok(done("powered-off")),
        Ended::Signal(number) => Err(format!("the machine was ended by signal {number}")),
        Ended::Fenced(why) | Ended::Failed(why) | Ended::Unprotected(why) => Err(why),
    })
}
