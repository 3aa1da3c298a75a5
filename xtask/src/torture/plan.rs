//! What each pair is and how it is broken, from the seed and the pair's number alone.

use kemari_testbed::pair::config::Kill;

/// Spreads the seeds, so that neighbouring pairs have unrelated seeds.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// One in this many pairs has its system calls intercepted.
const ASKED: u32 = 4;
/// One in this many pairs in namespaces has taps.
const TAPS: u32 = 3;

/// Whether replication links are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Drawn for each pair.
    Either,
    Tls,
    Plain,
}

/// See the module.
pub(super) struct Plan {
    pub(super) faults: Vec<Kill>,
    pub(super) seed: u64,
    pub(super) rounds: u32,
    pub(super) link: Link,
}

impl Plan {
    /// The flags of `run-pair` for a pair.
    pub(super) fn pair(&self, number: u64) -> String {
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

    /// `run-pair` accepts every planned command line, and every fault and kind of host comes up
    /// soon.
    #[test]
    fn a_few_pairs_have_every_fault_and_every_kind_of_hosts() {
        let plan = plan(&Kill::ALL);
        let mut lines = String::new();
        for number in 1..20 {
            let flags = plan.pair(number);
            let arguments = crate::run_pair::parse(&flags).unwrap();
            let config = arguments.micro_config("kemari".into(), "kernel".into()).unwrap();
            config.check().unwrap();
            assert!(config.kills.len() > 18, "{:?}", config.kills);
            assert!(!config.kills[..config.kills.len() - 1].contains(&Kill::PowerOff));
            lines += &flags;
        }
        for kill in Kill::ALL {
            assert!(lines.contains(kill.name()), "{} never happens", kill.name());
        }
        for flag in ["--loopback", "--tls", "--arbiter etcd", "--cpus 1", "--cpus 2", "--late"] {
            assert!(lines.contains(flag), "{flag} never happens");
        }
    }

    #[test]
    fn links_are_as_wanted_and_both_arbiters_still_happen() {
        for (link, tls) in [(Link::Tls, true), (Link::Plain, false)] {
            let plan = Plan { link, ..plan(&Kill::ALL) };
            let pairs: Vec<String> = (1..12).map(|number| plan.pair(number)).collect();
            assert!(pairs.iter().all(|flags| flags.contains("--tls") == tls), "{pairs:?}");
            for arbiter in [true, false] {
                assert!(pairs.iter().any(|flags| flags.contains("etcd") == arbiter));
            }
            for flags in pairs {
                let arguments = crate::run_pair::parse(&flags).unwrap();
                arguments.micro_config("kemari".into(), "kernel".into()).unwrap().check().unwrap();
            }
        }
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
