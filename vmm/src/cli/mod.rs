//! The command line: the commands and the exit codes of the process.

mod arbiter;
mod args;
mod audit;
mod control_guest;
mod control_standby;
mod ctl;
mod disk;
mod ending;
mod last;
mod options;
mod output;
mod panic;
mod paths;
mod pid_file;
mod run;
mod standby;
mod start;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use io_gate_host::backend::terminal::{REQUESTS, RawMode, TERMINAL, never_stop};
use kemari_confine::{Terminal, logging, seccomp};
use kemari_support::shortage;

pub use args::{
    AuditArgs, AuditCommand, Cli, CtlArgs, CtlCommand, DiskArgs, DiskCommand, DiskFiles,
    GuestDevices, PairArgs, ProbeArgs, RunArgs, StandbyArgs, Subcommand,
};

use kemari_machine::MachineError;
use kemari_replication::ownership::ClaimError;

/// A mistake in the command line, or in a file that it names.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 1;
/// The process ended in good order, but `--verify` has found a difference between the two sides
/// (P8).
const EXIT_MISMATCH: u8 = 4;

/// Why a command has failed. It is printed as one line.
#[derive(Debug)]
pub struct CliError {
    message: String,
    code: u8,
}

impl CliError {
    /// An error that the operator has to correct.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EXIT_USAGE }
    }

    /// Any other failure.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EXIT_FAILED }
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<MachineError> for CliError {
    fn from(error: MachineError) -> Self {
        if error.is_usage() {
            Self::usage(error.to_string())
        } else {
            Self::failed(error.to_string())
        }
    }
}

impl From<ClaimError> for CliError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Disks(error) => error.into(),
            ClaimError::Arbiter(error) => Self::usage(error.to_string()),
        }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    logging::start(console_terminal());
    panic::watch();
    let result = match Cli::try_parse() {
        Ok(cli) => carry_out(cli.command),
        Err(error) => not_parsed(&error),
    };
    // The exit does not drop values that threads share, so remove this process's files here.
    io_gate_host::own_files::give_back_all();
    match result {
        Ok(code) => {
            logging::flush();
            ExitCode::from(code)
        }
        Err(error) => {
            logging::last_words(&format!("kemari: {}", shortage::explained(error.message)));
            ExitCode::from(error.code)
        }
    }
}

fn carry_out(command: Subcommand) -> Result<u8, CliError> {
    match command {
        Subcommand::Run(args) => run::run(&args),
        Subcommand::Standby(args) => standby::standby(&args),
        Subcommand::Ctl(args) => ctl::ctl(&args),
        Subcommand::Audit(args) => audit::audit(&args),
        Subcommand::Disk(args) => disk::disk(&args),
        Subcommand::Probe(args) => probe(&args),
    }
}

/// Handles a mistake in the command line. Answers a request for help or version.
fn not_parsed(error: &clap::Error) -> Result<u8, CliError> {
    if !error.use_stderr() {
        return output::print(error.render().to_string().trim_end()).map(|()| 0);
    }
    if error.kind() == ErrorKind::InvalidUtf8
        && let Some(argument) = std::env::args_os().find(|argument| argument.to_str().is_none())
    {
        return Err(CliError::usage(format!(
            "argument `{}`: expected UTF-8, found other bytes; rename the file, or make a link to it with a name in \
            UTF-8",
            argument.display()
        )));
    }
    // A failure to write to standard error cannot be reported.
    let _ = error.print();
    Ok(EXIT_USAGE)
}

/// The terminal mode, which every thread may restore.
#[must_use]
pub fn console_terminal() -> Terminal {
    Terminal {
        descriptor: TERMINAL,
        requests: &REQUESTS,
        restores_from: RawMode::restores_from(),
        restore: RawMode::restore,
    }
}

/// Gives up the rights that the product does not need. Called before anything is opened and before
/// there are other threads.
fn confine(mode: seccomp::Mode) -> Result<(), CliError> {
    kemari_hypervisor::memory::begin();
    kemari_replication::descriptors::raise_limit();
    never_stop();
    seccomp::start(mode, console_terminal())
        .map_err(|error| CliError::failed(error.to_string()))?;
    logging::start_writer()
        .map_err(|error| CliError::failed(format!("cannot start the log's thread: {error}")))
}

fn probe(args: &ProbeArgs) -> Result<u8, CliError> {
    if args.limits {
        let limits = crate::probe::limits(&args.pages)
            .map_err(|error| CliError::failed(format!("cannot measure the limits: {error}")))?;
        return print_json(&limits, args.json);
    }
    print_json(&crate::probe::probe(), args.json)
}

fn print_json(result: &impl serde::Serialize, on_one_line: bool) -> Result<u8, CliError> {
    let text = match on_one_line {
        true => serde_json::to_string(result),
        false => serde_json::to_string_pretty(result),
    };
    let text =
        text.map_err(|error| CliError::failed(format!("the result is not JSON: {error}")))?;
    output::print(&text).map(|()| 0)
}
