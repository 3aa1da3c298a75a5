//! Counts the kinds of events over all worlds. A kind that happened in no world is reported: a
//! story that no longer does its work would look like a story that finds nothing.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($kind:ident: $name:literal,)*) => {
        /// A kind of event in a world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind {
            $(#[doc = $name] $kind,)*
        }

        /// All kinds, with their names.
        const KINDS: &[(Kind, &str)] = &[$((Kind::$kind, $name),)*];
    };
}

kinds! {
    Reset: "reset",
    PowerOff: "power-off",
    Takeover: "takeover",
    TakeoverAfterReset: "takeover after a reset",
    SessionEnd: "session end",
    ImagesSent: "kernel sent to a standby",
    Stranger: "unknown connection",
    SlowFence: "slow fence",
    ToldToEnd: "end signal",
    ToldTwice: "second signal",
    StandbyToldToEnd: "standby ordered to end",
    OtherStandby: "another standby",
    Replaced: "primary replaced",
    StateRefused: "state of a checkpoint refused",
    FirstCheckpoint: "primary killed at its first checkpoints",
    HostKilled: "host killed",
    HostStopped: "host stopped",
    ThreadHeld: "thread held",
    LinkCut: "link cut",
    LinkSilent: "link silent",
    LinkSlow: "link slow",
    ShortCall: "short read or write",
    ConsoleUnread: "console unread",
}

static SEEN: AtomicU64 = AtomicU64::new(0);
/// Prefix of the line in which a world's process reports its kinds.
const LINE: &str = "saw: ";

/// Records that an event of this kind has happened.
pub(crate) fn saw(kind: Kind) {
    SEEN.fetch_or(1 << kind as u64, Ordering::Relaxed);
}

/// The line in which this world reports its kinds to [`Tally::add`].
pub(crate) fn line() -> String {
    format!("{LINE}{:x}", SEEN.load(Ordering::Relaxed))
}

/// The counts of several worlds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    worlds: [u64; KINDS.len()],
}

impl Tally {
    /// Adds the kinds that a world's process has printed.
    pub(crate) fn add(&mut self, said: &str) {
        let seen = said.lines().find_map(|line| line.strip_prefix(LINE));
        let seen = seen.and_then(|seen| u64::from_str_radix(seen, 16).ok()).unwrap_or(0);
        for (kind, _) in KINDS {
            self.worlds[*kind as usize] += seen >> *kind as u64 & 1;
        }
    }

    /// For each kind, the number of worlds in which it happened.
    pub(crate) fn summary(&self) -> String {
        let one = |(kind, name): &(Kind, &str)| format!("{name} {}", self.worlds[*kind as usize]);
        format!("numbers of worlds: {}", KINDS.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// The kinds that happened in no world.
    pub(crate) fn never(&self) -> Vec<&'static str> {
        let none = |(kind, _): &&(Kind, &str)| self.worlds[*kind as usize] == 0;
        KINDS.iter().filter(none).map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_happened_in_no_world_is_told() {
        let mut tally = Tally::default();
        assert_eq!(tally.never().len(), KINDS.len());
        let said = |kinds: u64| format!("something\n{LINE}{kinds:x}\n");
        tally.add(&said(!(1 << Kind::SlowFence as u64)));
        tally.add("a world that has said nothing of it");
        assert_eq!(tally.never(), ["slow fence"]);
        tally.add(&said(1 << Kind::SlowFence as u64));
        assert!(tally.never().is_empty());
        assert!(tally.summary().contains("reset 1, "), "{}", tally.summary());
    }
}
