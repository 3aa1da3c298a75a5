//! The service as its clients see it: requests over the network, and operations that are written to
//! disk before their answer.

use std::collections::BTreeMap;

use anyhow::Result;
use kemari_workload::record::SECTOR_LEN;
use kemari_workload::{MAX_PAYLOAD, Op};

use super::load::{Length, Load};
use super::system::{Mode, SystemUnderTest, spread};
use super::{Bench, counted};
use crate::data::{Group, Row, Spread, Target, Unit};

const MODES: [Mode; 3] = [Mode::Off, Mode::Alone, Mode::Protected];
const WARM_UP: u64 = 50;

/// One kind of load.
struct Workload {
    name: &'static str,
    clients: u32,
    op: Op<'static>,
    /// Whether the row gets the target for work of this kind.
    judged: bool,
    /// Bytes that a request writes to the disk if the row reports the throughput, else 0.
    bytes: u64,
}

const PAYLOAD: [u8; 256] = [0x5a; 256];

/// A request that costs the guest some work, like a request to a web service or a database.
const WORK: Op<'_> = Op::Compute { kib: 40 };

const NETWORK: [Workload; 6] = [
    Workload { name: "ping", clients: 1, op: Op::Ping, judged: false, bytes: 0 },
    Workload { name: "ping", clients: 16, op: Op::Ping, judged: false, bytes: 0 },
    Workload { name: "ping", clients: 64, op: Op::Ping, judged: false, bytes: 0 },
    Workload { name: "work of 0.1 ms", clients: 8, op: WORK, judged: false, bytes: 0 },
    Workload { name: "work of 0.1 ms", clients: 32, op: WORK, judged: false, bytes: 0 },
    Workload { name: "work of 0.1 ms", clients: 64, op: WORK, judged: true, bytes: 0 },
];

/// The longest record of the guest's log, and the bytes of its sectors. The log is written from the
/// first sector to the last.
const LONG: [u8; MAX_PAYLOAD] = [0x5a; MAX_PAYLOAD];
const LONG_BYTES: u64 = 3 * SECTOR_LEN as u64;

const DISK: [Workload; 5] = [
    Workload {
        name: "write",
        clients: 1,
        op: Op::Append { payload: &PAYLOAD, flush: false },
        judged: false,
        bytes: 0,
    },
    Workload {
        name: "write",
        clients: 32,
        op: Op::Append { payload: &PAYLOAD, flush: false },
        judged: false,
        bytes: 0,
    },
    Workload {
        name: "write and flush",
        clients: 1,
        op: Op::Append { payload: &PAYLOAD, flush: true },
        judged: false,
        bytes: 0,
    },
    Workload {
        name: "write and flush",
        clients: 32,
        op: Op::Append { payload: &PAYLOAD, flush: true },
        judged: false,
        bytes: 0,
    },
    Workload {
        name: "sequential write",
        clients: 32,
        op: Op::Append { payload: &LONG, flush: false },
        judged: false,
        bytes: LONG_BYTES,
    },
];

/// Measures requests over the network.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn network(bench: &Bench<'_>) -> Result<Group> {
    let mut group = measure(bench, &NETWORK)?;
    group.name = "requests".to_owned();
    group.title = "Requests over the network".to_owned();
    group.how = "The number of clients is in the row; each has one request outstanding. The same guest runs in turn \
                 with fault tolerance off, with an arbiter and no standby, and protected. Ratios: to off."
        .to_owned();
    Ok(group)
}

/// Measures operations that are on disk before their answer.
///
/// # Errors
/// A guest cannot be run.
pub(super) fn disk(bench: &Bench<'_>) -> Result<Group> {
    let mut group = measure(bench, &DISK)?;
    group.name = "disk".to_owned();
    group.title = "Operations logged on disk".to_owned();
    group.how = "As above; for each request the guest writes a record of 512 bytes (and flushes the disk), then \
                 answers. The disk uses the host's page cache (cache=writeback). A sequential write is a record of \
                 three sectors directly after the previous one."
        .to_owned();
    Ok(group)
}

