//! The cost of a checkpoint, by its number of dirty pages and by the size of guest memory.
//!
//! The guest rewrites a number of pages and then answers. The answer waits for a checkpoint that
//! contains these pages.

use anyhow::{Context, Result};
use kemari_workload::Op;
use serde_json::Value;

use super::limits::Limits;
use super::load::Length;
use super::system::{Mode, SystemUnderTest, spread};
use super::{Bench, counted};
use crate::data::{Axis, Curve, Group, Line, Row, Spread, Target, Unit};

/// The results for one number of pages.
struct Point {
    asked: u64,
    written: Written,
    /// Dirty pages in a checkpoint that contains all or most pages of a request.
    dirty: u64,
    /// Whether the measurement includes other checkpoints, with few pages.
    uneven: bool,
    pause: Spread,
    parts: Vec<(&'static str, Spread)>,
    commit_parts: Vec<(&'static str, Spread)>,
    commit: Spread,
    sealed_to_ack: Spread,
    bytes: Spread,
    request: Spread,
    rate: f64,
}

/// How much of each page the guest rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Every word.
    Whole,
    /// Two lines of 64 bytes.
    Ends,
}

impl Written {
    fn suffix(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Ends => ", 128 bytes of each",
        }
    }
}

const COMMIT_PARTS: [&str; 3] = ["wait", "encode", "send"];
const PARTS: [&str; 6] = ["kick", "seal", "save", "collect", "copy", "resume"];

/// Number of requests before the measurement, until buffers, caches and page tables have settled.
const WARM_UP: u64 = 20;
const LEAST_ANSWERS: u64 = 20;

/// Measures each number of pages; returns the results and the limits.
///
/// # Errors
/// A guest cannot be run, or the limits cannot be measured.
pub(super) fn by_pages(bench: &Bench<'_>) -> Result<(Group, Group)> {
    let counts: &[u32] = match bench.quick {
        true => &[16, 128, 1024],
        false => &[1, 16, 128, 1024, 8192, 100_000],
    };
    let mut points = Vec::new();
    for &count in counts {
        let mut system =
            SystemUnderTest::start(&bench.system(Mode::Protected, memory_for(count), 1))?;
        for written in [Written::Ends, Written::Whole] {
            bench.progress.step(&format!("{count} dirty pages{}", written.suffix()));
            points.push(measure(bench, &mut system, count, written)?);
        }
    }
    bench.progress.step("the limits of the machine");
    let mut actual: Vec<u64> = points.iter().map(|point| point.dirty).collect();
    actual.sort_unstable();
    actual.dedup();
    let limits = Limits::measure(bench.kemari, &actual)?;
    Ok((checkpoint_group(&points, &limits)?, limits_group(&limits)))
}

/// Memory in MiB of a guest that rewrites this many pages.
fn memory_for(pages: u32) -> u64 {
    64.max(u64::from(pages) * 5 / 1024 + 64)
}

fn measure(
    bench: &Bench<'_>,
    system: &mut SystemUnderTest,
    pages: u32,
    written: Written,
) -> Result<Point> {
    let touch = |_| Op::Touch { pages, whole: written == Written::Whole };
    system.load.run(1, Length::Answers(WARM_UP), touch)?;
    system.reset_stats()?;
    let load = system.load.run(1, Length::Both(bench.stretch(), LEAST_ANSWERS), touch)?;
    let status = system.status()?;
    let pages_of = |percentile| {
        status["dirty_pages"][percentile]
            .as_u64()
            .context("expected dirty pages in the status, found none")
    };
    let uneven = pages_of("p90")? > 2 * pages_of("p50")?;
    let dirty = pages_of(if uneven { "p90" } else { "p50" })?;
    Ok(Point {
        asked: u64::from(pages),
        written,
        dirty,
        uneven,
        pause: spread(&status["pause_us"]),
        parts: PARTS.map(|part| (part, spread(&status["pause_parts_us"][part]))).to_vec(),
        commit_parts: COMMIT_PARTS
            .map(|part| (part, spread(&status["commit_parts_us"][part])))
            .to_vec(),
        commit: network_latency(&status),
        sealed_to_ack: spread(&status["commit_latency_us"]),
        bytes: spread(&status["epoch_bytes"]),
        request: load.spread(),
        rate: load.rate(),
    })
}

impl Point {
    /// The value to compare with the limit for `dirty` pages.
    fn typical(&self, spread: Spread) -> f64 {
        if self.uneven { spread.p90 } else { spread.p50 }
    }
}

/// How long the guest's frames waited from staging to release.
pub(super) fn network_latency(status: &Value) -> Spread {
    spread(&status["effect_latency_us"]["network"])
}

