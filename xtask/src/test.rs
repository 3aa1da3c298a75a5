//! `cargo xtask test`: every test there is, from unit tests to pairs of real processes.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::build;

/// Which tests.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Leave the stock Debian guest out; said loudly at the end.
    #[arg(long)]
    skip_linux: bool,
}

/// One command that passes or fails.
struct Step {
    name: &'static str,
    command: Command,
}

/// Runs the tests; `true` when all passed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    build::ensure_bare_target()?;
    let mut failed = Vec::new();
    let steps = steps(arguments)?;
    let count = steps.len();
    for mut step in steps {
        println!("\n=== {}", step.name);
        let begun = Instant::now();
        let status = step.command.status().with_context(|| format!("cannot run {}", step.name))?;
        println!("=== {}: {status}, {} s", step.name, begun.elapsed().as_secs());
        if !status.success() {
            failed.push(step.name);
        }
    }
    if arguments.skip_linux {
        println!("\nNOT TESTED: the stock Debian guest, as --skip-linux asked for");
    }
    failed.iter().for_each(|name| println!("FAILED: {name}"));
    println!("\n{} passed, {} failed", count - failed.len(), failed.len());
    Ok(failed.is_empty())
}

fn steps(arguments: &Arguments) -> Result<Vec<Step>> {
    let mut steps = vec![
        Step {
            name: "devices without std",
            command: cargo(&[
                "check",
                "--quiet",
                "--locked",
                "--package=io-gate",
                "--package=kemari-devices",
                "--target=x86_64-unknown-none",
            ]),
        },
        Step {
            name: "unit, property and integration tests",
            command: cargo(&["test", "--quiet", "--locked", "--workspace", "--no-fail-fast"]),
        },
        pair("a pair, each kind of kill in turn", &["--kill=all", "--rounds=12", "--seed=1"])?,
        pair(
            "a pair with two vCPUs, compared at every checkpoint",
            &["--kill=all", "--rounds=4", "--seed=2", "--cpus=2", "--verify"],
        )?,
    ];
    if !arguments.skip_linux {
        steps.push(pair("a pair with a stock Debian guest", &["--guest=linux", "--rounds=1"])?);
        steps.push(pair(
            "a pair with a stock Debian guest on two vCPUs",
            &["--guest=linux", "--rounds=1", "--cpus=2"],
        )?);
    }
    Ok(steps)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = build::cargo();
    command.args(arguments);
    command
}

/// This very program, as `run-pair`.
fn pair(name: &'static str, arguments: &[&str]) -> Result<Step> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.current_dir(build::repository()).arg("run-pair").args(arguments);
    Ok(Step { name, command })
}
