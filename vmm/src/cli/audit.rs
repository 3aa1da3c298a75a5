//! `kemari audit`, and the audit log of `--audit`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use kemari_audit::{AuditLog, Log, Recorder, Side, verify};

use super::args::{AuditArgs, AuditCommand, OperationArgs};
use super::{CliError, output};

/// Starts the log, if `--audit` is given.
pub(super) fn start(
    args: &OperationArgs,
    name: &str,
    side: Side,
) -> Result<Option<AuditLog>, CliError> {
    args.audit
        .as_ref()
        .map(|spec| AuditLog::start(spec, name, side))
        .transpose()
        .map_err(|error| CliError::usage(error.to_string()))
}

/// The recorder of the log.
pub(super) fn recorder(log: Option<&AuditLog>) -> Option<Arc<Recorder>> {
    log.map(AuditLog::recorder)
}

/// Runs `kemari audit` on the files of a log.
pub(super) fn audit(args: &AuditArgs) -> Result<u8, CliError> {
    match &args.command {
        AuditCommand::Verify { files, rotated } => judge(files, *rotated),
        AuditCommand::Show { file } => show(&read(std::slice::from_ref(file))?),
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Log>, CliError> {
    let (logs, twice) =
        kemari_audit::read_all(files).map_err(|error| CliError::usage(error.to_string()))?;
    if !twice.is_empty() {
        log::warn!("counted only once: {}", twice.join("; "));
    }
    Ok(logs)
}

fn judge(files: &[PathBuf], rotated: bool) -> Result<u8, CliError> {
    let logs = read(files)?;
    if let [first, rest @ ..] = logs.as_slice()
        && let Some(other) = rest.iter().find(|log| log.header.vm != first.header.vm)
    {
        return Err(CliError::usage(format!(
            "expected logs of one virtual machine, found `{}` in {} and `{}` in {}",
            first.header.vm, first.name, other.header.vm, other.name
        )));
    }
    let verdict = verify(&logs, rotated);
    output::print(&verdict.to_string()).map(|()| verdict.exit_code())
}

fn show(logs: &[Log]) -> Result<u8, CliError> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = || {
        for log in logs {
            let header = &log.header;
            writeln!(
                out,
                "{}: `{}`, {}, boot {}",
                log.name, header.vm, header.holder, header.boot
            )?;
            for entry in &log.entries {
                writeln!(out, "{entry}")?;
            }
            if let Some(hole) = &log.hole {
                writeln!(out, "INCOMPLETE: {hole}")?;
            }
        }
        out.flush()
    };
    output::written(print()).map(|()| 0)
}
