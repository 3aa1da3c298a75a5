//! Proves P1 and P2 from the logs of a virtual machine's hosts, or names the records that break
//! them.
//!
//! The proof uses the order of records, not the clocks of two hosts. A log holds the events of its
//! side in order, and what one side receives, the other side has sent before. In the primary's log,
//! an acknowledgement comes before the effects that it releases. The standby's log has the same
//! acknowledgement, sent once the standby had the checkpoint. Clocks are compared only between two
//! logs of the same boot of one host, which share one clock.

mod index;
mod walk;

use super::entry::{Entry, Event};
use super::reader::Log;
use index::Index;
use walk::{Stop, Walk, Walked};

/// The numbers of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Effects performed.
    pub performed: u64,
    /// Number of these that an acknowledgement in the standby's log has released.
    pub after_ack: u64,
    /// Number of these that the right to run alone has released.
    pub alone: u64,
    /// Number of these released by records that rotation has removed.
    pub earlier: u64,
    /// Number of these that a takeover performed for a former primary, again or for the first time.
    pub replayed: u64,
    /// Takeovers.
    pub takeovers: u64,
    /// Logs.
    pub logs: u64,
    /// Logs without a last record: their process died or still runs.
    pub cut: u64,
}

/// What the logs prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// P1 and P2 held in all that is recorded.
    Proved(Counts),
    /// A promise was broken.
    Broken(Box<Breach>),
    /// No breach is known, but not everything can be proven.
    Incomplete {
        /// The missing evidence.
        reasons: Vec<String>,
        /// The numbers of the report.
        counts: Counts,
    },
}

impl Verdict {
    /// The exit code of `kemari audit verify`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Proved(_) => 0,
            Self::Broken(_) => 1,
            Self::Incomplete { .. } => 3,
        }
    }
}

/// The first breach of a promise, with the records that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// `P1` or `P2`.
    pub promise: &'static str,
    /// What was expected and what was found.
    pub what: String,
    /// The records, each with its log's name.
    pub records: Vec<(String, Entry)>,
}

/// The position of a record: its log, and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    log: usize,
    at: usize,
}

fn breach(promise: &'static str, what: String, logs: &[Log], places: &[Place]) -> Box<Breach> {
    let record = |place: &Place| (logs[place.log].name.clone(), logs[place.log].entries[place.at]);
    Box::new(Breach { promise, what, records: places.iter().map(record).collect() })
}

/// Judges the logs of all hosts that a virtual machine has had. With `allow_rotated`, records that
/// rotation has removed do not count as missing.
#[must_use]
pub fn verify(logs: &[Log], allow_rotated: bool) -> Verdict {
    let index = Index::new(logs);
    if let Some(breach) = index.term_won_twice() {
        return Verdict::Broken(breach);
    }
    let mut counts = Counts { logs: logs.len() as u64, ..Counts::default() };
    let mut reasons = Vec::new();
    let mut walked = Vec::new();
    for (number, log) in logs.iter().enumerate() {
        counts.cut += u64::from(!log.has_ended());
        reasons.extend(log.hole.iter().map(|hole| format!("{}: {hole}", log.name)));
        if log.is_rotated() && !allow_rotated {
            let next = log.header.before.next;
            reasons.push(format!(
                "{}: the records before {next} were rotated away (--rotated accepts this; a larger size= or keep= \
                 keeps more)",
                log.name
            ));
        }
        match Walk::new(&index, number).run(&mut counts) {
            Ok(done) => {
                let missing = done.missing.iter().filter(|gone| !(gone.rotated && allow_rotated));
                reasons.extend(missing.take(1).map(|gone| gone.what.clone()));
                walked.push(done);
            }
            Err(Stop(breach)) => return Verdict::Broken(breach),
        }
    }
    if let Some(breach) = across(&index, &walked) {
        return Verdict::Broken(breach);
    }
    if logs.iter().all(|log| log.entries.is_empty()) {
        reasons.push("there is no record".to_owned());
    }
    match reasons.is_empty() {
        true => Verdict::Proved(counts),
        false => Verdict::Incomplete { reasons, counts },
    }
}

/// Checks what no single log shows: that two hosts never perform for one virtual machine (P2).
fn across(index: &Index<'_>, walked: &[Walked]) -> Option<Box<Breach>> {
    for won in index.terms() {
        let event = index.event(won);
        if let Event::TermWon { next, session, epoch, .. } = event
            && let Some(parent) = index.takeover_parent(&event)
            && let Some(first) = walked[parent].first_performed_from(next)
        {
            let what = format!(
                "expected that the primary of session {session:#x} performed only effects that the checkpoint of \
                 epoch {epoch} contains, from which its standby continued; found another effect performed"
            );
            let place = Place { log: parent, at: first };
            return Some(breach("P1", what, index.logs, &[place, won]));
        }
        if let Event::TermWon { term, .. } = event
            && let Some(breach) = by_one_clock(index, walked, won.log, term)
        {
            return Some(breach);
        }
    }
    None
}

/// P2 for two sides on one host, as in a trial: no side performs an effect in an old term after an
/// effect of a later term. The win of a later term alone is no breach: its effects wait for the old
/// term's lease.
fn by_one_clock(
    index: &Index<'_>,
    walked: &[Walked],
    heir: usize,
    term: u64,
) -> Option<Box<Breach>> {
    let (_, first) = walked[heir].first_performed.range(term..).next()?;
    let first = Place { log: heir, at: *first };
    let since = index.entry(first).time;
    let others = walked.iter().enumerate().filter(|(log, _)| {
        *log != heir && index.same_clock(*log, heir) && index.related(*log, heir)
    });
    for (log, walk) in others {
        let old = walk.last_performed.range(..term).map(|(_, at)| Place { log, at: *at });
        if let Some(late) = old.into_iter().find(|late| index.entry(*late).time > since) {
            let what = format!(
                "expected no effect of an older term after an effect of term {term}, found one, by the clock of the \
                 host that both ran on"
            );
            return Some(breach("P2", what, index.logs, &[late, first]));
        }
    }
    None
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} effects performed: {} each after its ACK, {} by the right to run alone",
            self.performed, self.after_ack, self.alone
        )?;
        if self.earlier > 0 {
            write!(f, ", {} with records that were rotated away", self.earlier)?;
        }
        write!(
            f,
            "; {} replayed in {} takeovers; {} logs",
            self.replayed, self.takeovers, self.logs
        )?;
        match self.cut {
            0 => Ok(()),
            cut => write!(f, ", {cut} of them without an end record: proved as far as they go"),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Proved(counts) => write!(f, "P1 and P2 proved: {counts}"),
            Self::Broken(breach) => {
                write!(f, "{} BROKEN: {}", breach.promise, breach.what)?;
                for (log, entry) in &breach.records {
                    write!(f, "\n  {log}: {entry}")?;
                }
                Ok(())
            }
            Self::Incomplete { reasons, counts } => {
                write!(f, "incomplete: {}", reasons.join("; "))?;
                write!(f, "\n  the records that are there show no violation: {counts}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
