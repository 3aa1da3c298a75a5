//! `kemari ctl`.

use super::{CliError, CtlArgs, CtlCommand};
use crate::control::{Command, request};

/// Sends one command and prints the answer.
pub(super) fn ctl(args: &CtlArgs) -> Result<u8, CliError> {
    let command = match &args.command {
        CtlCommand::Status => Command::Status,
        CtlCommand::Protect { addr } => Command::Protect { standby: addr.clone() },
        CtlCommand::RunAlone => Command::RunAlone,
        CtlCommand::TakeOver => Command::TakeOver,
        CtlCommand::RotateKeys => Command::RotateKeys,
        CtlCommand::ResetStats => Command::ResetStats,
        CtlCommand::PowerOff => Command::PowerOff,
    };
    let answer = request(&args.socket, &command).map_err(CliError::failed)?;
    println!("{answer}");
    Ok(0)
}
