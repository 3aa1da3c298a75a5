//! Who finds a mutant: the simulation, or the unit tests, each in a process of its own with a limit.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::tree::Built;

/// What a mutant came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// So many worlds showed it, or it did not come to an end.
    Simulation(String),
    UnitTests(String),
    Survives,
}

/// A mutant may loop for ever, or take all memory.
const LIMIT: Duration = Duration::from_secs(180);

/// Judges mutant `number`.
pub(crate) fn judge(built: &Built, number: usize, seeds: u64, alone: bool) -> Result<Verdict> {
    let mut command = Command::new(&built.simulation);
    let count = seeds.to_string();
    command.args(["--first", "1", "--jobs", "1", "--until-broken", "--seeds", &count]);
    if let Some(why) = fails(command, number)? {
        return Ok(Verdict::Simulation(why));
    }
    if alone {
        return Ok(Verdict::Survives);
    }
    let tests = Command::new(&built.unit_tests);
    Ok(fails(tests, number)?.map_or(Verdict::Survives, Verdict::UnitTests))
}

/// How a judge ends that finds something: what it says in its last line but one.
fn fails(mut command: Command, number: usize) -> Result<Option<String>> {
    let limited = limit(&command);
    command = limited;
    let log = tempfile::tempfile()?;
    command.env("KEMARI_MUTANT", number.to_string()).stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| said(&log)));
        }
        if begun.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("no end within {} s", LIMIT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same command with no more than 4 GiB of memory.
fn limit(command: &Command) -> Command {
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -v 4194304; exec \"$@\"", "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

fn said(log: &std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = String::new();
    let mut log = log;
    if log.rewind().and_then(|()| log.read_to_string(&mut text)).is_err() {
        return "died".to_owned();
    }
    let line = text.lines().find(|line| {
        line.starts_with("VIOLATION") || line.contains("panicked at") || line.contains("FAILED")
    });
    line.unwrap_or("died").to_owned()
}

/// Whether the judges find nothing where nothing is wrong.
pub(crate) fn check_sound(built: &Built, seeds: u64) -> Result<()> {
    let verdict = judge(built, 0, seeds, false)?;
    anyhow::ensure!(
        verdict == Verdict::Survives,
        "the judges find a fault where there is none: {verdict:?}"
    );
    Ok(())
}

/// Where the project is.
pub(crate) fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
