//! `kemari run`.

use std::time::Duration;

use io_gate::host::new_gate;
use kemari_audit::{Event, Side, Won};
use kemari_hypervisor::memory::scarce;
use kemari_machine::{AttachOptions, Machine};
use kemari_replication::descriptors::{DescriptorError, Reserve, check_room};
use kemari_replication::ownership::OwnershipGuard;
use kemari_replication::primary::{Engine, EngineResources};

use super::ending::{self, Ending};
use super::pid_file::PidFile;
use super::{CliError, RunArgs, arbiter, audit, control_guest, options, panic, start, terminal};
use crate::control::most_clients;

/// Runs a machine until its end. Returns the exit code.
pub(super) fn run(args: &RunArgs) -> Result<u8, CliError> {
    start::check_run(args)?;
    let pair = &args.pair;
    super::confine(pair.security.seccomp)?;
    args.machine().boot.as_ref().map_or(Ok(()), start::check_host)?;
    // Check in order of what costs least to undo: first what no other process sees, last the
    // machine's name. A failure releases what was taken before.
    let security = options::link_security(&pair.security)?;
    start::check_peer(&pair.replication, &security)?;
    // From here on there are files to remove and names to release.
    let ending = Ending::watch()?;
    let _pid_file = pair.operation.pid_file.as_deref().map(PidFile::write).transpose()?;
    let control = control_guest::take(&pair.operation)?;
    let arbiter = arbiter::open(pair, &args.name, "primary")?;
    let log = audit::start(&pair.operation, &args.name, Side::Primary)?;
    log.iter().for_each(|log| log.keep(false));
    let recorder = audit::recorder(log.as_ref());
    let (ledger, authority) = new_gate();
    let fence = options::fence(arbiter.as_ref());
    let config = args.machine();
    // The memory cannot be protected from other processes that map it.
    let protectable = config.memory_file.is_none();
    let scarce = scarce(config.memory, 1).filter(|_| protectable);
    let observer = options::observer(recorder.as_ref());
    let machine = Machine::build_audited(config, ledger, fence, observer)?;
    if let Some(scarce) = scarce {
        log::warn!("{scarce}");
    }
    machine.boot()?;
    let too_few = |error: DescriptorError| CliError::failed(error.to_string());
    let clients = if control.is_some() { most_clients() } else { 0 };
    Reserve::of_start(machine.config(), clients).hold().map_err(too_few)?;
    // Claim before the machine uses any network or terminal, because another process may use them
    // for the same machine.
    let ownership = OwnershipGuard::begin(arbiter.as_ref(), &machine, args.seize, ending::fails)?;
    let term = ownership.term();
    // If the start fails, this is dropped before `ownership`: releasing a name opens files.
    let spare = Reserve::of_running(machine.config(), clients);
    spare.hold().map_err(too_few)?;
    if let Some(recorder) = &recorder {
        let how = Won::Begin;
        recorder.record(Event::TermWon { how, term: term.0, epoch: 0, session: 0, next: 1 });
    }
    // Share the disks in a pair: a standby must be able to open them while this process has them
    // open. There the arbiter decides which side may write.
    let shared_disks = arbiter.is_some() || pair.replication.standby.is_some();
    machine.attach_backends(AttachOptions { shared_disks, append: false })?;
    ending.ends(&machine);
    let terminal = terminal::enter(machine.config());
    let options = options::engine_options(&pair.replication, &args.name, security, recorder);
    let resources = EngineResources::new(arbiter.as_ref())
        .map_err(|error| CliError::failed(format!("cannot start the engine: {error}")))?;
    let engine =
        Engine::begin(resources, machine.clone(), authority, arbiter.clone(), term, options);
    panic::runs_by(&engine);
    engine.install_sealer().map_err(|error| CliError::failed(error.to_string()))?;
    let _control = control_guest::serve(control, control_guest::handler(&engine))?;
    if let Some(patience) = args.require_protected {
        engine.require_protected(Duration::from_millis(patience)).map_err(|error| {
            CliError::failed(format!("cannot watch for --require-protected: {error}"))
        })?;
    }
    drop(spare);
    if let Err(few) = check_room() {
        log::warn!("the guest runs, but may stay unprotected: {few}");
    }
    machine.start()?;
    ownership.keep();
    log.iter().for_each(|log| log.keep(true));
    Ok(ending::to_the_end(&engine, terminal))
}
