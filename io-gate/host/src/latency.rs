//! How long effects wait at the gate: from staging to release, by class of effect.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use io_gate::host::{EffectId, EffectOp, Record, Request};

/// The longest wait that is recorded. A longer one counts as this.
const LONGEST: Duration = Duration::from_secs(600);

/// A class of effects, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectClass {
    /// Network frames.
    Network,
    /// Disk writes.
    Write,
    /// Disk flushes.
    Flush,
    /// Discards and writes of zeroes.
    Discard,
    /// Console output.
    Console,
    /// Power events.
    Power,
}

impl EffectClass {
    /// Every class.
    pub const ALL: [Self; 6] =
        [Self::Network, Self::Write, Self::Flush, Self::Discard, Self::Console, Self::Power];

    /// The name of the class: `network`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Console => "console",
            Self::Power => "power",
        }
    }

    fn of(record: &Record) -> Option<Self> {
        let Request::Effect(op) = &record.request else { return None };
        Some(match op {
            EffectOp::NetTx { .. } => Self::Network,
            EffectOp::BlockWrite { .. } => Self::Write,
            EffectOp::BlockFlush { .. } => Self::Flush,
            EffectOp::BlockDiscard { .. } | EffectOp::BlockWriteZeroes { .. } => Self::Discard,
            EffectOp::ConsoleTx { .. } => Self::Console,
            EffectOp::Power(_) => Self::Power,
        })
    }
}

/// The distribution of waits of one class, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencySummary {
    /// The class.
    pub class: EffectClass,
    /// Number of effects.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 percent of the waits are at most this.
    pub p90: u64,
    /// 99 percent of the waits are at most this.
    pub p99: u64,
    /// 99.9 percent of the waits are at most this.
    pub p999: u64,
    /// The longest wait.
    pub max: u64,
}

/// The maximum number of effects that are measured at a time: more than a gate can hold.
const MOST: usize = 1 << 17;

/// Waits of effects at a closed gate.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// When each held effect was staged, oldest first, as in the ledger.
    staged: VecDeque<(EffectId, Instant)>,
    waits: [Histogram<u64>; EffectClass::ALL.len()],
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let longest = LONGEST.as_micros() as u64;
        let empty = || {
            Histogram::new_with_bounds(1, longest, 2).expect("the bounds are constants in range")
        };
        Self { staged: VecDeque::new(), waits: std::array::from_fn(|_| empty()) }
    }

    pub(crate) fn staged(&mut self, id: EffectId, now: Instant) {
        // P9: a guest can stage effects and have them cancelled, again and again, without any
        // release.
        if self.staged.len() == MOST {
            self.staged.pop_front();
        }
        self.staged.push_back((id, now));
    }

    pub(crate) fn released(&mut self, record: &Record, now: Instant) {
        // Drop older effects: they were cancelled.
        while let Some((id, since)) = self.staged.front().copied() {
            if id > record.id {
                return;
            }
            self.staged.pop_front();
            if id == record.id
                && let Some(class) = EffectClass::of(record)
            {
                let wait = now.saturating_duration_since(since).min(LONGEST).as_micros() as u64;
                self.waits[class as usize].saturating_record(wait.max(1));
            }
        }
    }

    /// Clears the recorded waits.
    pub(crate) fn reset(&mut self) {
        self.waits.iter_mut().for_each(Histogram::reset);
    }

    pub(crate) fn summaries(&self) -> Vec<LatencySummary> {
        let classes = EffectClass::ALL.into_iter().zip(&self.waits);
        classes
            .filter(|(_, waits)| !waits.is_empty())
            .map(|(class, waits)| LatencySummary {
                class,
                count: waits.len(),
                p50: waits.value_at_quantile(0.5),
                p90: waits.value_at_quantile(0.9),
                p99: waits.value_at_quantile(0.99),
                p999: waits.value_at_quantile(0.999),
                max: waits.max(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P9: a guest's requests are held and cancelled again and again.
    #[test]
    fn what_is_never_released_is_not_kept_for_ever() {
        let (mut latencies, now) = (Latencies::new(), Instant::now());
        for id in 0..3 * MOST as u64 {
            latencies.staged(EffectId(id), now);
        }
        assert_eq!(latencies.staged.len(), MOST);
    }
}
