//! `kemari standby`.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use ft_core::handshake::MachineLayout;
use ft_core::standby::{Event, StandbyOptions};
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::backend::terminal::RawMode;
use io_gate_host::{Fence, Observer};
use kemari_arbiter::Arbiter;
use kemari_audit::{Recorder, Side};
use kemari_hypervisor::kvm;
use kemari_hypervisor::memory::{MemoryError, check_limits, scarce};
use kemari_machine::boot::{Boot, BootError};
use kemari_machine::config::MachineConfig;
use kemari_machine::{Ended, Machine, MachineError};
use kemari_replication::ownership::Claim;
use kemari_replication::primary::{Engine, EngineOptions};
use kemari_replication::standby::resources::{Reserve, Resources};
use kemari_replication::standby::{
    Answer, End, HostError, Inheritance, Input, MachineFactory, SessionId, Shown, StandbyConfig,
    StandbyDriver, shown,
};
use kemari_replication::takeover::{self, Process, TakeoverError};
use serde_json::json;

use super::ending::{self, Ending};
use super::pid_file::PidFile;
use super::{
    CliError, StandbyArgs, arbiter, audit, control_guest, last, options, panic, start, terminal,
};
use crate::control::{Command, ControlSocket, Handler, Outcome, Reply, done};

/// Holds a primary's checkpoints until it is stopped, or takes over and runs the guest until its
/// end.
pub(super) fn standby(args: &StandbyArgs) -> Result<u8, CliError> {
    start::check_standby(args)?;
    let pair = &args.pair;
    super::confine(pair.security.seccomp)?;
    // Find errors now, not when the primary dies.
    kvm::open().map_err(MachineError::from)?;
    let boot = open_boot(args)?;
    let security = options::link_security(&pair.security)?;
    start::check_peer(&pair.replication, &security)?;
    // From here on there are files to remove and names to release.
    let ending = Ending::watch()?;
    let _pid_file = pair.operation.pid_file.as_deref().map(PidFile::write).transpose()?;
    let control = control_guest::take(&pair.operation)?;
    let arbiter = arbiter::open(pair, &args.name, "standby")?;
    let listener =
        args.listen.listen(security.clone()).map_err(|error| CliError::usage(error.to_string()))?;
    let reserve = Arc::new(Reserve::of(&args.machine(0, 0)));
    let credentials = security.tls.clone();
    let resources =
        Arc::new(Resources::new(args.machine(0, 0), credentials, arbiter.clone(), reserve.clone()));
    reserve.hold_first().map_err(|error| CliError::usage(error.to_string()))?;
    let log = audit::start(&pair.operation, &args.name, Side::Standby)?;
    let recorder = audit::recorder(log.as_ref());
    let factory = Factory {
        told: Once::new(),
        fence: options::fence(arbiter.as_ref()),
        observer: options::observer(recorder.as_ref()),
        config: {
            let template = args.machine(0, 0);
            Box::new(move |memory, cpus| MachineConfig { memory, cpus, ..template.clone() })
        },
    };
    let driver = StandbyDriver::new(
        standby_config(args, boot, recorder.clone()),
        arbiter.clone(),
        Box::new(factory),
    )
    .with_resources(&resources);
    let stop = driver.stop_handle();
    ending.by(move |_| stop.stop());
    let status = driver.status();
    let handler = control_handler(driver.inputs(), status.clone());
    let control = control_guest::serve(control, handler)?;
    let lacks = driver.inputs();
    // Sending fails when the standby has ended. It needs no report then.
    let tell = move |lack| drop(lacks.send(Input::Event(Event::Resources { lack })));
    let watch = resources
        .watch(tell)
        .map_err(|error| CliError::failed(format!("cannot watch the resources: {error}")))?;
    log::info!("standby for `{}`: listening on {}", args.name, args.listen);
    let end = driver
        .run(listener)
        .map_err(|error| CliError::failed(format!("cannot serve the standby: {error}")))?;
    drop(watch);
    match end {
        End::Stopped { reason, had_won } => {
            log::info!("standby ended: {reason}");
            // This side had the right to run the guest, so its exit code is that of a machine ended
            // by the signal, even if the right came too late to be used.
            let signal = ending.signal().filter(|_| had_won).map(Ended::Signal);
            let code = signal.map_or(0, |ended| ended.exit_code());
            last::ends(code);
            Ok(ending::judged(code, shown(&status).mismatches()))
        }
        End::TakeOver(inheritance) => {
            let options =
                options::engine_options(&pair.replication, &args.name, security, recorder);
            let here =
                Here { arbiter: arbiter.as_ref(), control: control.as_ref(), status: &status };
            let ended = take_over(options, *inheritance, &here, &ending);
            if let Err(error) = &ended {
                shown(&status).taken_over(Err(format!("the guest cannot continue: {error}")));
            }
            ended
        }
    }
}

