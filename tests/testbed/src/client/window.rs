//! Measurements of a period: number of operations, their latency, and the longest time without an
//! answer.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

const HIGHEST_MICROSECONDS: u64 = 600_000_000;

/// The measurements since the window began.
#[derive(Debug, Clone)]
pub struct Window {
    last_answer: Instant,
    /// Number of answered operations.
    pub operations: u64,
    /// Number of requests that were sent again.
    pub resent: u64,
    /// Number of answers beyond one for each transmission of a request.
    pub surplus_answers: u64,
    /// The longest time without any answer.
    pub longest_gap: Duration,
    /// Time from the first transmission to the answer, in microseconds.
    pub latency: Histogram<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self::starting_now()
    }
}

impl Window {
    /// An empty window.
    pub fn starting_now() -> Self {
        Self {
            last_answer: Instant::now(),
            operations: 0,
            resent: 0,
            surplus_answers: 0,
            longest_gap: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, HIGHEST_MICROSECONDS, 3)
                .expect("the bounds are valid"),
        }
    }

    pub(crate) fn answer(&mut self, first_sent: Instant) {
        let now = Instant::now();
        self.operations += 1;
        self.longest_gap = self.longest_gap.max(now - self.last_answer);
        self.last_answer = now;
        self.latency.saturating_record((now - first_sent).as_micros() as u64);
    }
}
