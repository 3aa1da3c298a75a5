//! Runs a guest in this process until its end. Used by `kemari run`, and by a standby that has
//! taken over.

use std::io::IsTerminal;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::Button;
use ft_core::Term;
use ft_core::policy::PolicyOptions;
use ft_core::primary::PrimaryOptions;
use io_gate_host::backend::terminal::{self, RawMode};
use io_gate_host::{Fence, Observer, Unfenced};
use kemari_arbiter::Arbiter;
use kemari_audit::Recorder;
use kemari_confine::seccomp::{self, Role};
use kemari_machine::config::MachineConfig;
use kemari_machine::{Ended, Machine};
use kemari_replication::link::{Credentials, LinkAddr, LinkSecurity};
use kemari_replication::primary::{Engine, EngineOptions, Steps};
use kemari_replication::session::disk_claim;
use serde_json::json;

use super::args::{OperationArgs, ReplicationArgs, SecurityArgs};
use super::{CliError, EXIT_FAILED, last};
use crate::control::{Command, ControlPlace, ControlSocket, Handler, Outcome, Reply, done};
use crate::signals;

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
        steps: Steps::default(),
    }
}

/// Makes the engine end epochs on the device thread.
pub(super) fn install_sealer(engine: &Arc<Engine>) -> Result<(), CliError> {
    engine.install_sealer().map_err(|error| CliError::failed(error.to_string()))
}

/// Waits for the end of a running guest and shuts everything down in good order.
pub(super) fn to_the_end(
    engine: &Arc<Engine>,
    arbiter: Option<&Arc<dyn Arbiter>>,
    terminal: Option<RawMode>,
) -> u8 {
    let machine = engine.machine();
    // Leak one reference: the thread that drops the last one would have to tear the engine down,
    // and most threads may not. The engine ends with the process.
    std::mem::forget(engine.clone());
    let ended = machine.wait();
    last::ends(ended.exit_code());
    if let Some(term) = engine.conclude(&ended) {
        end_term(arbiter, term);
    }
    engine.note_put_away(ended.clone());
    drop(terminal);
    let code = report(&ended);
    match ended {
        Ended::PoweredOff | Ended::Signal(_) => judged(code, engine.mismatches()),
        Ended::Failed(_) | Ended::Fenced(_) | Ended::Unprotected(_) => code,
    }
}

/// The exit code of a process that has ended in good order: `code`, unless the two sides have
/// differed.
pub(super) fn judged(code: u8, mismatches: u64) -> u8 {
    if mismatches == 0 {
        return code;
    }
    log::error!(
        "--verify has found {mismatches} checkpoints that differed, expected none: see above"
    );
    super::EXIT_MISMATCH
}

/// The machine's name at the arbiter and on its disks, while the start may still fail. Dropping
/// this releases the name, so that a corrected command does not need to seize it.
pub(super) struct Claim<'a> {
    arbiter: Option<&'a Arc<dyn Arbiter>>,
    /// The machine whose disks are released.
    machine: Option<&'a Machine>,
    term: Term,
}

impl<'a> Claim<'a> {
    /// Claims the name, unless the arbiter or a fence record names another holder.
    pub(super) fn begin(
        arbiter: Option<&'a Arc<dyn Arbiter>>,
        machine: &'a Machine,
        seize: bool,
    ) -> Result<Self, CliError> {
        let term = match arbiter {
            Some(arbiter) => {
                let disk = disk_claim(machine)?;
                // Find a disk that is in use before this process takes the term from the process
                // that uses it.
                machine.reserve_disks(seize)?;
                let term = arbiter.begin_on(disk.as_ref(), seize);
                term.map_err(|error| CliError::usage(error.to_string()))?
            }
            None if seize => {
                machine.seize_disks()?;
                Term(0)
            }
            None => Term(0),
        };
        Ok(Self { arbiter, machine: Some(machine), term })
    }

