//! Puts in one deliberate bug after the other: how many seeds does the observer need to find it?

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ft_core::bugs::{ALL, Bug, set};
use kemari_sim::{has_own_disks, plan, try_run};

use crate::{Arguments, fresh};

/// A bug that this many worlds do not show is invisible to the simulation.
const LIMIT: u64 = 1_000_000;

/// Searches for each bug several times; returns whether each was found every time.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let first = arguments.first.unwrap_or_else(fresh);
    println!("seeds from {first} on; the median is of {} searches", arguments.rounds);
    println!("{:>7} {:>7}  {:<24} what is wrong, and how it shows", "median", "most", "bug");
    let wanted =
        |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let (mut found, mut all) = (0, 0);
    for (bug, text) in ALL {
        let name = format!("{bug:?}");
        if !wanted(&name) {
            continue;
        }
        let hunt = Hunt { bug: *bug, own_disks: text.trim().starts_with("own disks:") };
        let rounds =
            (0..arguments.rounds as u64).map(|round| hunt.look(arguments, first + round * LIMIT));
        let mut rounds: Vec<(u64, String)> = rounds.collect();
        rounds.sort();
        all += 1;
        let missed = rounds.iter().any(|(seeds, _)| *seeds > LIMIT);
        found += usize::from(!missed);
        let (median, (most, last)) = (&rounds[rounds.len() / 2], &rounds[rounds.len() - 1]);
        let verdict = if missed { format!("NOT FOUND {last}") } else { median.1.clone() };
        println!("{:>7} {most:>7}  {name:<24} {}: {verdict}", median.0, text.trim());
    }
    println!("{found} of {all} deliberate bugs are found");
    if all == 0 {
        println!(
            "--only: no deliberate bug's name contains this text; ft-core/src/bugs.rs lists them"
        );
    }
    found == all && all > 0
}

/// A search for a bug. One of own disks shows itself in a world with own disks only: the others
/// count, and are not run.
struct Hunt {
    bug: Bug,
    own_disks: bool,
}

impl Hunt {
    /// Searches once. A world that breaks without the bug too shows another defect.
    fn look(&self, arguments: &Arguments, first: u64) -> (u64, String) {
        set(Some(self.bug));
        let (worlds, why) = self.search(arguments, first);
        set(None);
        if worlds > LIMIT {
            return (worlds, why);
        }
        let seed = first + worlds - 1;
        match try_run(seed, &plan(seed)) {
            Ok(_) => (worlds, why),
            Err(own) => (LIMIT + 1, format!("(seed {seed} breaks without it as well: {own})")),
        }
    }

    /// Number of worlds that the search took, and the observer's message.
    fn search(&self, arguments: &Arguments, first: u64) -> (u64, String) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let best = Mutex::new((LIMIT + 1, String::new()));
        let lock = "no thread panics while it holds this lock";
        std::thread::scope(|scope| {
            for _ in 0..arguments.jobs.unwrap_or(cores) {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= LIMIT {
                            return;
                        }
                        let seed = first + at;
                        if self.own_disks && !has_own_disks(seed) {
                            continue;
                        }
                        if let Err(why) = try_run(seed, &plan(seed)) {
                            done.store(true, Ordering::Relaxed);
                            let mut best = best.lock().expect(lock);
                            *best = (*best).clone().min((at + 1, why));
                        }
                    }
                });
            }
        });
        best.into_inner().expect(lock)
    }
}
