//! Measures several ways to do one thing in turn, so that other load on the machine affects all of
//! them equally.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// The name of one way, and a function that returns the time of the part that counts.
pub(crate) type Way<'a> = (&'a str, Box<dyn FnMut() -> Duration + 'a>);

/// The duration of `work`.
pub(crate) fn time<R>(work: impl FnOnce() -> R) -> Duration {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}

/// A way whose whole duration counts.
pub(crate) fn way<'a, R>(name: &'a str, mut work: impl FnMut() -> R + 'a) -> Way<'a> {
    (name, Box::new(move || time(&mut work)))
}

/// Runs every way once to warm up, and then `rounds` times in turn. Each round starts with a
/// different way. Returns the times in the order of `ways`.
pub(crate) fn in_turn(rounds: usize, ways: &mut [Way<'_>]) -> Vec<Times> {
    let count = ways.len();
    let mut times = vec![Times::default(); count];
    for (_, run) in ways.iter_mut() {
        run();
    }
    for round in 0..rounds {
        for at in (0..count).map(|i| (i + round) % count) {
            times[at].0.push(ways[at].1());
        }
    }
    times
}

/// The times of one way.
#[derive(Clone, Default)]
pub(crate) struct Times(pub(crate) Vec<Duration>);

impl Times {
    /// The quantile `part` of the times, in nanoseconds.
    pub(crate) fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e9
    }

    /// The median in nanoseconds.
    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }
}

/// Median and 99th percentile, in microseconds.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} / {:.1}", self.at(0.5) / 1e3, self.at(0.99) / 1e3)
    }
}

/// Repeats a call that a signal has interrupted, for instance when the process was stopped and
/// continued.
pub(crate) fn uninterrupted<R>(mut call: impl FnMut() -> io::Result<R>) -> R {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result.unwrap(),
        }
    }
}

/// Prints the head of a table.
pub(crate) fn head(columns: &[&str]) {
    println!("\n| {} |\n|{}", columns.join(" | "), " --- |".repeat(columns.len()));
}

/// Keeps this thread on one processor.
pub(crate) fn stay_on(cpu: usize) {
    // SAFETY: all zero is a set of no processors.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the number of bits in the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the size is that of the set; 0 is this thread.
    let ret = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    assert_eq!(ret, 0, "this needs processors 0 and 1: {}", std::io::Error::last_os_error());
}

/// Does `work` on processor 0, as one of two hosts; the other host has processor 1.
pub(crate) fn on_one_side<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let pinned = || {
        stay_on(0);
        work()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join()).unwrap()
}
