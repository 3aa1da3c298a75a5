//! How many lines one place in the source may write (P9).
//!
//! A guest, a peer and a failing host can have a line written as often as they like, by code of ours and of
//! other crates. So every line is counted here, by the place that it comes from, and no place is exempt: one
//! line a second, and then the newest of the others with their number.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use log::{Level, Record};

/// What a place earns one line by.
const INTERVAL: Duration = Duration::from_secs(1);
/// The lines that a place may write at once: most of them one, those that tell of changes of state some more.
const BURST: u32 = 1;
const BURST_OF_STATE: u32 = 16;
/// Places that are told apart; those beyond share one. The program has some hundreds of them, other crates included.
const MAX_PLACES: usize = 1024;

/// A place in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    id: u64,
    burst: u32,
}

impl Place {
    /// Where a record comes from: its file and line, or, where its maker does not tell, its target and module.
    pub(super) fn of(record: &Record<'_>) -> Self {
        let mut id = DefaultHasher::new();
        match (record.file(), record.line()) {
            (Some(file), Some(line)) => (file, line).hash(&mut id),
            _ => (record.target(), record.module_path()).hash(&mut id),
        }
        let burst = if record.target() == super::STATE { BURST_OF_STATE } else { BURST };
        Self { id: id.finish(), burst }
    }
}

/// A line on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) level: Level,
    /// What filters go by.
    pub(super) target: String,
    pub(super) text: String,
}

/// Lines of a place that were not written; the newest of them will be.
#[derive(Debug)]
struct Suppressed {
    newest: Line,
    count: u64,
}

#[derive(Debug)]
struct Source {
    burst: u32,
    /// The place has used up what it earns until then.
    spent_until: Instant,
    suppressed: Option<Suppressed>,
}

impl Source {
    fn new(place: Place, now: Instant) -> Self {
        Self { burst: place.burst, spent_until: now, suppressed: None }
    }

    /// When it may write its next line.
    fn free_at(&self) -> Instant {
        self.spent_until.checked_sub(INTERVAL * (self.burst - 1)).unwrap_or(self.spent_until)
    }

    fn spend(&mut self, now: Instant) {
        self.spent_until = self.spent_until.max(now) + INTERVAL;
    }

    /// The newest of the suppressed lines, if the place may write one by `now`.
    fn take_due(&mut self, now: Instant) -> Option<Line> {
        if now < self.free_at() {
            return None;
        }
        let Suppressed { newest, count } = self.suppressed.take()?;
        self.spend(now);
        Some(newest.with_count(count - 1))
    }
}

impl Line {
    fn with_count(mut self, others: u64) -> Self {
        if others > 0 {
            self.text.push_str(&format!(" (and {others} more from this place, not shown)"));
        }
        self
    }
}

/// Every place that has written a line.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    sources: HashMap<Place, Source>,
    /// Places that have lines suppressed.
    behind: usize,
}

impl Limiter {
    /// Takes a line: gives it back, perhaps with the number of those before it, if its place may write it now.
    pub(super) fn admit(&mut self, place: Place, line: Line, now: Instant) -> Option<Line> {
        let place = match self.sources.len() >= MAX_PLACES && !self.sources.contains_key(&place) {
            true => Place { id: 0, burst: BURST },
            false => place,
        };
        let source = self.sources.entry(place).or_insert_with(|| Source::new(place, now));
        if now >= source.free_at() {
            source.spend(now);
            let before = source.suppressed.take().map_or(0, |suppressed| suppressed.count);
            self.behind -= usize::from(before > 0);
            return Some(line.with_count(before));
        }
        match &mut source.suppressed {
            Some(suppressed) => {
                suppressed.newest = line;
                suppressed.count += 1;
            }
            none => {
                *none = Some(Suppressed { newest: line, count: 1 });
                self.behind += 1;
            }
        }
        None
    }