/// The parts of this process that a takeover uses.
struct Here<'h> {
    arbiter: Option<&'h Arc<dyn Arbiter>>,
    control: Option<&'h ControlSocket>,
    status: &'h Shown,
}

/// Takes over, with the work of this process before the takeover, at its steps and after it.
fn take_over(
    options: EngineOptions,
    inheritance: Inheritance,
    here: &Here<'_>,
    ending: &Ending,
) -> Result<u8, CliError> {
    let arbiter = here.arbiter;
    let machine = inheritance.machine.clone();
    let term = inheritance.taken.term();
    panic::goes_on_from(inheritance.taken.epoch(), &inheritance.reason);
    // If the takeover fails, no machine runs the guest. Release the term then, so that the next
    // start does not need to seize it.
    let claim = Claim::of(arbiter, &machine, term, ending::fails);
    // A signal that has arrived since the standby last looked ends the machine too.
    ending.ends(&machine);
    let goes_on = Arc::new(OnceLock::new());
    if let Some(control) = here.control {
        control.replace_handler(active_handler(&machine, here.status, &goes_on));
    }
    let mut steps = Steps::default();
    let engine = match takeover::take_over(inheritance, options, arbiter, here.status, &mut steps) {
        Ok(engine) => engine,
        Err(error) => return not_taken_over(error, here.status),
    };
    claim.keep();
    // Set only here.
    let _ = goes_on.set(engine.clone());
    if let Some(control) = here.control {
        control.replace_handler(control_guest::handler(&engine));
    }
    shown(here.status).taken_over(Ok(term.0));
    Ok(ending::to_the_end(&engine, steps.terminal))
}

/// The work of this process at the steps of a takeover.
#[derive(Default)]
struct Steps {
    /// The terminal's former mode, which is restored at the end.
    terminal: Option<RawMode>,
}

impl Process for Steps {
    fn has_backends(&mut self, machine: &Machine) {
        self.terminal = terminal::enter(machine.config());
    }

    fn has_engine(&mut self, engine: &Arc<Engine>) {
        panic::runs_by(engine);
    }
}

/// The exit code of a side that was ended before the guest could continue, or the reason why the
/// guest could not.
fn not_taken_over(error: TakeoverError, status: &Shown) -> Result<u8, CliError> {
    let why = error.to_string();
    match error {
        TakeoverError::Ended(ended) => {
            shown(status).taken_over(Err(why));
            Ok(ending::judged(ending::report(&ended), shown(status).mismatches()))
        }
        TakeoverError::Start(error) => Err(error.into()),
        TakeoverError::State(_) | TakeoverError::Sealer(_) => Err(CliError::failed(why)),
    }
}

