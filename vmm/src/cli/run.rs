//! `kemari run`.

use ft_core::Term;
use io_gate::host::new_gate;

use super::guest::{self, observer};
use super::paths::Paths;
use super::pid_file::PidFile;
use super::{CliError, RunArgs, arbiter, audit};
use crate::audit::{Event, Side, Won};
use crate::engine::Engine;
use crate::machine::{AttachOptions, Ended, Machine, MachineError, signals};

/// Runs a machine to its end; gives the exit code.
pub(super) fn run(args: &RunArgs) -> Result<u8, CliError> {
    args.check_gated().map_err(|refusal| CliError::usage(refusal.to_string()))?;
    if args.boot.kernel.is_none() {
        return Err(MachineError::NoKernel.into());
    }
    let protection = &args.protection;
    Paths::of_machine(&args.machine()).and_of_protection(protection).check()?;
    super::confine(protection.seccomp)?;
    let arbiter = arbiter::open(protection, &args.name, "primary")?;
    let security = guest::link_security(protection)?;
    let log = audit::start(protection, &args.name, Side::Primary)?;
    let recorder = audit::recorder(log.as_ref());
    let (ledger, authority) = new_gate();
    let fence = guest::fence(arbiter.as_ref());
    let machine =
        Machine::build_audited(args.machine(), ledger, fence, observer(recorder.as_ref()))?;
    // Everything that can be wrong is found before anything is visible outside.
    machine.boot()?;
    // Before any file or socket is touched that another process may be running this machine with.
    let term = match &arbiter {
        Some(arbiter) => {
            arbiter.begin(protection.seize).map_err(|error| CliError::usage(error.to_string()))?
        }
        None => Term(0),
    };
    if let Some(recorder) = &recorder {
        let how = Won::Begin;
        recorder.record(Event::TermWon { how, term: term.0, epoch: 0, session: 0, next: 1 });
    }
    // A standby must be able to open the disks while this process still has them open: of a pair,
    // the arbiter says who may write.
    let shared_disks = arbiter.is_some() || protection.standby.is_some();
    if let Err(error) = machine.attach_backends(AttachOptions { shared_disks, append: false }) {
        guest::free_name(arbiter.as_ref(), term);
        return Err(error.into());
    }
    let _pid_file = protection.pid_file.as_deref().map(PidFile::write).transpose()?;
    let ender = machine.clone();
    signals::watch(move |number| ender.end(Ended::Signal(number)))
        .map_err(|error| CliError::failed(format!("cannot install signal handlers: {error}")))?;
    let terminal = guest::enter_terminal(machine.config())?;
    let options = guest::engine_options(protection, &args.name, security, recorder);
    let engine = Engine::begin(machine.clone(), authority, arbiter.clone(), term, options)
        .map_err(|error| CliError::failed(format!("cannot start the engine: {error}")))?;
    guest::install_sealer(&engine)?;
    let _control = guest::listen_control(protection, guest::control_handler(&engine))?;
    machine.start()?;
    Ok(guest::to_the_end(&engine, arbiter.as_ref(), terminal))
}