    /// The claim of a machine that has won `term` and is about to run.
    pub(super) fn of(
        arbiter: Option<&'a Arc<dyn Arbiter>>,
        machine: &'a Machine,
        term: Term,
    ) -> Self {
        Self { arbiter, machine: Some(machine), term }
    }

    /// The term that was won.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// Keeps the name: the guest runs, and from here on the guest's end releases the name.
    pub(super) fn keep(mut self) {
        (self.arbiter, self.machine) = (None, None);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.machine.is_some() {
            last::ends(EXIT_FAILED);
        }
        // P2: the guest has not run, but its requests in flight may have been started.
        if self.machine.is_none_or(|machine| machine.gate().free_disks()) {
            end_term(self.arbiter, self.term);
        }
    }
}

/// Releases the term, so that the next start needs no `--seize`.
fn end_term(arbiter: Option<&Arc<dyn Arbiter>>, term: Term) {
    if let Some(arbiter) = arbiter
        && let Err(error) = kemari_arbiter::end(arbiter, term)
    {
        log::warn!(
            "cannot record the machine's end, so that the next start needs --seize: {error}"
        );
    }
}

/// Logs one line on the machine's end, and returns the exit code.
pub(super) fn report(ended: &Ended) -> u8 {
    match ended {
        Ended::PoweredOff => log::info!("powered off"),
        Ended::Signal(number) => log::info!("ended by signal {number}"),
        Ended::Fenced(reason) => {
            log::error!("fenced: {reason}; this primary performs nothing more and exits")
        }
        Ended::Failed(reason) => log::error!("{reason}"),
        Ended::Unprotected(reason) => log::error!("--require-protected: {reason}"),
    }
    ended.exit_code()
}

/// Ends the machine if it is not protected within `patience`, or as soon as a standby refuses it.
/// Once the machine has been protected, it may continue alone (P7).
pub(super) fn require_protected(engine: &Arc<Engine>, patience: Duration) -> Result<(), CliError> {
    const EVERY: Duration = Duration::from_millis(20);
    let engine = engine.clone();
    let watch = move || {
        seccomp::enter(Role::Timer, &engine.machine().wakes());
        let begun = Instant::now();
        while !engine.is_protected() {
            if let Some(reason) = engine.refusal() {
                let reason = format!("the standby refuses: {reason}");
                return engine.machine().end(Ended::Unprotected(reason));
            }
            let reason = engine.reason();
            if begun.elapsed() >= patience {
                let state = engine.state();
                let reason = reason.unwrap_or_else(|| "the reason is not known".to_owned());
                return engine.machine().end(Ended::Unprotected(format!(
                    "expected `protected` after {} ms, found `{state}`: {reason}",
                    patience.as_millis()
                )));
            }
            std::thread::sleep(EVERY);
        }
    };
    let started = std::thread::Builder::new().name("protected".to_owned()).spawn(watch);
    started.map(drop).map_err(|error| {
        CliError::failed(format!("cannot start the thread of --require-protected: {error}"))
    })
}

/// Sets the terminal to raw mode if the guest's console is on it: now, or when this process comes
/// to the foreground. P7: the guest does not depend on the terminal, so a failure is only reported.
pub(super) fn enter_terminal(config: &MachineConfig) -> Option<RawMode> {
    if !config.is_on_stdio() {
        return None;
    }
    if shares_terminal_with_log() {
        log::info!(
            "the guest's console and this log share a terminal: add `2>>FILE` to the command to write the log to a file"
        );
    }
    match RawMode::enter() {
        Ok(raw) => {
            if terminal::is_attached() {
                follow_terminal();
            }
            Some(raw)
        }
        Err(error) => {
            log::warn!(
                "cannot set the terminal to raw mode: {error}; the guest gets lines, not keys"
            );
            None
        }
    }
}