/// The handler of the control socket from the won term until the guest runs here.
fn active_handler(
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

/// Opens this side's own kernel and reads it once, so that a joining primary does not wait for
/// that.
fn open_boot(args: &StandbyArgs) -> Result<Option<Arc<Boot>>, CliError> {
    let Some(kernel) = &args.boot.kernel else { return Ok(None) };
    let open = || {
        let boot = Boot::open(kernel, args.boot.initrd.as_deref(), &args.boot.cmdline)?;
        boot.ids()?;
        Ok(Arc::new(boot))
    };
    open().map(Some).map_err(|error: BootError| MachineError::from(error).into())
}

fn standby_config(
    args: &StandbyArgs,
    boot: Option<Arc<Boot>>,
    audit: Option<Arc<Recorder>>,
) -> StandbyConfig {
    let timeout = Duration::from_millis(args.pair.replication.heartbeat_timeout);
    StandbyConfig {
        name: args.name.clone(),
        audit,
        boot,
        options: StandbyOptions {
            heartbeat_interval: Duration::from_millis(args.pair.replication.heartbeat_interval),
            heartbeat_timeout: timeout,
            setup_timeout: timeout.saturating_mul(20),
            ..StandbyOptions::default()
        },
    }
}

/// Number of times that a standby maps a guest's memory: for the guest, and for the machine on
/// which states are tried.
const COPIES: u64 = 2;

struct Factory {
    /// Whether the warning about this process's memory limit was logged.
    told: Once,
    fence: Arc<dyn Fence>,
    observer: Option<Arc<dyn Observer>>,
    config: Box<dyn Fn(u64, u32) -> MachineConfig + Send>,
}

impl MachineFactory for Factory {
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError> {
        let memory = layout.memory_size();
        // P4: the machine on which states are tried is as large as the guest, and is created later.
        check_limits(memory, COPIES).map_err(MemoryError::from).map_err(MachineError::from)?;
        if let Some(scarce) = scarce(memory, COPIES) {
            // Log it once: a primary may join repeatedly.
            self.told.call_once(|| log::warn!("{scarce}"));
        }
        let (ledger, authority) = new_gate();
        let config = (self.config)(layout.memory_size(), layout.cpus);
        let (fence, observer) = (self.fence.clone(), self.observer.clone());
        let machine = Machine::build_audited(config, ledger, fence, observer)?;
        machine.check_backends()?;
        Ok((machine, authority))
    }
}

fn control_handler(inputs: SyncSender<Input>, status: Shown) -> Handler {
    Arc::new(move |command| match command {
        Command::Status => Reply::Now(Ok(shown(&status).json())),
        Command::TakeOver => take_over_command(inputs.clone(), status.clone()),
        Command::Discard => {
            let said = shown(&status).session();
            let request =
                OperatorRequest::event(inputs.clone(), Event::OperatorDiscard, Some(said));
            request.reply(status.clone(), || Some(Ok(done("waiting"))))
        }
        Command::PowerOff => {
            let mut request = OperatorRequest::event(inputs.clone(), Event::OperatorStop, None);
            // If another client or a signal has stopped the standby, this client's request is
            // fulfilled.
            request.when_ended = Ok(());
            let seen = status.clone();
            request.reply(status.clone(), move || stopped(shown(&seen).state()))
        }
        Command::RotateKeys => {
            let request = OperatorRequest::new(inputs.clone(), Input::RotateKeys);
            let seen = status.clone();
            request.reply(status.clone(), move || Some(Ok(done(shown(&seen).state()))))
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
    OperatorRequest::event(inputs, Event::OperatorTakeOver, Some(said)).reply(status, move || {
        let seen = shown(&seen);
        if ![0, said].contains(&seen.session()) {
            return Some(Err(format!(
                "it failed, as another session has begun: {}",
                seen.so_far()
            )));
        }
        let term = seen.takeover()?;
        Some(term.map(|term| json!({ "done": true, "state": "active", "term": term })))
    })
}

/// A request to the standby's thread, which may be busy and whose queue may be full.
struct OperatorRequest {
    inputs: SyncSender<Input>,
    input: Option<Input>,
    answer: Receiver<Result<(), String>>,
    taken: bool,
    /// The answer if the standby has ended.
    when_ended: Result<(), String>,
}

impl OperatorRequest {
    fn new(inputs: SyncSender<Input>, input: impl FnOnce(Answer) -> Input) -> Self {
        let (tell, answer) = sync_channel(1);
        let when_ended = Err("this standby has ended".to_owned());
        Self { inputs, input: Some(input(tell)), answer, taken: false, when_ended }
    }

    /// A request with an event. `said` is the session that the operator saw, if the request applies
    /// only to that one.
    fn event(inputs: SyncSender<Input>, event: Event, said: Option<SessionId>) -> Self {
        Self::new(inputs, |answer| Input::Operator(event, said, answer))
    }

    /// Whether the standby has accepted the request; `None` while that is not known. Does not
    /// block.
    fn look(&mut self) -> Option<Result<(), String>> {
        if let Some(input) = self.input.take() {
            match self.inputs.try_send(input) {
                Ok(()) => {}
                Err(TrySendError::Full(input)) => {
                    self.input = Some(input);
                    return None;
                }
                Err(TrySendError::Disconnected(_)) => return Some(self.when_ended.clone()),
            }
        }
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(self.when_ended.clone()),
        }
    }

    /// Replies with `outcome` once the standby has accepted the request.
    fn reply(
        mut self,
        status: Shown,
        mut outcome: impl FnMut() -> Option<Outcome> + Send + 'static,
    ) -> Reply {
        let look = move || {
            if !self.taken {
                match self.look()? {
                    Ok(()) => self.taken = true,
                    Err(refusal) => return Some(Err(refusal)),
                }
            }
            outcome()
        };
        Reply::later(look, move || shown(&status).so_far())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if a client that sends `power-off` during a takeover does not learn that the standby
    /// is taking over.
    #[test]
    fn who_wants_a_standby_off_that_takes_over_is_told_so() {
        assert!(matches!(stopped("stopped"), Some(Ok(_))));
        assert!(matches!(stopped("active"), Some(Err(_))));
        assert!(stopped("doubting").is_none(), "it may still be stopped");
    }
}
