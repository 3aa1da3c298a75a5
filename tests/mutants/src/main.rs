//! `cargo xtask sim --mutants` runs this: the protocol core with one small fault after the other, judged by the simulation and by
//! the core's unit tests. A mutant that neither finds is to be found, or argued away in `argued.toml`.

mod argued;
mod judge;
mod sites;
mod tree;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kemari_flags::mutants::Arguments;

use argued::Argued;
use judge::Verdict;
use sites::Mutant;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let scratch = judge::project().join("target/mutants");
    let built = tree::build(judge::project(), &scratch)?;
    let argued = Argued::read(&judge::project().join("tests/mutants/argued.toml"))?;
    let wanted =
        |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut numbers: Vec<usize> = (1..=built.mutants.len())
        .filter(|number| wanted(&built.mutants[number - 1].name()))
        .step_by(arguments.every)
        .collect();
    if let Some(count) = arguments.sample {
        numbers.sort_by_key(|number| draw(&built.mutants[number - 1].name(), arguments.seed));
        numbers.truncate(count);
        numbers.sort_unstable();
    }
    println!("{} mutants of {}", numbers.len(), built.mutants.len());
    if arguments.list {
        for number in numbers {
            println!("{}", line(&built.mutants[number - 1]));
        }
        return Ok(ExitCode::SUCCESS);
    }
    judge::check_sound(&built, arguments.seeds.min(2000))?;
    let begun = Instant::now();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let bar = ProgressBar::new(numbers.len() as u64).with_style(
        ProgressStyle::with_template("{wide_bar} {pos}/{len} mutants, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores) {
            scope.spawn(|| {
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict =
                        judge::judge(&built, *number, arguments.seeds, arguments.simulation_only);
                    results
                        .lock()
                        .expect("no thread panics while it holds this")
                        .push((*number, verdict));
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut results = results.into_inner().expect("the threads have ended");
    results.sort_by_key(|(number, _)| *number);
    let (mut simulation, mut tests, mut waived, mut open) = (0, 0, 0, 0);
    for (number, verdict) in results {
        let mutant = &built.mutants[number - 1];
        let found = match verdict? {
            Verdict::Simulation(why) => {
                simulation += 1;
                format!("simulation: {why}")
            }
            Verdict::UnitTests(why) => {
                tests += 1;
                format!("unit tests: {why}")
            }
            Verdict::Survives => {
                if let Some(why) = argued.why(mutant) {
                    waived += 1;
                    format!("argued: {why}")
                } else {
                    open += 1;
                    println!("SURVIVES {}", line(mutant));
                    continue;
                }
            }
        };
        if arguments.all {
            println!("{}\n    {found}", line(mutant));
        }
    }
    println!(
        "{} mutants in {:.0} s: {simulation} found by the simulation, {tests} by the unit tests alone, {waived} argued away, {open} open",
        numbers.len(),
        begun.elapsed().as_secs_f64(),
    );
    Ok(if open == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A number that a name has in the sample of that seed (FNV-1a).
fn draw(name: &str, seed: u64) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn line(mutant: &Mutant) -> String {
    format!(
        "ft-core/src/{}:{}: {}: `{}` {}",
        mutant.file, mutant.line, mutant.function, mutant.code, mutant.becomes
    )
}
