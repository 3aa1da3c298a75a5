//! Writes answers to standard output, which may be a pipe without a reader or a full disk.

use std::io::{self, ErrorKind, Write};

use super::CliError;

/// Prints `text` and a line end. A reader that has closed the pipe is not an error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    written(writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()))
}

/// Turns a failure to print into an error for the operator.
pub(super) fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::failed(format!(
            "cannot print the answer to standard output: {error}; expected a file or a pipe that can be written to"
        ))),
        _ => Ok(()),
    }
}
