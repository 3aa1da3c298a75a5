//! Checks that a second run starts at once: unchanged code is not compiled again.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build;

/// The longest time from the start of the command to the first line about the pair.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A busy machine may be slow once; a needless compilation happens in every try.
const TRIES: u32 = 5;
/// The beginning of the first line about the pair.
const STARTED: &str = "hosts: ";
const COMPILES: &str = "Compiling ";

/// Runs the README's first command as from a shell, at least twice; `true` if a later run starts at
/// once.
pub(crate) fn starts_at_once() -> Result<bool> {
    // The first run compiles missing parts.
    let first = start()?;
    println!(
        "the first run started after {:.1} s, {} crates compiled",
        first.0.as_secs_f64(),
        first.1.len()
    );
    let mut fastest = Duration::MAX;
    for _ in 0..TRIES {
        let (time, compiled) = start()?;
        ensure!(
            compiled.is_empty(),
            "expected nothing to be compiled by a second run, found: {}",
            compiled.join(", ")
        );
        fastest = fastest.min(time);
        if fastest <= AT_ONCE {
            println!("a second run started after {:.1} s", fastest.as_secs_f64());
            return Ok(true);
        }
    }
    bail!(
        "expected a second run to start within {AT_ONCE:?}, found {fastest:?} at best, of {TRIES} tries"
    )
}

/// Makes a run of one round. Returns the time until the pair started, and the crates that were
/// compiled before.
fn start() -> Result<(Duration, Vec<String>)> {
    let begun = Instant::now();
    let mut child = build::cargo()
        .args(["xtask", "run-pair", "--kill", "primary", "--rounds", "1", "--seed", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (stdout.context("it is piped")?, stderr.context("it is piped")?);
    let said =
        thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).collect());
    let mut started = None;
    for line in BufReader::new(stdout).lines() {
        if line.context("cannot read the output of the run")?.starts_with(STARTED) {
            started.get_or_insert_with(|| begun.elapsed());
        }
    }
    let status = child.wait()?;
    let said: Vec<String> = said.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
    ensure!(status.success(), "run-pair failed ({status}):\n{}", said.join("\n"));
    let compiled = said.iter().filter_map(|line| line.trim().strip_prefix(COMPILES));
    let started =
        started.with_context(|| format!("run-pair ended without the line `{STARTED}`"))?;
    Ok((started, compiled.map(str::to_owned).collect()))
}
