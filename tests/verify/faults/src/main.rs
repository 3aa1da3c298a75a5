//! Injects a fault into each system call of each thread of a real pair, and reports the results.
//!
//! First, two runs are observed: which thread makes which call in which phase. Then, for each of
//! these calls and each fault that the call can have, a pair runs and `kemari-inject` injects the
//! fault once. The product is unchanged.
//!
//! This crate may not depend on a crate of the product: a pair runs as processes.

mod calls;
mod cells;
mod judge;
mod lists;
mod outcome;
mod pair;
mod reasons;
mod results;
mod roles;
mod scenario;
mod table;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use judge::Patience;
use kemari_flags::faults::Arguments;
use outcome::Line;
use pair::Programs;
use reasons::Reasons;
use results::Results;
use scenario::Cell;

/// Number of tries for a fault: on a busy machine, a pair may not reach its fault's phase.
const TRIES: usize = 3;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Injects the selected faults. Returns whether every promise held, and no row of the table is
/// empty without a reason.
fn run(arguments: &Arguments) -> Result<bool> {
    let programs = Programs {
        kemari: arguments.kemari.clone().context("--kemari: expected a program")?,
        guest: arguments.guest.clone().context("--guest: expected the micro-guest")?,
    };
    let reasons = reasons::read()?;
    let results = Results::open(arguments.results.as_deref())?;
    if let Some(path) = &arguments.cells {
        let cells = cells::read(path)?;
        ensure!(!cells.is_empty(), "--cells {}: expected faults, found none", path.display());
        return listed(&programs, &cells, &results, arguments, &reasons);
    }
    let counts = cells::observe(&programs)?;
    if arguments.observe {
        cells::list(&counts);
        return Ok(true);
    }
    let cells = cells::choose(&counts, arguments);
    ensure!(
        !cells.is_empty(),
        "none of the selected threads makes such a call, or the fault is impossible in it; `--observe` lists the calls"
    );
    let mut wanted: Vec<&Cell> = cells.iter().filter(|cell| !results.has(cell)).collect();
    if arguments.once {
        let mut calls = results.calls();
        wanted.retain(|cell| calls.insert(cell.call()));
    }
    println!("{} calls by thread and side; {} faults to inject", counts.len(), wanted.len());
    let failed = make(&programs, &wanted, &results, arguments, &reasons);
    let lines = results.into_lines();
    let whole = arguments.only.is_none() && arguments.call.is_none();
    let whole = whole && arguments.fault.is_none() && arguments.sample.is_none();
    let broken = lines.iter().filter(|line| reasons.is_broken(line)).count();
    let made = lines.iter().filter(|line| line.outcome.is_made()).count();
    let said = format!("{made} of {} faults were injected; {broken} broke a promise.", cells.len());
    println!("{said}");
    let table = table::Table::new(&counts, &lines, &reasons, said);
    if let Some(path) = &arguments.table {
        std::fs::write(path, table.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for row in table.empty_rows().filter(|_| whole) {
        println!("no fault was injected in {row}, and no reason is given");
    }
    failed?;
    Ok(made > 0 && broken == 0 && (!whole || table.empty_rows().next().is_none()))
}

/// Injects the faults of a list. Returns whether each was injected, and every promise held.
fn listed(
    programs: &Programs,
    cells: &[Cell],
    results: &Results,
    arguments: &Arguments,
    reasons: &Reasons,
) -> Result<bool> {
    let before = results.lines().len();
    make(programs, &cells.iter().collect::<Vec<_>>(), results, arguments, reasons)?;
    // Only the results of this run count: the file may contain results of other faults.
    let lines = results.lines().split_off(before);
    let is_good = |line: &Line| line.outcome.is_made() && !reasons.is_broken(line);
    let good = lines.iter().filter(|line| is_good(line)).count();
    println!("{good} of {} faults were injected and broke no promise", cells.len());
    Ok(good == cells.len())
}

/// Injects faults, several at a time, each in a pair of its own. If a pair does not reach its
/// fault's phase, the other faults are still injected.
fn make(
    programs: &Programs,
    cells: &[&Cell],
    results: &Results,
    arguments: &Arguments,
    reasons: &Reasons,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Ok(()));
    let patience = if arguments.cells.is_some() { Patience::LONG } else { Patience::SHORT };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match one(programs, cell, arguments.seed, patience, reasons) {
                        Ok(line) => results.add(line, reasons),
                        Err(error) => {
                            println!("{cell}: no pair reached it: {error:#}");
                            *failed.lock().expect("no holder panics") =
                                Err(error.context(cell.to_string()));
                        }
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no holder panics")
}

fn one(
    programs: &Programs,
    cell: &Cell,
    seed: u64,
    patience: Patience,
    reasons: &Reasons,
) -> Result<Line> {
    let mut cell = cell.clone();
    let mut tries = 0;
    loop {
        tries += 1;
        match judge::run(programs, &cell, seed, patience, reasons) {
            // This run made fewer such calls than the observed one, or went differently on a busy
            // machine.
            Ok(outcome) if !outcome.is_made() && tries < patience.tries => cell.skip = 0,
            Ok(outcome) => return Ok(Line::new(&cell, outcome)),
            Err(error) if tries == TRIES => return Err(error),
            Err(error) => eprintln!("{cell}: tried again: {error:#}"),
        }
    }
}
