//! What each pair is, and how it is broken: from the seed and its number alone.

use kemari_tests::pair::config::Kill;

/// Seeds of neighbouring pairs have nothing in common.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

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
        let relayed = self.faults.iter().any(|kill| kill.needs_relay());
        let direct = self.faults.iter().any(|kill| !kill.needs_relay());
        let loopback = relayed && (!direct || random.bool());
        let mut faults: Vec<Kill> =
            self.faults.iter().copied().filter(|kill| loopback || !kill.needs_relay()).collect();
        let mut kills = Vec::new();
        while kills.len() < self.rounds as usize {
            random.shuffle(&mut faults);
            kills.extend(faults.iter().map(|kill| kill.name()));
        }
        kills.truncate(self.rounds as usize);
        // It ends the life of a pair: what would follow in this one follows in others.
        if let Some(end) = kills.iter().position(|kill| *kill == Kill::PowerOff.name()) {
            let last = kills.remove(end);
            kills.retain(|kill| *kill != last);
            kills.push(last);
        }
        let (etcd, tls, late) = (random.bool(), random.bool(), random.u32(..3) == 0);
        // The etcd of a run in namespaces is not on loopback, and speaks plain.
        let (etcd, tls) = match self.link {
            Link::Either => (etcd, tls && (loopback || !etcd)),
            Link::Tls => (etcd && loopback, true),
            Link::Plain => (etcd, false),
        };
        // It has no copy that one side could be led to.
        let etcd = etcd && kills.iter().any(|kill| *kill != Kill::TwoArbiters.name());
        kills.retain(|kill| !etcd || *kill != Kill::TwoArbiters.name());
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

    /// What `run-pair` is given, it takes; and nothing that there is is left out for long.
    #[test]
    fn a_few_pairs_have_every_fault_and_every_kind_of_hosts() {
        let plan = plan(&Kill::ALL);
        let mut lines = String::new();
        for number in 1..12 {
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