fn checkpoint_group(points: &[Point], limits: &Limits) -> Result<Group> {
    let mut group = Group {
        name: "checkpoint".to_owned(),
        title: "A checkpoint by its dirty pages".to_owned(),
        how: "One client; for each request the guest rewrites this number of pages, then answers. The pause is the \
              time that the guest's processor is stopped; the commit latency is the time that the answer waits at \
              the gate, from staging to release. Limits: the same \
              number of scattered pages found in KVM's log and copied (pause); that pause, and the pages' bytes over loopback with \
              an answer (commit). The bytes are those of whole pages, even if the guest has rewritten little of each \
              and fewer bytes are sent. Values are medians. If a request takes several checkpoints, some have few \
              pages: then the values are 90th percentiles."
            .to_owned(),
        ..Group::default()
    };
    // For pages that are rewritten in part, report only the commit: their pause is the same.
    let (whole, ends): (Vec<&Point>, Vec<&Point>) =
        points.iter().partition(|point| point.written == Written::Whole);
    for point in whole {
        group.rows.extend(pause_rows(point, limits)?);
        group.rows.extend(commit_rows(point, limits)?);
        group.rows.extend(part_rows(point));
    }
    for point in ends {
        group.rows.extend(commit_rows(point, limits)?);
    }
    group.curves.push(pages_curve(points, limits)?);
    Ok(group)
}

/// The name of a row of this point.
fn named(what: &str, point: &Point) -> String {
    format!("{what}, {}{}", counted(point.asked, "page"), point.written.suffix())
}

fn pause_rows(point: &Point, limits: &Limits) -> Result<[Row; 2]> {
    let of = limits.of(point.dirty)?;
    let floor = of.pause_us() + limits.stop_us + limits.state_us;
    let row = |what| Row::new(named(what, point), Unit::Microseconds, point.typical(point.pause));
    Ok([
        row("pause")
            .spread(point.pause)
            .limit(of.pause_us(), "dirty log + copies of these pages")
            .target(Target::AtMost(2.0)),
        row("pause, with KVM's own part")
            .limit(floor, "guest stopped + its state read (KVM) + dirty log + copies"),
    ])
}

fn commit_rows(point: &Point, limits: &Limits) -> Result<[Row; 6]> {
    let of = limits.of(point.dirty)?;
    let row = |what, unit, value| Row::new(named(what, point), unit, value);
    let us = Unit::Microseconds;
    Ok([
        row("commit latency", us, point.typical(point.commit))
            .spread(point.commit)
            .limit(
                point.typical(point.pause) + of.send_us,
                "pause + bytes over the link + round trip",
            )
            .target(Target::AtMost(2.0)),
        row("sealed to acknowledged", us, point.typical(point.sealed_to_ack))
            .spread(point.sealed_to_ack)
            .limit(of.send_us, "bytes over the link + round trip"),
        row("request", us, point.request.p50).spread(point.request),
        row("requests", Unit::PerSecond, point.rate),
        row("dirty", Unit::Pages, point.dirty as f64),
        row("sent for a checkpoint", Unit::Bytes, point.typical(point.bytes))
            .spread(point.bytes)
            .limit((point.dirty * 4096) as f64, "the dirty pages"),
    ])
}

fn part_rows(point: &Point) -> Vec<Row> {
    let parts = |of: &str, parts: &[(&str, Spread)]| -> Vec<Row> {
        let row = |(part, spread): &(&str, Spread)| {
            let name = named(&format!("{of}: {part}"), point);
            Row::new(name, Unit::Microseconds, spread.p50).spread(*spread)
        };
        parts.iter().map(row).collect()
    };
    [parts("pause", &point.parts), parts("commit", &point.commit_parts)].concat()
}

fn pages_curve(points: &[Point], limits: &Limits) -> Result<Curve> {
    let of = |written| points.iter().filter(move |point| point.written == written);
    let line = |name: &str, written, value: &dyn Fn(&Point) -> f64| Line {
        name: name.to_owned(),
        points: of(written).map(|point| (point.dirty as f64, value(point))).collect(),
    };
    let mut lines = vec![
        line("pause", Written::Whole, &|point| point.typical(point.pause)),
        line("pause, p99", Written::Whole, &|point| point.pause.p99),
        line("commit latency", Written::Whole, &|point| point.typical(point.commit)),
        line("commit latency, 128 bytes of each page", Written::Ends, &|point| {
            point.typical(point.commit)
        }),
    ];
    let mut floor = Vec::new();
    for point in of(Written::Whole) {
        floor.push((point.dirty as f64, limits.of(point.dirty)?.pause_us()));
    }
    lines.push(Line { name: "limit: dirty log + copies".to_owned(), points: floor });
    Ok(Curve {
        name: "checkpoint-by-pages".to_owned(),
        title: "Pause and commit latency by dirty pages".to_owned(),
        x: Axis { title: "dirty pages in a checkpoint".to_owned(), logarithmic: true },
        y: Axis { title: "microseconds".to_owned(), logarithmic: true },
        lines,
    })
}

