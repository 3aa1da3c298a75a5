//! `cargo xtask sim --mutants`: puts small faults into the protocol core, one at a time. The core's
//! unit tests and the simulation judge each. A mutant that neither finds must be found by a new
//! test, or explained in `argued.toml`.
//!
//! This crate may not depend on a crate of the product: it compiles a changed copy of the tree.

mod argued;
mod judge;
mod results;
mod sites;
mod tree;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kemari_flags::mutants::Arguments;

use argued::Argued;
use judge::Judge;
use results::Results;
use sites::Mutant;
use tree::Copied;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let project = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."));
    let scratch = project.join("target/mutants");
    let copied = tree::copy(project, &scratch)?;
    let argued = Argued::read(&project.join("tests/verify/mutants/argued.toml"))?;
    let numbers = chosen(&arguments, &copied.mutants);
    println!("{} mutants of {}", numbers.len(), copied.mutants.len());
    anyhow::ensure!(
        !numbers.is_empty(),
        "no mutant's name contains this text; `--list` prints them"
    );
    if arguments.list {
        for number in numbers {
            println!("{}", line(&copied.mutants[number - 1]));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let run = Run { copied, folder: scratch.join("results"), jobs: arguments.jobs };
    let begun = Instant::now();
    let found = run.all(&arguments, &argued, &numbers)?;
    let good = report(&arguments, &argued, &run.copied.mutants, &found);
    println!("{:.0} s", begun.elapsed().as_secs_f64());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The numbers of the selected mutants.
fn chosen(arguments: &Arguments, mutants: &[Mutant]) -> Vec<usize> {
    let wanted =
        |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut numbers: Vec<usize> = (1..=mutants.len())
        .filter(|number| wanted(&mutants[number - 1].name()))
        .step_by(arguments.every)
        .collect();
    if let Some(count) = arguments.sample {
        numbers.sort_by_key(|number| draw(&mutants[number - 1].name(), arguments.seed));
        numbers.truncate(count);
        numbers.sort_unstable();
    }
    numbers
}

/// The message of each judge that finds the mutant.
struct Found {
    number: usize,
    tests: Option<String>,
    simulation: Option<String>,
}

/// One run of the judges.
struct Run {
    copied: Copied,
    folder: std::path::PathBuf,
    jobs: Option<usize>,
}

impl Run {
    /// The unit tests judge all mutants, because they are quick. The simulation judges the rest.
    fn all(&self, arguments: &Arguments, argued: &Argued, numbers: &[usize]) -> Result<Vec<Found>> {
        let tests = if arguments.simulation_only {
            vec![None; numbers.len()]
        } else {
            self.judge(Judge::UnitTests, numbers)?
        };
        let every = arguments.both || arguments.simulation_only;
        let is_open = |(number, tests): &(&usize, &Option<String>)| {
            every || tests.is_none() && argued.of(&self.copied.mutants[**number - 1]).is_none()
        };
        let open: Vec<usize> =
            numbers.iter().zip(&tests).filter(is_open).map(|(number, _)| *number).collect();
        let seen = self.judge(Judge::Simulation(arguments.seeds), &open)?;
        let mut seen: std::collections::HashMap<usize, Option<String>> =
            open.into_iter().zip(seen).collect();
        let found = |(number, tests): (&usize, Option<String>)| {
            let simulation = seen.remove(number).flatten();
            Found { number: *number, tests, simulation }
        };
        Ok(numbers.iter().zip(tests).map(found).collect())
    }

    /// The verdict of `judge` on each mutant.
    fn judge(&self, judge: Judge, numbers: &[usize]) -> Result<Vec<Option<String>>> {
        let results = Results::open(&self.folder, &judge.key(&self.copied))?;
        let unknown: Vec<usize> =
            numbers.iter().copied().filter(|number| results.of(*number).is_none()).collect();
        if unknown.is_empty() {
            return Ok(numbers
                .iter()
                .map(|number| results.of(*number).cloned().flatten())
                .collect());
        }
        let program = judge.program(&self.copied)?;
        judge::check_sound(judge, &program)?;
        let (next, results) = (AtomicUsize::new(0), Mutex::new(results));
        let bar = progress(judge, unknown.len());
        let work = || -> Result<()> {
            while let Some(number) = unknown.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = judge.finds(&program, *number)?;
                results
                    .lock()
                    .expect("no thread panics while it holds this")
                    .add(*number, found)?;
                bar.inc(1);
            }
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> =
                (0..self.jobs.unwrap_or(cores)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no judge panics"))
        })?;
        bar.finish_and_clear();
        let results = results.into_inner().expect("the threads have ended");
        Ok(numbers.iter().map(|number| results.of(*number).cloned().flatten()).collect())
    }
}

fn progress(judge: Judge, count: usize) -> ProgressBar {
    let template = format!("{}: {{wide_bar}} {{pos}}/{{len}} mutants, {{eta}} left", judge.name());
    ProgressBar::new(count as u64).with_style(
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

/// Prints which judge has found which mutant. Returns whether no mutant is open.
fn report(arguments: &Arguments, argued: &Argued, mutants: &[Mutant], found: &[Found]) -> bool {
    let (mut tests, mut simulation, mut both, mut waived, mut open) = (0, 0, 0, 0, 0);
    let mut unfound = Vec::new();
    for one in found {
        let mutant = &mutants[one.number - 1];
        let said = match (&one.tests, &one.simulation, argued.of(mutant)) {
            (Some(test), Some(world), _) => {
                both += 1;
                format!("unit tests: {test}\n    simulation: {world}")
            }
            (Some(test), None, _) => {
                tests += 1;
                format!("unit tests: {test}")
            }
            (None, Some(world), _) => {
                simulation += 1;
                format!("simulation: {world}")
            }
            (None, None, Some(argument)) => {
                waived += 1;
                unfound.push(mutant);
                format!("argued: {}", argument.why)
            }
            (None, None, None) => {
                open += 1;
                println!("SURVIVES {}", line(mutant));
                continue;
            }
        };
        if arguments.all {
            println!("{}\n    {said}", line(mutant));
        }
    }
    let whole = found.len() == mutants.len() && !arguments.simulation_only;
    // An argument that fits no existing mutant is known without a judge. A needless argument is
    // known only after all mutants are judged.
    let needless = if whole { argued.needless(&unfound) } else { argued.fitting_none(mutants) };
    for argument in &needless {
        println!("NEEDLESS entry of argued.toml, it matches no open mutant: {argument:?}");
    }
    println!(
        "{} mutants: {} found by the unit tests ({both} of them by the simulation as well{}), {simulation} by the simulation alone, \
         {waived} argued away, {open} open",
        found.len(),
        tests + both,
        if arguments.both { "" } else { ", which was not run" },
    );
    open == 0 && needless.is_empty()
}

/// The pseudo-random number of a name, for the sample of a seed.
fn draw(name: &str, seed: u64) -> u64 {
    sites::fnv(seed.to_le_bytes().into_iter().chain(name.bytes()))
}

fn line(mutant: &Mutant) -> String {
    format!(
        "ft-core/src/{}:{}: {}: `{}` {}",
        mutant.file, mutant.line, mutant.function, mutant.code, mutant.becomes
    )
}
