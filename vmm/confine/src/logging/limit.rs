//! Limits the number of lines that one place in the source may log (P9).
//!
//! A guest, a peer and a failing host can cause a line any number of times, in our code and in
//! other crates. So each line counts for the place in the source that logs it. A place may log one
//! line per second. Of the lines that it suppresses, it logs the newest a second later, with their
//! number.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use log::{Level, Record};

/// A place may log one line per interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// Lines that a place may log at once: 1 for most places, 16 for those that report changes of
/// state.
const BURST: u32 = 1;
const BURST_OF_STATE: u32 = 16;
/// Upper bound of the places with a limit of their own; further places share one. The program has
/// some hundreds of places, other crates included.
const MAX_PLACES: usize = 1024;

/// A place in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    id: u64,
    burst: u32,
}

impl Place {
    /// The place of a record: its file and line, or its target and module if those are not given.
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

/// A line to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) level: Level,
    /// The target, which filters use.
    pub(super) target: String,
    pub(super) text: String,
}

/// The suppressed lines of a place: the newest, which will be logged, and their number.
#[derive(Debug)]
struct Suppressed {
    newest: Line,
    count: u64,
}

#[derive(Debug)]
struct Source {
    burst: u32,
    /// The end of the time for which the place has used its allowance.
    spent_until: Instant,
    suppressed: Option<Suppressed>,
}

impl Source {
    fn new(place: Place, now: Instant) -> Self {
        Self { burst: place.burst, spent_until: now, suppressed: None }
    }

    /// When the place may log its next line.
    fn free_at(&self) -> Instant {
        self.spent_until.checked_sub(INTERVAL * (self.burst - 1)).unwrap_or(self.spent_until)
    }

    fn spend(&mut self, now: Instant) {
        self.spent_until = self.spent_until.max(now) + INTERVAL;
    }

    /// The newest suppressed line, if the place may log one by `now`.
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

/// The state of every place that has logged a line.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    sources: HashMap<Place, Source>,
    /// Number of places with suppressed lines.
    behind: usize,
}

impl Limiter {
    /// Returns the line, with the number of lines suppressed before it, if its place may log now.
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

    /// Takes the suppressed lines whose places may log again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Line> {
        if self.behind == 0 {
            return Vec::new();
        }
        let due: Vec<Line> =
            self.sources.values_mut().filter_map(|source| source.take_due(now)).collect();
        self.behind -= due.len();
        due
    }

    /// Takes all suppressed lines, for the end of the process.
    pub(super) fn take_all(&mut self) -> Vec<Line> {
        self.behind = 0;
        let suppressed = self.sources.values_mut().filter_map(|source| source.suppressed.take());
        suppressed.map(|Suppressed { newest, count }| newest.with_count(count - 1)).collect()
    }

    /// When the next suppressed line is due.
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

    /// P9: a flood of ten seconds becomes eleven lines, and each suppressed line is counted.
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

    /// The last line is not lost if its place logs no more: it may say how the matter ended.
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

    /// A place may report 16 changes of state at once; beyond that it has the limit of any place.
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

    /// P9: the table of places is bounded, even if other crates generate targets.
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
