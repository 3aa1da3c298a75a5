//! Derives each pair and its faults from the seed and the pair's number alone.

use crate::pair::config::Kill;

/// Factor of the pair's number in its seed, so that neighbouring pairs have unrelated seeds.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// The system calls of one in this many pairs are intercepted.
const ASKED: u32 = 4;
/// One in this many pairs in namespaces uses taps.
const TAPS: u32 = 3;

/// Whether the replication links are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Chosen at random for each pair.
    Either,
    /// All links are encrypted.
    Tls,
    /// No link is encrypted.
    Plain,
}

/// The plan of a torture run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The faults to inject.
    pub faults: Vec<Kill>,
    /// The seed of all random choices.
    pub seed: u64,
    /// Maximum number of faults in one pair.
    pub rounds: u32,
    /// Whether the replication links are encrypted.
    pub link: Link,
}

impl Plan {
    /// The flags of `run-pair` for pair `number`.
    #[must_use]
    pub fn pair(&self, number: u64) -> String {
        let mut random =
            fastrand::Rng::with_seed(self.seed.wrapping_add(number.wrapping_mul(STRIDE)));
        // One wanted fault, chosen at random, determines the kind of the pair. All other faults
        // that such a pair permits are added.
        let wanted = self.faults[random.usize(..self.faults.len())];
        let any = |needs: fn(Kill) -> bool| self.faults.iter().any(|kill| needs(*kill));
        let loopback = wanted.needs_relay()
            || (any(Kill::needs_relay) && !wanted.needs_taps() && random.bool());
        let taps = any(Kill::needs_taps) && !wanted.needs_sockets() && random.u32(..TAPS) == 0;
        let taps = !loopback && (taps || wanted.needs_taps());
        // Most pairs run at full speed, because interception slows each call.
        let asked = any(Kill::needs_questions) && random.u32(..ASKED) == 0;
        let asked = asked || wanted.needs_questions();
        let mut faults = self.faults.clone();
        faults.retain(|kill| loopback || !kill.needs_relay());
        faults.retain(|kill| asked || !kill.needs_questions());
        faults.retain(|kill| if taps { !kill.needs_sockets() } else { !kill.needs_taps() });
        let mut kills = Vec::new();
        while kills.len() < self.rounds as usize {
            random.shuffle(&mut faults);
            kills.extend(&faults);
        }
        kills.truncate(self.rounds as usize);
        // A power-off ends the pair, so inject it last.
        if kills.contains(&Kill::PowerOff) {
            kills.retain(|kill| *kill != Kill::PowerOff);
            kills.push(Kill::PowerOff);
        }
        let (etcd, tls, late) = (random.bool(), random.bool(), random.u32(..3) == 0);
        // In namespaces, etcd is not on loopback and has no TLS, so such a pair cannot be
        // encrypted.
        let (etcd, tls) = match self.link {
            Link::Either => (etcd, tls && (loopback || !etcd)),
            Link::Tls => (etcd && loopback, true),
            Link::Plain => (etcd, false),
        };
        let etcd = etcd && !wanted.needs_directory();
        kills.retain(|kill| !etcd || !kill.needs_directory());
        let kills: Vec<&str> = kills.iter().map(|kill| kill.name()).collect();
        let mut flags = format!(
            "--audit --kill {} --rounds {} --seed {} --cpus {}",
            kills.join(","),
            self.rounds,
            random.u32(..),
            random.u32(1..3),
        );
        for (wanted, flag) in [
            (loopback, " --loopback"),
            (etcd, " --arbiter etcd"),
            (tls, " --tls"),
            (late, " --late"),
        ] {
            flags.push_str(if wanted { flag } else { "" });
        }
        flags
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plan(faults: &[Kill]) -> Plan {
        Plan { faults: faults.to_vec(), seed: 7, rounds: 25, link: Link::Either }
    }

    #[test]
    fn a_plan_is_the_same_again_and_every_pair_another() {
        let plan = plan(&Kill::ALL);
        assert_eq!(plan.pair(3), plan.pair(3));
        assert_ne!(plan.pair(3), plan.pair(4));
        assert_ne!(plan.pair(3), Plan { seed: 8, ..plan }.pair(3));
    }

    #[test]
    fn what_needs_no_relay_may_be_in_namespaces_and_what_does_never_is() {
        let pairs = |faults: &[Kill]| -> Vec<bool> {
            let plan = plan(faults);
            (1..9).map(|number| plan.pair(number).contains("--loopback")).collect()
        };
        assert_eq!(pairs(&[Kill::Primary]), [false; 8]);
        assert_eq!(pairs(&[Kill::Corrupt]), [true; 8]);
    }
}
