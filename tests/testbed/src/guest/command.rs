//! Runs other programs. An error contains the program's output.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Number of lines of a failed program's output in an error.
const SHOWN_LINES: usize = 15;

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

fn finish(command: &mut Command) -> Result<Output> {
    let what = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{what}`: is the program installed?"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    bail!("`{what}` ended with {}; it said:\n{tail}", output.status)
}

/// Runs a program to its end. Its output appears only in an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    finish(command).map(|_| ())
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// The program cannot be started, fails, or writes bytes that are not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not UTF-8", describe(command)))
}
