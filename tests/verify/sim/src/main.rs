//! `cargo xtask sim` runs this: many worlds from seeds.

#[cfg(feature = "bugs")]
mod bugs;
#[cfg(not(feature = "bugs"))]
mod bugs {
    //! This build contains no deliberate bugs.

    /// Prints how to build with them.
    pub(crate) fn run(_: &crate::Arguments) -> bool {
        eprintln!("built without the feature `bugs`: run `cargo xtask sim --bugs`");
        false
    }
}

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kemari_flags::sim::Arguments;
use kemari_sim::{Tally, has_own_disks, plan, run, shrink, try_run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return one(seed);
    }
    // A violation is reported once, with its seed, and not at the place of the panic.
    std::panic::set_hook(Box::new(|_| {}));
    let good = if arguments.bugs { bugs::run(&arguments) } else { many(&arguments) };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one world with a trace; if it breaks a promise, prints the smallest plan that does so.
fn one(seed: u64) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let whole = plan(seed);
    let Err(why) = try_run(seed, &whole) else {
        println!("seed {seed} keeps every promise: {:?}", run(seed, &whole, true));
        return ExitCode::SUCCESS;
    };
    let kind = |why: &str| why.split(':').next().unwrap_or_default().to_owned();
    let same = |plan: &[_]| try_run(seed, plan).is_err_and(|other| kind(&other) == kind(&why));
    let smallest = shrink(whole.clone(), same);
    println!("seed {seed}: {why}");
    println!("{} of {} faults are enough:", smallest.len(), whole.len());
    for planned in &smallest {
        println!("  {planned}");
    }
    let trace = || run(seed, &smallest, true);
    drop(std::panic::catch_unwind(trace));
    if let Err(why) = try_run(seed, &smallest) {
        println!("VIOLATION: {why}");
    }
    ExitCode::FAILURE
}

fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis() % 1_000_000_000).unwrap_or_default() * 1_000_000
}

fn many(arguments: &Arguments) -> bool {
    let first = arguments.first.unwrap_or_else(fresh);
    let end = arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = if end.is_some() { u64::MAX } else { arguments.seeds };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    let (all, broken) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let bar = progress(end.map_or(seeds, |_| u64::MAX));
    println!("seeds from {first} on");
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores) {
            scope.spawn(|| {
                loop {
                    if end.is_some_and(|end| begun.elapsed() > end) {
                        return;
                    }
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let lock = "no thread panics while it holds this lock";
                    let enough =
                        || arguments.until_broken && !broken.lock().expect(lock).is_empty();
                    if at >= seeds || enough() {
                        return;
                    }
                    bar.inc(1);
                    let seed = first + at;
                    if arguments.own_disks && !has_own_disks(seed) {
                        continue;
                    }
                    match try_run(seed, &plan(seed)) {
                        Ok(tally) => all.lock().expect(lock).add(&tally),
                        Err(why) => broken.lock().expect(lock).push((seed, why)),
                    }
                }
            });
        }
    });
    let ran = bar.position();
    bar.finish_and_clear();
    let time = begun.elapsed().as_secs_f64();
    println!(
        "{ran} seeds in {time:.1} s ({:.0} a minute): {:?}",
        ran as f64 / time * 60.0,
        all.into_inner().expect("the threads have ended")
    );
    let broken = broken.into_inner().expect("the threads have ended");
    for (seed, why) in broken.iter().take(10) {
        println!("VIOLATION: {why}\n  replay: cargo xtask sim --seed {seed}");
    }
    println!("{} violations", broken.len());
    broken.is_empty()
}

fn progress(seeds: u64) -> ProgressBar {
    let (bar, template) = if seeds == u64::MAX {
        (ProgressBar::new_spinner(), "{spinner} {pos} seeds, {per_sec}, {elapsed}")
    } else {
        (ProgressBar::new(seeds), "{wide_bar} {pos}/{len} seeds, {per_sec}, {eta} left")
    };
    bar.with_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}
