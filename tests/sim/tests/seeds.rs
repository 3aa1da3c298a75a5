//! A fixed set of worlds, at every test run.

use kemari_sim::{Tally, run, try_run};

#[test]
fn p1_p2_p4_hold_whatever_fails() {
    let mut all = Tally::default();
    for seed in 0..400 {
        match try_run(seed) {
            Ok(tally) => all.add(&tally),
            Err(why) => panic!("{why}: replay with `cargo xtask sim --seed {seed}`"),
        }
    }
    // What never happened was not tested.
    all.assert_all_happened();
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7, false), run(7, false));
}
