//! Counters of a stretch of time: number of operations, their latency, and the longest silence.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

const HIGHEST_MICROSECONDS: u64 = 600_000_000;

/// What was measured since the window began.
#[derive(Debug, Clone)]
pub struct Window {
    last_answer: Instant,
    /// Operations answered.
    pub operations: u64,
    /// Requests that were sent again.
    pub resent: u64,
    /// Answers beyond one for each transmission of a request.
    pub surplus_answers: u64,
    /// The longest time without any answer.
    pub longest_gap: Duration,
    /// From first sending to answer, in microseconds.
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