    /// The suppressed lines whose places may write again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Line> {
        if self.behind == 0 {
            return Vec::new();
        }
        let due: Vec<Line> =
            self.sources.values_mut().filter_map(|source| source.take_due(now)).collect();
        self.behind -= due.len();
        due
    }

    /// All of the suppressed lines: the process ends.
    pub(super) fn take_all(&mut self) -> Vec<Line> {
        self.behind = 0;
        let suppressed = self.sources.values_mut().filter_map(|source| source.suppressed.take());
        suppressed.map(|Suppressed { newest, count }| newest.with_count(count - 1)).collect()
    }

    /// When a suppressed line is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.behind == 0 {
            return None;
        }
        let behind = self.sources.values().filter(|source| source.suppressed.is_some());
        behind.map(Source::free_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn line(text: &str) -> Line {
        Line { level: Level::Warn, target: "t".to_owned(), text: text.to_owned() }
    }

    fn at(line: u32, target: &str) -> Place {
        let mut record = Record::builder();
        record.file(Some("a.rs")).line(Some(line)).target(target);
        Place::of(&record.build())
    }

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    /// P9: a flood of ten seconds is eleven lines, and none of its lines is uncounted.
    #[test]
    fn a_flood_is_one_line_a_second_with_a_count() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let mut shown = Vec::new();
        for number in 0..100_000_u32 {
            let now = begin + SECOND * 10 / 100_000 * number;
            shown.extend(texts(limiter.take_due(now)));
            let admitted = limiter.admit(at(1, "t"), line("again"), now);
            shown.extend(admitted.map(|line| line.text));
        }
        shown.extend(texts(limiter.take_all()));
        assert_eq!(shown.len(), 11, "{shown:?}");
        let counted = |text: &String| -> u64 {
            1 + text.split_once("(and ").map_or(0, |(_, rest)| {
                rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default()
            })
        };
        assert_eq!(shown.iter().map(counted).sum::<u64>(), 100_000, "{shown:?}");
    }

    #[test]
    fn places_do_not_wait_for_each_other() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for number in 0..10 {
            assert!(limiter.admit(at(number, "t"), line("first"), now).is_some());
            assert!(limiter.admit(at(number, "t"), line("second"), now).is_none());
        }
    }

    /// Without a next line from its place the last one is not lost: it may say how it ended.
    #[test]
    fn the_newest_suppressed_line_comes_a_second_later() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        assert_eq!(limiter.next_due(), None);
        for text in ["held", "released", "held", "released again"] {
            limiter.admit(at(1, "t"), line(text), now);
        }
        assert_eq!(limiter.next_due(), Some(now + SECOND));
        assert!(limiter.take_due(now + SECOND / 2).is_empty());
        let due = texts(limiter.take_due(now + SECOND));
        assert_eq!(due, ["released again (and 2 more from this place, not shown)"]);
        assert_eq!(limiter.next_due(), None);
    }

    /// Changes of state come in bursts, from one place; more than the burst are bounded like all others.
    #[test]
    fn changes_of_state_may_come_together() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let mut admitted = |now| limiter.admit(at(1, super::super::STATE), line("lost"), now);
        for _ in 0..BURST_OF_STATE {
            assert!(admitted(now).is_some());
        }
        assert!(admitted(now).is_none());
        assert!(admitted(now + SECOND).is_some());
        assert!(admitted(now + SECOND).is_none());
        let rested = now + SECOND * 100;
        let burst = (0..100).filter(|_| admitted(rested).is_some()).count();
        assert_eq!(burst, BURST_OF_STATE as usize);
    }

    /// P9: the table of places is bounded, whatever other crates make of targets.
    #[test]
    fn places_beyond_the_bound_share_one() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let shown = (0..10_000)
            .filter(|number| limiter.admit(at(*number, "t"), line("x"), now).is_some())
            .count();
        assert_eq!(shown, MAX_PLACES + 1);
        assert_eq!(limiter.sources.len(), MAX_PLACES + 1);
    }
}
