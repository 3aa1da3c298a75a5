//! Samples, and the figures that a report shows of them.

use std::time::Duration;

use crate::data::{Row, Spread, Unit};

/// The samples of one quantity.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub(super) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a time, in microseconds.
    pub(super) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e6);
    }

    /// Adds all samples of `other`.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The number of samples.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The distribution; `None` without samples. Each quantile is one of the samples (nearest
    /// rank).
    pub(super) fn spread(&self) -> Option<Spread> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        let quantile = |q: f64| {
            let rank = (q * sorted.len() as f64).ceil() as usize;
            sorted[rank.clamp(1, sorted.len()) - 1]
        };
        let count = sorted.len() as u64;
        let (p50, p90) = (quantile(0.5), quantile(0.9));
        Some(Spread { count, p50, p90, p99: quantile(0.99), p999: quantile(0.999), max })
    }

    /// A row whose value is the median; `None` without samples.
    pub(super) fn row(&self, name: impl Into<String>, unit: Unit) -> Option<Row> {
        let spread = self.spread()?;
        Some(Row::new(name, unit, spread.p50).spread(spread))
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let samples: Samples = (1..=1000).rev().map(f64::from).collect();
        let spread = samples.spread().unwrap();
        let expected =
            Spread { count: 1000, p50: 500.0, p90: 900.0, p99: 990.0, p999: 999.0, max: 1000.0 };
        assert_eq!(spread, expected);
    }

    #[test]
    fn few_values_will_do_and_none_will_not() {
        let spread = Samples::from_iter([3.0, 9.0]).spread().unwrap();
        assert_eq!((spread.p50, spread.p90, spread.p999, spread.max), (3.0, 9.0, 9.0, 9.0));
        assert!(Samples::default().row("nothing", Unit::Count).is_none());
    }

    #[test]
    fn times_are_in_microseconds() {
        let mut samples = Samples::default();
        samples.add_time(Duration::from_millis(2));
        assert_eq!(samples.row("a time", Unit::Microseconds).unwrap().value, 2000.0);
    }
}
