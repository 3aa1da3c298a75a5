//! `kemari ctl`.

use super::{CliError, CtlArgs, CtlCommand, output};
use crate::control::{Command, Request, request};

/// Sends one command and prints the answer.
pub(super) fn ctl(args: &CtlArgs) -> Result<u8, CliError> {
    let command = match &args.command {
        CtlCommand::Status => Command::Status,
        CtlCommand::Protect { addr } => Command::Protect { standby: addr.clone() },
        CtlCommand::RunAlone => Command::RunAlone,
        CtlCommand::TakeOver => Command::TakeOver,
        CtlCommand::RotateKeys => Command::RotateKeys,
        CtlCommand::ResetStats => Command::ResetStats,
        CtlCommand::Discard => Command::Discard,
        CtlCommand::Shutdown => Command::Shutdown,
        CtlCommand::PowerOff => Command::PowerOff,
    };
    let request_of = Request { command, wait_ms: Some(args.timeout.saturating_mul(1000)) };
    let answer = request(&args.socket, &request_of).map_err(CliError::failed)?;
    output::print(&answer.to_string()).map(|()| 0)
}
