//! The project's own commands: `cargo xtask run-pair` runs the main job, `cargo xtask test` runs
//! every test, `cargo xtask gate` checks that the gate is the only way out of a device.

#[cfg(test)]
mod book;
mod certs;
#[cfg(test)]
mod comments;
mod faults;
#[cfg(test)]
mod floors;
mod fuzz;
#[cfg(test)]
mod named_tests;
mod new_device;
mod run_pair;
mod sim;
mod test;
mod torture;

use std::process::ExitCode;

use clap::Parser;
use kemari_gate_check as gate;
use kemari_testbed::guest;
use xtask_bench as bench;
use xtask_common::{build, given_file, list, report_file, stop};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Run a pair, break it under load, and judge what an outside client saw.
    RunPair(run_pair::Arguments),
    /// Run pair after pair, break them by real faults at random moments, and judge what an outside
    /// client saw.
    Torture(torture::Arguments),
    /// Simulate the protocol core, or with --drivers the product's threads, and test the simulation
    /// by bugs and mutants. See `cargo xtask sim --help`.
    Sim(sim::Arguments),
    /// Make a fault in each system call of each thread of a pair, and report the results. See
    /// `cargo xtask faults --help`.
    Faults(faults::Arguments),
    /// Measure a pair side by side with the limits of the machine.
    Bench(bench::Arguments),
    /// Fuzz every parser and state machine that reads data from outside.
    Fuzz(fuzz::Arguments),
    /// Write a new device: its code, its tests, its entry in the catalogue.
    NewDevice(new_device::Arguments),
    /// Write credentials for trials of an encrypted link.
    Certs(certs::Arguments),
    /// Prepare what the tests need, and run all tests.
    #[command(after_help = test::steps())]
    Test(test::Arguments),
    /// Check that the gate is the only way out of a device.
    Gate(gate::Arguments),
}

fn main() -> ExitCode {
    if let Some(status) = gate::run_as_compiler() {
        return status;
    }
    let result = match Command::parse() {
        Command::RunPair(arguments) => run_pair::run(&arguments),
        Command::Torture(arguments) => torture::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::NewDevice(arguments) => new_device::run(&arguments),
        Command::Certs(arguments) => certs::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Gate(arguments) => return gate::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
