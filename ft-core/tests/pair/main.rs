//! Both machines against each other, from a seed: real gates, a guest whose output depends on all
//! its history, links that tear and flip bits, processes that sleep and die, an arbiter that does
//! not always answer; and an outside observer who must not notice (P1, P2, P4, P7).
//!
//! `KEMARI_PAIR_SEED=n` runs one seed, with a trace; `KEMARI_PAIR_SEEDS=n` runs that many.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;
mod judge;
mod link;
mod node;
mod random;
mod world;

use judge::Tally;
use world::World;

const STEPS: usize = 3000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn run(seed: u64, trace: bool) -> Tally {
    let mut world = World::new(seed, trace);
    for _ in 0..STEPS {
        world.step();
    }
    world.finish()
}

fn run_named(seed: u64) -> Tally {
    std::panic::catch_unwind(|| run(seed, false)).unwrap_or_else(|_| {
        panic!("seed {seed} breaks a promise: replay with KEMARI_PAIR_SEED={seed}")
    })
}

#[test]
fn p1_p2_p4_hold_whatever_fails() {
    if let Some(seed) = variable("KEMARI_PAIR_SEED") {
        run(seed, true);
        return;
    }
    let seeds = variable("KEMARI_PAIR_SEEDS").unwrap_or(400);
    let mut all = Tally::default();
    for seed in 0..seeds {
        all.add(&run_named(seed));
    }
    println!("{seeds} seeds: {all:?}");
    // What never happened was not tested.
    all.assert_all_happened();
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7, false), run(7, false));
}
