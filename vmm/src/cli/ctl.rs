//! `kemari ctl`.

use std::io::IsTerminal;
use std::time::Duration;

use kemari_confine::logging;
use serde_json::Value;

use super::{CliError, CtlArgs, CtlCommand, output};
use crate::control::{Command, Patience, Request, request_within};

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
    let patience = Patience::with(Duration::from_secs(args.timeout));
    if command == Command::Shutdown && args.timeout > 0 {
        announce_shutdown(args);
    }
    let answer = ask(args, command, args.timeout, &patience)?;
    let on_one_line = args.json || !std::io::stdout().is_terminal();
    let text = if on_one_line { answer.to_string() } else { line_by_line(&answer) };
    output::print(&text).map(|()| 0)
}

fn ask(
    args: &CtlArgs,
    command: Command,
    seconds: u64,
    patience: &Patience,
) -> Result<Value, CliError> {
    let request = Request { command, wait_ms: Some(seconds.saturating_mul(1000)) };
    request_within(&args.control, &request, patience).map_err(CliError::failed)
}

/// Reports how the guest treats its power button, before the wait for the guest begins.
fn announce_shutdown(args: &CtlArgs) {
    // A process that does not answer, or that runs no guest, gives the reason when it refuses the
    // command itself.
    let Ok(status) = ask(args, Command::Status, 0, &Patience::of_question()) else { return };
    if status["role"] != "primary" {
        return;
    }
    log::info!(
        "pressed the guest's power button; waiting at most {} s for it to power off (--timeout)",
        args.timeout
    );
    if status["listens_to_power_button"] == false {
        log::warn!(
            "the guest ignores its power button: no ACPI driver has enabled it; if it does not do so soon, cut the \
            power with `kemari ctl power-off`"
        );
    }
    // Write the log now: the wait follows.
    logging::flush();
}

/// Formats JSON with one line per field.
fn line_by_line(answer: &Value) -> String {
    let Value::Object(fields) = answer else { return answer.to_string() };
    let fields = fields.iter().map(|(name, value)| format!("  {}: {value}", Value::from(&**name)));
    format!("{{\n{}\n}}", fields.collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_person_sees_is_json_all_the_same() {
        let status =
            json!({ "state": "alone", "pause_us": { "p50": 1, "p99": 2 }, "reason": null });
        let text = line_by_line(&status);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(status));
    }
}
