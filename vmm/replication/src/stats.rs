//! The engine's measurements, as shown by `kemari ctl status`.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The summary of a distribution.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

/// A distribution of whole numbers with three significant digits, in bounded memory.
#[derive(Debug)]
pub struct Distribution(Histogram<u64>);

impl Default for Distribution {
    fn default() -> Self {
        // One hour in microseconds and 16 GiB in pages are far below the upper bound. Larger values
        // are counted as the bound.
        let histogram = Histogram::new_with_bounds(1, 1 << 42, 3);
        Self(histogram.expect("the bounds are valid: 1 * 2 <= 2^42, 3 <= 5 digits"))
    }
}

impl Distribution {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        self.0.saturating_record(value);
    }

    /// Adds a time, in microseconds.
    pub fn add_time(&mut self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Removes all values.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// The percentiles of the values added since the last reset.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.0.len(),
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        }
    }
}