/// Whether standard output and standard error are one terminal.
fn shares_terminal_with_log() -> bool {
    let (output, error) = (std::io::stdout(), std::io::stderr());
    let device =
        |found: rustix::io::Result<rustix::fs::Stat>| found.ok().map(|found| found.st_rdev);
    output.is_terminal()
        && error.is_terminal()
        && device(rustix::fs::fstat(&output)) == device(rustix::fs::fstat(&error))
}

/// Polls the terminal: the kernel does not notify a process when its shell brings it to the
/// foreground.
fn follow_terminal() {
    const EVERY: Duration = Duration::from_millis(500);
    let follow = || {
        seccomp::enter(Role::Terminal, &[]);
        // A terminal that is gone does not come back.
        while RawMode::follow().is_ok() {
            std::thread::sleep(EVERY);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("terminal".to_owned()).spawn(follow) {
        log::warn!(
            "cannot start a thread to follow the terminal: {error}; after `fg` the guest gets lines, not keys"
        );
    }
}

/// The handler of the control socket while the guest runs here.
pub(super) fn control_handler(engine: &Arc<Engine>) -> Handler {
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

/// The control socket, if `--control` is given. It has no handler yet.
pub(super) fn take_control(args: &OperationArgs) -> Result<Option<ControlPlace>, CliError> {
    args.control.as_deref().map(ControlPlace::take).transpose().map_err(CliError::usage)
}

/// Starts to answer requests on the control socket.
pub(super) fn serve_control(
    place: Option<ControlPlace>,
    handler: Handler,
) -> Result<Option<ControlSocket>, CliError> {
    place.map(|place| place.serve(handler)).transpose().map_err(CliError::failed)
}

/// The signals that end the process. They are watched before anything runs that they could end, so
/// that none is lost. The thread that receives them never blocks, so a second signal ends the
/// process at once.
#[derive(Clone, Default)]
pub(super) struct Ending(Arc<Mutex<EndingState>>);

/// The reaction to a signal. It must not block.
type End = Box<dyn Fn(i32) + Send>;

#[derive(Default)]
struct EndingState {
    signal: Option<i32>,
    end: Option<End>,
}

impl Ending {
    /// Starts to watch for signals.
    pub(super) fn watch() -> Result<Self, CliError> {
        signals::bear_limits_of_files();
        last::watch()
            .map_err(|error| CliError::failed(format!("cannot watch the end: {error}")))?;
        let ending = Self::default();
        let watching = ending.clone();
        signals::watch(move |number| watching.came(number)).map_err(|error| {
            CliError::failed(format!("cannot install signal handlers: {error}"))
        })?;
        Ok(ending)
    }

    fn came(&self, number: i32) {
        let mut state = self.lock();
        state.signal = Some(number);
        if let Some(end) = &state.end {
            end(number);
        }
    }

    /// The signal that has arrived, if any.
    pub(super) fn signal(&self) -> Option<i32> {
        self.lock().signal
    }

    /// Sets `end` as the reaction to the next signal, in place of the previous reaction. Calls it
    /// at once if a signal has already arrived.
    pub(super) fn by(&self, end: impl Fn(i32) + Send + 'static) {
        let mut state = self.lock();
        if let Some(number) = state.signal {
            end(number);
        }
        state.end = Some(Box::new(end));
    }

    /// Makes a signal end `machine`.
    pub(super) fn ends(&self, machine: &Arc<Machine>) {
        let machine = machine.clone();
        self.by(move |number| machine.end(Ended::Signal(number)));
    }

    fn lock(&self) -> MutexGuard<'_, EndingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// P7. Fails if a signal between two reactions triggers neither.
    #[test]
    fn a_signal_ends_what_there_is_and_what_comes() {
        let ending = Ending::default();
        let (told, ended) = channel();
        let standby = told.clone();
        ending.by(move |number| standby.send(("standby", number)).unwrap());
        assert!(ended.try_recv().is_err());
        ending.came(15);
        ending.by(move |number| told.send(("machine", number)).unwrap());
        assert_eq!(ended.iter().take(2).collect::<Vec<_>>(), [("standby", 15), ("machine", 15)]);
    }
}
