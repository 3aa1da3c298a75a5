//! `kemari standby`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ft_core::standby::{Event, StandbyOptions};
use io_gate_host::backend::terminal::RawMode;
use kemari_arbiter::Arbiter;
use kemari_audit::{Recorder, Side};
use kemari_hypervisor::kvm;
use kemari_machine::boot::{Boot, BootError};
use kemari_machine::{Ended, Machine, MachineError};
use kemari_replication::descriptors::Reserve;
use kemari_replication::ownership::OwnershipGuard;
use kemari_replication::primary::{Engine, EngineOptions};
use kemari_replication::standby::resources::Resources;
use kemari_replication::standby::{
    End, HostFactory, Inheritance, Input, Shown, StandbyConfig, StandbyDriver, shown,
};
use kemari_replication::takeover::{self, Process, TakeoverError};

use super::ending::{self, Ending};
use super::pid_file::PidFile;
use super::{
    CliError, StandbyArgs, arbiter, audit, control_guest, control_standby, last, options, panic,
    start, terminal,
};
use crate::control::ControlSocket;

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
    let factory = HostFactory::new(
        args.machine(0, 0),
        options::fence(arbiter.as_ref()),
        options::observer(recorder.as_ref()),
    );
    let driver = StandbyDriver::new(
        standby_config(args, boot, recorder.clone()),
        arbiter.clone(),
        Box::new(factory),
    )
    .with_resources(&resources);
    let stop = driver.stop_handle();
    ending.by(move |_| stop.stop());
    let status = driver.status();
    let handler = control_standby::handler(driver.inputs(), status.clone());
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
            let ended = run_takeover(options, *inheritance, &here, &ending);
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
fn run_takeover(
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
    let ownership = OwnershipGuard::of(arbiter, &machine, term, ending::fails);
    // A signal that has arrived since the standby last looked ends the machine too.
    ending.ends(&machine);
    let goes_on = Arc::new(OnceLock::new());
    if let Some(control) = here.control {
        control.replace_handler(control_standby::active_handler(&machine, here.status, &goes_on));
    }
    let mut process = StandbyProcess::default();
    let engine = match takeover::take_over(inheritance, options, arbiter, here.status, &mut process)
    {
        Ok(engine) => engine,
        Err(error) => return not_taken_over(error, here.status),
    };
    ownership.keep();
    // Set only here.
    let _ = goes_on.set(engine.clone());
    if let Some(control) = here.control {
        control.replace_handler(control_guest::handler(&engine));
    }
    shown(here.status).taken_over(Ok(term.0));
    Ok(ending::to_the_end(&engine, process.terminal))
}

/// The work of this process at the steps of a takeover.
#[derive(Default)]
struct StandbyProcess {
    /// The terminal's former mode, which is restored at the end.
    terminal: Option<RawMode>,
}

impl Process for StandbyProcess {
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