fn limits_group(limits: &Limits) -> Group {
    let us = Unit::Microseconds;
    let mut rows = vec![
        Row::new("exit to user space and back", us, limits.exit_us),
        Row::new("a computing guest stopped, its thread parked", us, limits.stop_us),
        Row::new("KVM state read: one vCPU and the interrupt controllers", us, limits.state_us),
        Row::new("64 bytes there and back over loopback", us, limits.round_trip_us),
    ];
    let calls = limits.calls_us.iter();
    rows.extend(calls.map(|(name, time)| Row::new(name.as_str(), us, *time)));
    for pages in &limits.pages {
        let count = pages.count;
        rows.extend([
            Row::new(format!("dirty log read and cleared, {count} pages"), us, pages.log_us),
            Row::new(format!("scattered copies, {count} pages"), us, pages.copy_us),
            Row::new(format!("loopback with an answer, {count} pages"), us, pages.send_us),
        ]);
    }
    Group {
        name: "limits".to_owned(),
        title: "The limits of this machine".to_owned(),
        how: "`kemari probe --limits`: a tiny guest in a separate KVM machine writes to every second page; \
              medians.".to_owned(),
        rows,
        curves: Vec::new(),
    }
}

/// Measures the same checkpoint in guests of growing memory size.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn by_memory(bench: &Bench<'_>) -> Result<Group> {
    const PAGES: u32 = 128;
    let sizes: &[u64] = match bench.quick {
        true => &[64, 512, 2048],
        false => &[64, 256, 1024, 4096, 8192, 16384],
    };
    let mut group = Group {
        name: "memory".to_owned(),
        title: "A checkpoint by the size of guest memory".to_owned(),
        how: format!(
            "As above with {PAGES} pages; the rest of guest memory was never touched. Ratios: to the smallest guest."
        ),
        ..Group::default()
    };
    let mut lines = [("pause, p50", Vec::new()), ("dirty set collected, p50", Vec::new())];
    let mut first = None;
    for &size in sizes {
        bench.progress.step(&format!("{size} MiB of guest memory"));
        let mut system = SystemUnderTest::start(&bench.system(Mode::Protected, size, 1))?;
        let point = measure(bench, &mut system, PAGES, Written::Whole)?;
        let collect = point.parts.iter().find(|(part, _)| *part == "collect");
        let collect = collect.map_or(0.0, |(_, spread)| spread.p50);
        lines[0].1.push((size as f64, point.pause.p50));
        lines[1].1.push((size as f64, collect));
        let smallest = *first.get_or_insert(point.pause.p50);
        group.rows.extend([
            Row::new(format!("pause, {size} MiB"), Unit::Microseconds, point.pause.p50)
                .spread(point.pause)
                .limit(smallest, "the pause of the smallest guest"),
            Row::new(format!("dirty set collected, {size} MiB"), Unit::Microseconds, collect),
        ]);
    }
    group.curves.push(Curve {
        name: "checkpoint-by-memory".to_owned(),
        title: format!("A checkpoint of {PAGES} dirty pages by guest memory"),
        x: Axis { title: "guest memory in MiB".to_owned(), logarithmic: true },
        y: Axis { title: "microseconds".to_owned(), logarithmic: false },
        lines: lines.map(|(name, points)| Line { name: name.to_owned(), points }).to_vec(),
    });
    Ok(group)
}

/// Measures a guest with one vCPU and one with two.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn by_cpus(bench: &Bench<'_>) -> Result<Group> {
    let mut rows: Vec<Row> = Vec::new();
    let mut first = None;
    for cpus in [1, 2] {
        bench.progress.step(&counted(cpus, "vCPU"));
        let mut system = SystemUnderTest::start(&bench.system(Mode::Protected, 64, cpus))?;
        let point = measure(bench, &mut system, 16, Written::Whole)?;
        let one = *first.get_or_insert(point.pause.p50);
        rows.push(
            Row::new(
                format!("pause, {}", counted(cpus, "vCPU")),
                Unit::Microseconds,
                point.pause.p50,
            )
            .spread(point.pause)
            .limit(one, "one vCPU"),
        );
    }
    Ok(Group {
        name: "cpus".to_owned(),
        title: "A checkpoint by the number of vCPUs".to_owned(),
        how: "As above with 16 pages.".to_owned(),
        rows,
        curves: Vec::new(),
    })
}
