//! A fixed set of worlds, at every test run.

use kemari_sim::{Tally, plan, run, shrink, try_run};

#[test]
fn p1_p2_p3_p4_p7_hold_whatever_fails() {
    let mut all = Tally::default();
    for seed in 0..1500 {
        match try_run(seed, &plan(seed)) {
            Ok(tally) => all.add(&tally),
            Err(why) => panic!("{why}: replay with `cargo xtask sim --seed {seed}`"),
        }
    }
    assert_eq!(all.missing(), [""; 0], "what never happened was not tested");
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        assert_eq!(run(seed, &plan(seed), false), run(seed, &plan(seed), false));
    }
}

#[test]
fn a_plan_shrinks_to_what_is_needed() {
    let whole = (0..).map(plan).find(|plan| plan.len() > 20).unwrap_or_default();
    let (first, last) = (whole[3], whole[17]);
    let needs = |plan: &[_]| plan.contains(&first) && plan.contains(&last);
    assert_eq!(shrink(whole, needs), [first, last]);
}
