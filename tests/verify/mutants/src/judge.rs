//! The judges of a mutant: the core's unit tests and the simulation. Each runs as a process with
//! limits.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::tree::Copied;

/// A judge of mutants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    UnitTests,
    /// The simulation, with this many worlds.
    Simulation(u64),
}

impl Judge {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::UnitTests => "unit tests",
            Self::Simulation(_) => "simulation",
        }
    }

    /// The name of the file with the judge's verdicts: a hash of everything that they depend on.
    pub(crate) fn key(self, copied: &Copied) -> String {
        match self {
            Self::UnitTests => format!("unit-tests-{:016x}", copied.tests_hash),
            Self::Simulation(seeds) => format!("simulation-{seeds}-{:016x}", copied.sim_hash),
        }
    }

    /// Builds the judge's program.
    pub(crate) fn program(self, copied: &Copied) -> Result<PathBuf> {
        match self {
            Self::UnitTests => copied.unit_tests(),
            Self::Simulation(_) => copied.simulation(),
        }
    }

    fn command(self, program: &Path) -> Command {
        match self {
            Self::UnitTests => {
                let mut command = limited(program, 5);
                // The random inputs are the same each time, and earlier failures are not tried
                // again.
                command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_CASES", "32");
                command.env("RUST_TEST_THREADS", "1");
                command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
                command
            }
            Self::Simulation(seeds) => {
                let mut command = limited(program, 20 + seeds / 20);
                command.args(["--first", "1", "--jobs", "1", "--until-broken", "--seeds"]);
                command.arg(seeds.to_string());
                command
            }
        }
    }

    /// The judge's message about mutant `number`, or `None` if the judge does not find the mutant.
    /// With 0, no mutant is active.
    pub(crate) fn finds(self, program: &Path, number: usize) -> Result<Option<String>> {
        let log = tempfile::tempfile()?;
        let mut command = self.command(program);
        command.env("KEMARI_MUTANT", number.to_string()).stdin(Stdio::null());
        let status = command.stdout(log.try_clone()?).stderr(Stdio::null()).status()?;
        Ok((!status.success()).then(|| said(log)))
    }
}

/// Runs a program with a limit of CPU seconds, and of 4 GiB of memory: a mutant may loop forever,
/// or allocate without end. Wall-clock time is not limited, because a correct core is slow on a
/// busy machine.
fn limited(program: &Path, seconds: u64) -> Command {
    let mut command = Command::new("/bin/sh");
    let limits = format!("ulimit -t {seconds} && ulimit -v 4194304 && exec \"$0\" \"$@\"");
    command.args(["-c", &limits]).arg(program);
    command
}

fn said(mut log: File) -> String {
    let mut text = String::new();
    if log.rewind().and_then(|()| log.read_to_string(&mut text)).is_err() {
        return "died".to_owned();
    }
    let tells = |line: &&str| line.starts_with("VIOLATION") || line.ends_with("FAILED");
    text.lines().find(tells).unwrap_or("no end").to_owned()
}

/// Checks that the judge finds nothing in the core without a mutant.
pub(crate) fn check_sound(judge: Judge, program: &Path) -> Result<()> {
    let found = judge.finds(program, 0)?;
    anyhow::ensure!(
        found.is_none(),
        "the {} find a fault in the unchanged core: {found:?}",
        judge.name()
    );
    Ok(())
}
