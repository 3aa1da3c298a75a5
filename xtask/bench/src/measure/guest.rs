//! The cost of protection for the guest itself: a computing loop, memory that is rewritten, and an
//! idle guest.

use std::time::{Duration, Instant};

use anyhow::Result;
use kemari_workload::Op;

use super::system::{Mode, SystemConfig, SystemUnderTest};
use super::{Bench, counted};
use crate::data::{Group, Row, Target, Unit};

/// A rate that no guest reaches: the guest never rests.
const NEVER_RESTS: u32 = u32::MAX;

/// Measures the share of its work that a busy guest still does under protection.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn progress(bench: &Bench<'_>) -> Result<Group> {
    let mut group = Group {
        name: "guest".to_owned(),
        title: "The guest's own work".to_owned(),
        how: "The guest rewrites the pages of a region again and again, without a pause. It has no output, so an \
              epoch ends only by time (25 ms). With 1 page the guest only computes; with more, KVM records each \
              page's first write in an epoch. Ratios: to off."
            .to_owned(),
        ..Group::default()
    };
    for region in [1, 1024, 8192] {
        let off = rewritten(bench, Mode::Off, region)?;
        let protected = rewritten(bench, Mode::Protected, region)?;
        let name = |mode: Mode| format!("pages rewritten, region of {region}, {}", mode.name());
        group.rows.extend([
            Row::new(name(Mode::Off), Unit::PerSecond, off),
            Row::new(name(Mode::Protected), Unit::PerSecond, protected).limit(off, "off"),
        ]);
    }
    Ok(group)
}

fn rewritten(bench: &Bench<'_>, mode: Mode, region: u32) -> Result<f64> {
    bench.progress.step(&format!(
        "a guest that rewrites {}, {}",
        counted(region, "page"),
        mode.name()
    ));
    let mut system = SystemUnderTest::start(&bench.system(mode, 128, 1))?;
    system.load.once(Op::SetDirty { pages_per_second: NEVER_RESTS, region_pages: region })?;
    std::thread::sleep(Duration::from_millis(200));
    let first = system.load.once(Op::Ping)?;
    let begun = Instant::now();
    std::thread::sleep(bench.stretch());
    let last = system.load.once(Op::Ping)?;
    Ok((last.dirty_pages - first.dirty_pages) as f64 / begun.elapsed().as_secs_f64())
}

/// Option of the micro-guest for a clock that ticks ten times per second. The clock of an idle
/// Linux guest also ticks rarely.
const TICKLESS: &str = "tick=100000";

/// Measures the processor time of an idle guest.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn idle(bench: &Bench<'_>) -> Result<Group> {
    let mut rows = Vec::new();
    for mode in [Mode::Off, Mode::Protected] {
        bench.progress.step(&format!("an idle guest, {}", mode.name()));
        let config = SystemConfig { guest: TICKLESS, ..bench.system(mode, 64, 1) };
        let mut system = SystemUnderTest::start(&config)?;
        system.load.once(Op::Ping)?;
        // The first second after a start is not idle.
        std::thread::sleep(Duration::from_secs(1));
        let (before, begun) = (system.processor_time()?, Instant::now());
        std::thread::sleep(bench.stretch() * 4);
        let taken = system.processor_time()? - before;
        let share = taken.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        let row = Row::new(format!("idle, {}", mode.name()), Unit::Percent, share);
        rows.push(match mode {
            Mode::Off => row,
            _ => row.limit(1.0, "one hundredth of a core").target(Target::AtMost(1.0)),
        });
    }
    Ok(Group {
        name: "idle".to_owned(),
        title: "An idle guest".to_owned(),
        how: "Processor time of both monitors, in per cent of one core, while the guest waits for interrupts and is \
              woken ten times a second."
            .to_owned(),
        rows,
        curves: Vec::new(),
    })
}
