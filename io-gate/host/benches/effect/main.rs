//! The cost of one effect on its path through the gate, compared with the cost of the same bytes
//! without the gate: `cargo bench -p io-gate-host`. All figures are per effect, from batches of
//! [`guest::BATCH`].
//!
//! `bare` walks the same chains and writes the same bytes to the same sink, on one thread. `open`
//! is the gate without fault tolerance. `held` is the gate with it, and each batch is one epoch.
//! `time` lasts until the driver has its chains back. `processor` is the processor time of all
//! threads together.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed measurement")]

mod bare;
mod gated;
mod guest;
mod ledger;

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};

use bare::Bare;
use gated::Gated;
use guest::{BATCH, Kind};

/// The cost of a batch.
#[derive(Clone, Copy)]
struct Spent {
    time: Duration,
    processor: Duration,
}

fn spent(work: impl FnOnce()) -> Spent {
    let (begun, used) = (Instant::now(), processor());
    work();
    let time = begun.elapsed();
    Spent { time, processor: processor().saturating_sub(used) }
}

/// Processor time of all threads of this process.
fn processor() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock's number is one of the system's, and `now` is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Measures batches by one clock after the other, per effect.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    size: usize,
    batch: &mut dyn FnMut() -> Spent,
) {
    for clock in ["time", "processor"] {
        let of = |spent: Spent| if clock == "time" { spent.time } else { spent.processor };
        group.bench_function(BenchmarkId::new(format!("{name}, {clock}"), size), |bencher| {
            bencher.iter_custom(|effects| {
                let batches = effects.div_ceil(u64::from(BATCH));
                let total: Duration = (0..batches).map(|_| of(batch())).sum();
                total.mul_f64(effects as f64 / (batches * u64::from(BATCH)) as f64)
            });
        });
    }
}

fn through_the_gate(criterion: &mut Criterion, title: &str, kind: Kind, sizes: &[usize]) {
    let mut group = criterion.benchmark_group(title);
    for size in sizes {
        let mut bare = Bare::new(kind, *size);
        measure(&mut group, "bare", *size, &mut || bare.batch());
        let mut open = Gated::open(kind, *size);
        measure(&mut group, "open", *size, &mut || open.batch());
        let mut held = Gated::holding(kind, *size);
        measure(&mut group, "held", *size, &mut || held.batch());
    }
    group.finish();
}

fn block_writes(criterion: &mut Criterion) {
    // Whole sectors only.
    through_the_gate(criterion, "block write", Kind::Block, &[512, 4096]);
}

fn frames(criterion: &mut Criterion) {
    through_the_gate(criterion, "network frame", Kind::Network, &[64, 1500, 4096]);
}

/// The console has no destination: this measures only the path.
fn console_output(criterion: &mut Criterion) {
    through_the_gate(criterion, "console output", Kind::Console, &[64, 1500, 4096]);
}

fn ledger_alone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    for (name, mut ledger) in [("open", ledger::Alone::open()), ("held", ledger::Alone::holding())]
    {
        measure(&mut group, name, ledger::SIZE as usize, &mut || spent(|| ledger.batch()));
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = effects;
    config = short();
    targets = ledger_alone, console_output, frames, block_writes
}
criterion_main!(effects);
