//! Draws a part of the attacks by a seed, for a test that runs often. The part shows for every
//! layer that the layer is needed.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::attack::{Attack, Catcher};

/// For each layer, one attack that only this layer catches; then others, up to `count` in all. The
/// seed gives the order.
pub(super) fn draw(mut attacks: Vec<Attack>, count: usize, seed: u64) -> Vec<Attack> {
    attacks.sort_by_cached_key(|attack| place(&attack.name, seed));
    let mut shown: BTreeSet<Catcher> = BTreeSet::new();
    let shows_another = |attack: &Attack| {
        attack.only && attack.caught_by.iter().any(|catcher| shown.insert(*catcher))
    };
    let (mut drawn, others): (Vec<_>, Vec<_>) = attacks.into_iter().partition(shows_another);
    drawn.extend(others);
    drawn.truncate(count);
    drawn
}

/// The pseudo-random place of a name.
fn place(name: &str, seed: u64) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(name: &str, more: &str) -> Attack {
        let mut attack: Attack = toml::from_str(&format!("title = \"t\"\nsays = \"s\"\n{more}"))
            .expect("a valid attack");
        attack.name = name.to_owned();
        attack
    }

    #[test]
    fn a_sample_shows_every_layer_and_differs_with_the_seed() {
        let all = || {
            let mut all = Vec::new();
            for number in 0..20 {
                let layer = if number % 2 == 0 { "graph" } else { "source" };
                let only = number < 4;
                let more = format!("caught_by = [\"{layer}\"]\nonly = {only}");
                all.push(attack(&format!("a{number}"), &more));
            }
            all
        };
        let names = |seed| -> BTreeSet<String> {
            draw(all(), 5, seed).into_iter().map(|attack| attack.name).collect()
        };
        for seed in 0..50 {
            let drawn = draw(all(), 5, seed);
            assert_eq!(drawn.len(), 5);
            let only: BTreeSet<_> =
                drawn.iter().filter(|a| a.only).flat_map(|a| &a.caught_by).collect();
            assert_eq!(only.len(), 2, "both layers, with seed {seed}");
        }
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
    }
}
