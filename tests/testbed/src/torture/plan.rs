//! What each pair is and how it is broken, from the seed and the pair's number alone.

use crate::pair::config::Kill;

/// Spreads the seeds, so that neighbouring pairs have unrelated seeds.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// One in this many pairs has its system calls intercepted.
const ASKED: u32 = 4;
/// One in this many pairs in namespaces has taps.
const TAPS: u32 = 3;

/// Whether replication links are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Drawn for each pair.
    Either,
    /// All are.
    Tls,
    /// None is.
    Plain,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The wanted faults.
    pub faults: Vec<Kill>,
    /// The seed of pairs, faults and moments.
    pub seed: u64,
    /// The maximum number of faults in one pair.
    pub rounds: u32,
    /// The replication links.
    pub link: Link,
}

impl Plan {
    /// The flags of `run-pair` for a pair.
    #[must_use]
    pub fn pair(&self, number: u64) -> String {
        let mut random =
            fastrand::Rng::with_seed(self.seed.wrapping_add(number.wrapping_mul(STRIDE)));
        // One wanted fault decides what the pair is; all other faults that such a pair can have are
        // added.
        let wanted = self.faults[random.usize(..self.faults.len())];
        let any = |needs: fn(Kill) -> bool| self.faults.iter().any(|kill| needs(*kill));
        let loopback = wanted.needs_relay()
            || (any(Kill::needs_relay) && !wanted.needs_taps() && random.bool());
        let taps = any(Kill::needs_taps) && !wanted.needs_sockets() && random.u32(..TAPS) == 0;
        let taps = !loopback && (taps || wanted.needs_taps());
        // Interception slows every call: most pairs run at full speed.
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
        // A power failure ends the pair: faults after it are left to other pairs.
        if kills.contains(&Kill::PowerOff) {
            kills.retain(|kill| *kill != Kill::PowerOff);
            kills.push(Kill::PowerOff);
        }
        let (etcd, tls, late) = (random.bool(), random.bool(), random.u32(..3) == 0);
        // The etcd of a run in namespaces is not on loopback, and uses no TLS.
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
