//! `kemari run`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use io_gate::host::new_gate;
use io_gate_host::backend::terminal::RawMode;

use super::{CliError, RunArgs};
use crate::arbiter::NoFence;
use crate::config::{ConsoleConfig, MachineConfig};
use crate::machine::{AttachOptions, Ended, Machine, MachineError, signals, unprotected};

/// Runs a machine to its end; gives the exit code.
pub(super) fn run(args: &RunArgs) -> Result<u8, CliError> {
    if args.boot.kernel.is_none() {
        return Err(MachineError::NoKernel.into());
    }
    if args.protection.standby.is_some() || args.protection.control.is_some() {
        return Err(CliError::usage("this build has no --standby and no --control yet"));
    }
    let (ledger, mut authority) = new_gate();
    let machine = Machine::build(args.machine(), ledger, Arc::new(NoFence))?;
    // Everything that can be wrong is found before anything is visible outside.
    machine.boot()?;
    machine.attach_backends(AttachOptions { lock_disks: true, append: false })?;
    let _pid_file = args.protection.pid_file.as_deref().map(PidFile::write).transpose()?;
    let ender = machine.clone();
    signals::watch(move |number| ender.end(Ended::Signal(number)))
        .map_err(|error| CliError::failed(format!("cannot install signal handlers: {error}")))?;
    let terminal = enter_terminal(machine.config())?;
    unprotected(&machine, &mut authority);
    machine.start()?;
    let ended = machine.wait();
    machine.stop();
    drop(terminal);
    Ok(report(&ended))
}

/// Makes the terminal raw if the guest's console is on it.
fn enter_terminal(config: &MachineConfig) -> Result<Option<RawMode>, CliError> {
    let stdio = ConsoleConfig::Stdio;
    if config.serial != stdio && config.virtio_console != Some(stdio) {
        return Ok(None);
    }
    RawMode::enter().map(Some).map_err(|error| CliError::failed(format!("cannot make the terminal raw: {error}")))
}

/// One line on how the machine ended; its exit code.
fn report(ended: &Ended) -> u8 {
    match ended {
        Ended::PoweredOff => log::info!("powered off"),
        Ended::Signal(number) => log::info!("ended by signal {number}"),
        Ended::Fenced(reason) => log::error!("fenced: {reason}"),
        Ended::Failed(reason) => log::error!("{reason}"),
    }
    ended.exit_code()
}

/// A file with this process's id, for as long as the process lives.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, CliError> {
        fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|error| CliError::usage(format!("cannot write --pid-file {}: {error}", path.display())))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // It may have been removed by whoever read it.
        let _ = fs::remove_file(&self.0);
    }
}
