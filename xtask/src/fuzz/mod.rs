//! `cargo xtask fuzz`: runs libFuzzer on the targets of `tests/verify/fuzz`, guided by coverage, on
//! the stable compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use kemari_flags::{FUZZ_TARGETS, MINUTES, numbers};

use crate::{build, list::print_lines};

/// The compiler flags that cargo-fuzz uses, without the sanitizers, which need a nightly compiler.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// In seconds, longer than any input takes.
const TIMEOUT: &str = "-timeout=20";
/// In MiB, more than any input needs.
const MEMORY: &str = "-rss_limit_mb=1024";

/// Which targets, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Fuzz only this target. Repeatable; see --list.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Minutes for each target.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u64>(MINUTES, "minutes"))]
    minutes: u64,
    /// Seed of the random changes; 0: taken from the clock.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = numbers::<u32>(0..=u64::from(u32::MAX), "a seed"))]
    seed: u32,
    /// List the targets.
    #[arg(long)]
    list: bool,
    /// Run one target on this file only, for instance after a finding.
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
}

/// Fuzzes; `true` if nothing was found.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let targets = wanted(&arguments.target)?;
    arguments.replay.as_deref().map_or(Ok(()), |file| check_replay(file, &targets))?;
    let engine = Engine::build()?;
    if arguments.list {
        return engine.list();
    }
    if let Some(file) = &arguments.replay {
        return Ok(engine.on(targets[0]).arg(file).status()?.success());
    }
    let (mut found, mut executions, begun) = (Vec::new(), 0, Instant::now());
    for target in targets {
        let outcome = fuzz(&engine, target, arguments)?;
        let time = outcome.time.as_secs_f64().max(0.001);
        println!(
            "{:<16} {:>10} executions in {time:.0} s ({:.0} a second), {} inputs kept: {}",
            target,
            outcome.executions,
            outcome.executions as f64 / time,
            outcome.kept,
            if outcome.finding.is_some() { "FINDINGS" } else { "no findings" },
        );
        executions += outcome.executions;
        found.extend(outcome.finding.map(|finding| (target, finding)));
    }
    let minutes = begun.elapsed().as_secs() / 60;
    println!("{executions} executions in {minutes} min, {} findings", found.len());
    for (name, file) in &found {
        println!("replay: cargo xtask fuzz --target {name} --replay {}", file.display());
    }
    Ok(found.is_empty())
}

/// The targets with these names, or all targets.
fn wanted(names: &[String]) -> Result<Vec<&'static str>> {
    if names.is_empty() {
        return Ok(FUZZ_TARGETS.to_vec());
    }
    let named = |name: &String| {
        let target = FUZZ_TARGETS.into_iter().find(|target| target == name);
        target.with_context(|| {
            format!("--target: expected one of {}, found `{name}`", FUZZ_TARGETS.join(", "))
        })
    };
    names.iter().map(named).collect()
}

fn check_replay(file: &Path, targets: &[&str]) -> Result<()> {
    ensure!(file.is_file(), "--replay: expected a file, found none at {}", file.display());
    ensure!(
        targets.len() == 1,
        "--replay: expected one --target, found {}: {}",
        targets.len(),
        targets.join(", ")
    );
    Ok(())
}

/// The engine, which contains the targets. It has its own build directory, because nothing else is
/// built with coverage counters. It is not linked into this program, so the other commands work
/// even if the product does not compile.
struct Engine(PathBuf);

impl Engine {
    fn build() -> Result<Self> {
        let dir = build::target_dir().join("fuzz");
        eprintln!("building the targets with coverage counters");
        let mut cargo = build::cargo();
        cargo
            .args(["build", "--release", "--locked", "--package", "kemari-fuzz"])
            .args([
                "--bin",
                "kemari-fuzz",
                "--features",
                "engine",
                "--target",
                TRIPLE,
                "--target-dir",
            ])
            .arg(&dir)
            .env("RUSTFLAGS", COVERAGE);
        build::run(&mut cargo)?;
        Ok(Self(dir.join(TRIPLE).join("release/kemari-fuzz")))
    }

    fn list(&self) -> Result<bool> {
        let output = Command::new(&self.0).env("KEMARI_FUZZ_LIST", "1").output()?;
        ensure!(
            output.status.success(),
            "cannot list the fuzz targets: the fuzz program ended with {}",
            output.status
        );
        let text = String::from_utf8(output.stdout)?;
        let targets = text.lines().filter_map(|line| line.split_once('\t'));
        print_lines(targets.map(|(name, what)| format!("{name:<16} {what}")))?;
        Ok(true)
    }

    fn write_seeds(&self, target: &str, dir: &Path) -> Result<()> {
        let done = self.on(target).env("KEMARI_FUZZ_SEEDS", dir).status()?;
        ensure!(done.success(), "{target}: its seeds cannot be written");
        Ok(())
    }

    fn on(&self, target: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.env("KEMARI_FUZZ_TARGET", target).args([TIMEOUT, MEMORY]);
        command
    }
}

struct Outcome {
    executions: u64,
    time: Duration,
    kept: usize,
    finding: Option<PathBuf>,
}

fn fuzz(engine: &Engine, target: &str, arguments: &Arguments) -> Result<Outcome> {
    let base = build::target_dir().join("fuzz-corpus").join(target);
    let (grown, findings) = (base.join("grown"), base.join("findings"));
    for dir in [&grown, &findings] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    engine.write_seeds(target, &grown)?;
    let before = files(&findings)?;
    let kept = build::repository().join("tests/verify/fuzz/corpus").join(target);
    let mut command = engine.on(target);
    command.arg(format!("-max_total_time={}", 60 * arguments.minutes));
    command.arg(format!("-seed={}", arguments.seed)).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", findings.display())).arg(&grown);
    if kept.is_dir() {
        command.arg(kept);
    }
    let begun = Instant::now();
    let output = command.output().context("cannot run the engine")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let finding = files(&findings)?.into_iter().find(|file| !before.contains(file));
    if finding.is_some() || !output.status.success() {
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
        println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
    ensure!(
        output.status.success() || finding.is_some(),
        "{target}: the engine failed, and wrote no input"
    );
    let executions = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_default();
    Ok(Outcome { executions, time: begun.elapsed(), kept: files(&grown)?.len(), finding })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_there_is_refused_by_its_name_and_without_a_name_all_are_meant() {
        assert_eq!(wanted(&[]).unwrap(), FUZZ_TARGETS);
        assert_eq!(wanted(&["pages".to_owned()]).unwrap(), ["pages"]);
        let error = wanted(&["wires".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("expected one of wire, bodies, ") && error.contains("found `wires`")
        );
    }
}