fn measure(bench: &Bench<'_>, workloads: &[Workload]) -> Result<Group> {
    let mut loads: BTreeMap<(usize, usize), Vec<Seen>> = BTreeMap::new();
    for turn in 1..=bench.turns() {
        for (place, mode) in MODES.into_iter().enumerate() {
            let mut system = SystemUnderTest::start(&bench.system(mode, 64, 1))?;
            for (number, workload) in workloads.iter().enumerate() {
                let Workload { name, clients, .. } = workload;
                let clients = counted(*clients, "client");
                bench.progress.step(&format!("{name}, {clients}, {}, {turn}", mode.name()));
                let seen = run(bench, &mut system, workload)?;
                loads.entry((number, place)).or_default().push(seen);
            }
        }
    }
    let mut group = Group::default();
    for (number, workload) in workloads.iter().enumerate() {
        let best = |place| median(&loads[&(number, place)]);
        let off = best(0);
        for (place, mode) in MODES.into_iter().enumerate() {
            group.rows.extend(rows(workload, mode, &best(place), &off));
        }
    }
    Ok(group)
}

#[derive(Debug, Clone)]
struct Seen {
    load: Load,
    checkpoints: f64,
    pause: Spread,
    /// Parts of the commit latency.
    wait: Spread,
    sealed_to_ack: Spread,
    dirty: Spread,
}

fn run(bench: &Bench<'_>, system: &mut SystemUnderTest, workload: &Workload) -> Result<Seen> {
    let op = |_| workload.op;
    system.load.run(workload.clients, Length::Answers(WARM_UP), op)?;
    system.reset_stats()?;
    let load = system.load.run(workload.clients, Length::Time(bench.stretch()), op)?;
    let status = system.status()?;
    let pause = spread(&status["pause_us"]);
    Ok(Seen {
        checkpoints: pause.count as f64 / load.time.as_secs_f64(),
        load,
        pause,
        wait: spread(&status["commit_parts_us"]["wait"]),
        sealed_to_ack: spread(&status["commit_latency_us"]),
        dirty: spread(&status["dirty_pages"]),
    })
}

/// The median turn, by its rate.
fn median(turns: &[Seen]) -> Seen {
    let mut turns: Vec<&Seen> = turns.iter().collect();
    turns.sort_by(|a, b| a.load.rate().total_cmp(&b.load.rate()));
    turns[turns.len() / 2].clone()
}

fn rows(workload: &Workload, mode: Mode, seen: &Seen, off: &Seen) -> Vec<Row> {
    let name =
        format!("{}, {}, {}", workload.name, counted(workload.clients, "client"), mode.name());
    let mut rate = Row::new(format!("{name}: rate"), Unit::PerSecond, seen.load.rate());
    let latency = seen.load.spread();
    let mut time =
        Row::new(format!("{name}: latency"), Unit::Microseconds, latency.p50).spread(latency);
    let throughput = |seen: &Seen| seen.load.rate() * workload.bytes as f64 / 1e6;
    let mut bytes = (workload.bytes > 0).then(|| {
        Row::new(format!("{name}: throughput"), Unit::MegabytesPerSecond, throughput(seen))
    });
    if mode == Mode::Off {
        return [rate, time].into_iter().chain(bytes).collect();
    }
    bytes = bytes.map(|row| row.limit(throughput(off), "off"));
    rate = rate.limit(off.load.rate(), "off");
    time = time.limit(off.load.spread().p50, "off");
    if workload.judged && mode == Mode::Protected {
        rate = rate.target(Target::AtLeast(0.8));
    }
    let mut rows: Vec<Row> = [rate, time].into_iter().chain(bytes).collect();
    if mode == Mode::Protected {
        rows.push(Row::new(format!("{name}: checkpoints"), Unit::PerSecond, seen.checkpoints));
        for (what, unit, spread) in [
            ("pause", Unit::Microseconds, seen.pause),
            ("output waits for its pause", Unit::Microseconds, seen.wait),
            ("sealed to acknowledged", Unit::Microseconds, seen.sealed_to_ack),
            ("dirty", Unit::Pages, seen.dirty),
        ] {
            rows.push(Row::new(format!("{name}: {what}"), unit, spread.p50).spread(spread));
        }
    }
    rows
}
