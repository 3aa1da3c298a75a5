//! QEMU's live migration: a guest that keeps rewriting a set of pages moves from one QEMU to
//! another.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kemari_testbed::switch::Switch;
use kemari_workload::Op;
use serde_json::{Value, json};

use super::client::Client;
use super::figures::Samples;
use super::machine::{Machine, Model, Spec};
use super::qmp::Event;
use crate::data::{Axis, Curve, Group, Line, Row, Unit};

/// The longest duration of a migration.
const PATIENCE: Duration = Duration::from_secs(60);
/// The set is rewritten every millisecond.
const REWRITES_PER_SECOND: u32 = 1000;
/// The largest rate: more than a guest on one processor can do.
const MOST_PER_SECOND: u32 = 200_000;
/// Number of rewrites of the set before the measurement starts.
const WARM: u64 = 4;
/// Bytes of a page in the stream: the page, and the word that identifies it.
const PAGE_ON_WIRE: f64 = 4096.0 + 8.0;
/// Bytes per second: 10 GB/s, so that the link is not the limit.
const BANDWIDTH: u64 = 10_000_000_000;

/// The measurements of one migration.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Move {
    /// The time in which the guest ran on no side: from `STOP` at the source to `RESUME` at the
    /// destination.
    pause: Duration,
    /// The longest silence that the client saw.
    silence: Duration,
    /// QEMU's own figures.
    stats: MigrationStats,
}

/// The result of `query-migrate` after the end.
#[derive(Debug, Clone, Copy, PartialEq)]
struct MigrationStats {
    total: Duration,
    setup: Duration,
    downtime: Duration,
    bytes: f64,
    bytes_while_stopped: f64,
    syncs: f64,
}

impl MigrationStats {
    fn read(answer: &Value) -> Result<Self> {
        let number = |value: &Value, name: &str| {
            let number = value[name].as_u64();
            number.with_context(|| format!("query-migrate: expected `{name}`, found {answer}"))
        };
        let time = |name| number(answer, name).map(Duration::from_millis);
        let ram = &answer["ram"];
        Ok(Self {
            total: time("total-time")?,
            setup: time("setup-time")?,
            downtime: time("downtime")?,
            bytes: number(ram, "transferred")? as f64,
            bytes_while_stopped: number(ram, "downtime-bytes")? as f64,
            syncs: number(ram, "dirty-sync-count")? as f64,
        })
    }
}

/// Migrates a guest `times` times with each dirty set of `sets`, given in pages.
///
/// # Errors
/// A migration fails, or the guest is faulty after it.
pub(super) fn measure(model: &Model<'_>, sets: &[u32], times: u32) -> Result<Group> {
    let switch =
        Switch::new(model.dir, &["migrate-a", "migrate-b"]).context("cannot start the switch")?;
    let mut client = Client::new(&switch, 1, model.stop.clone());
    let mut journey = Journey::begin(model, &switch)?;
    client.find_guest()?;
    let mut found = Vec::new();
    for &pages in sets {
        let pages = dirty(&mut client, pages, REWRITES_PER_SECOND)?;
        let moves: Result<Vec<Move>> = (0..times).map(|_| journey.migrate(&mut client)).collect();
        found.push((pages, moves?));
    }
    Ok(group(model.version, &found))
}

/// Makes the guest rewrite `pages` pages `times` times per second, as far as the processor can, and
/// waits until it does. Returns the size of the set for which the guest has room.
///
/// # Errors
/// The guest does not answer.
pub(super) fn dirty(client: &mut Client<'_>, pages: u32, times: u32) -> Result<u64> {
    let rate = pages.saturating_mul(times).min(MOST_PER_SECOND);
    let order = Op::SetDirty { pages_per_second: rate, region_pages: pages };
    let begun = client.ask(order)?;
    let enough = begun.dirty_pages + WARM * begun.value;
    while client.ask(Op::Ping)?.dirty_pages < enough {}
    Ok(begun.value)
}

/// The QEMU in which the guest runs now.
struct Journey<'a> {
    model: &'a Model<'a>,
    switch: &'a Switch,
    here: Machine,
    legs: usize,
}

impl<'a> Journey<'a> {
    fn begin(model: &'a Model<'a>, switch: &'a Switch) -> Result<Self> {
        let here = start(model, switch, 0)?;
        Ok(Self { model, switch, here, legs: 0 })
    }

    /// Moves the guest to a new QEMU and ends the old one.
    fn migrate(&mut self, client: &mut Client<'_>) -> Result<Move> {
        self.legs += 1;
        let mut there = start(self.model, self.switch, self.legs)?;
        let socket = self.model.dir.join(format!("migrate-{}.sock", self.legs));
        let enough = AtomicBool::new(false);
        let (moved, silence) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| client.watch(&enough));
            let moved = self.transfer(&mut there, &socket);
            enough.store(true, Ordering::SeqCst);
            (moved, watching.join().expect("the client does not panic"))
        });
        let (pause, stats) = moved.map_err(|error| there.explain(self.here.explain(error)))?;
        self.here = there;
        // The guest is correct, and answers from the new QEMU.
        client.ask(Op::Ping)?;
        Ok(Move { pause, silence: silence?, stats })
    }

    fn transfer(
        &mut self,
        there: &mut Machine,
        socket: &Path,
    ) -> Result<(Duration, MigrationStats)> {
        let uri = json!({ "uri": format!("unix:{}", socket.display()) });
        there.qmp.execute("migrate-incoming", uri.clone())?;
        // This QEMU may have been the destination of the last migration: drop the events of that
        // one.
        self.here.qmp.forget()?;
        self.here.qmp.execute("migrate", uri)?;
        let stopped = self.completed()?;
        let resumed = there.qmp.wait(PATIENCE, |event| event.name == "RESUME")?;
        let resumed = resumed.context("the destination does not resume the guest")?;
        let stats = MigrationStats::read(&self.here.qmp.execute("query-migrate", json!({}))?)?;
        let pause = resumed.at.checked_sub(stopped.at).with_context(|| {
            format!("the guest resumed at {:?}, before it stopped at {:?}", resumed.at, stopped.at)
        })?;
        Ok((pause, stats))
    }

    /// Waits for the end of the migration; returns the event of the guest's stop.
    fn completed(&mut self) -> Result<Event> {
        let mut stopped = None;
        let end = self.here.qmp.wait(PATIENCE, |event| {
            if event.name == "STOP" {
                stopped = Some(event.clone());
            }
            event.is_migration("completed") || event.is_migration("failed")
        })?;
        let end = end.with_context(|| {
            format!("the migration did not end within {} s", PATIENCE.as_secs())
        })?;
        if !end.is_migration("completed") {
            let state = self.here.qmp.execute("query-migrate", json!({}))?;
            bail!("QEMU says: {}", state["error-desc"].as_str().unwrap_or("no reason"));
        }
        stopped.ok_or_else(|| {
            anyhow!("the migration completed, but QEMU did not report that the guest stopped")
        })
    }
}

fn start(model: &Model<'_>, switch: &Switch, leg: usize) -> Result<Machine> {
    let spec = Spec {
        name: format!("migrate-{leg}"),
        network: switch.socket(leg % 2),
        disk: None,
        incoming: leg > 0,
    };
    let mut machine = model.start(&spec)?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    machine.qmp.execute("migrate-set-capabilities", events)?;
    let link = json!({ "max-bandwidth": BANDWIDTH });
    machine.qmp.execute("migrate-set-parameters", link)?;
    Ok(machine)
}

fn group(version: &str, found: &[(u64, Vec<Move>)]) -> Group {
    let rows = found.iter().flat_map(|(pages, moves)| rows(*pages, moves)).collect();
    let line = |name: &str, value: fn(&Move) -> f64| Line {
        name: name.to_owned(),
        points: found
            .iter()
            .filter_map(|(pages, moves)| {
                let median = moves.iter().map(value).collect::<Samples>().spread()?.p50;
                Some((*pages as f64, median))
            })
            .collect(),
    };
    let axis = |title: &str| Axis { title: title.to_owned(), logarithmic: true };
    let pause = Curve {
        name: "peer-migration-pause".to_owned(),
        title: "Pause of QEMU's live migration".to_owned(),
        x: axis("pages that the guest keeps rewriting"),
        y: axis("microseconds"),
        lines: vec![
            line("guest stopped", |moved| micros(moved.pause)),
            line("silence for a client", |moved| micros(moved.silence)),
        ],
    };
    Group {
        name: "peer-migration".to_owned(),
        title: "Peer: QEMU's live migration".to_owned(),
        how: format!(
            "The same guest under {version} (microvm, /dev/kvm), which keeps rewriting a set of pages, migrates to \
             another QEMU on this machine over a Unix socket. A client sends it a request every millisecond. The \
             pause is from QEMU's event STOP at the source (the guest has stopped) to RESUME at the destination; the \
             silence is the client's longest time without an answer. The bandwidth has no limit; all else is QEMU's \
             default."
        ),
        rows,
        curves: vec![pause],
    }
}

fn rows(pages: u64, moves: &[Move]) -> Vec<Row> {
    let row = |name: &str, unit, value: fn(&Move) -> f64| {
        moves.iter().map(value).collect::<Samples>().row(format!("{name}, {pages} pages"), unit)
    };
    let rows = [
        row("pause", Unit::Microseconds, |moved| micros(moved.pause)),
        row("silence for a client", Unit::Microseconds, |moved| micros(moved.silence)),
        row("downtime as QEMU reports it", Unit::Microseconds, |moved| {
            micros(moved.stats.downtime)
        }),
        row("sent while stopped", Unit::Pages, |moved| {
            moved.stats.bytes_while_stopped / PAGE_ON_WIRE
        }),
        row("whole migration", Unit::Microseconds, |moved| micros(moved.stats.total)),
        row("set-up part of it", Unit::Microseconds, |moved| micros(moved.stats.setup)),
        row("sent in all", Unit::Bytes, |moved| moved.stats.bytes),
        row("rate of the whole", Unit::MegabytesPerSecond, |moved| {
            moved.stats.bytes / micros(moved.stats.total).max(1.0)
        }),
        row("passes over memory", Unit::Count, |moved| moved.stats.syncs),
    ];
    rows.into_iter().flatten().collect()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer() -> Value {
        json!({
            "status": "completed", "total-time": 73, "setup-time": 2, "downtime": 9,
            "ram": { "transferred": 1_234_567, "downtime-bytes": 65_664, "dirty-sync-count": 3, "remaining": 0 }
        })
    }

    #[test]
    fn what_qemu_tells_of_a_migration_is_read() {
        let stats = MigrationStats::read(&answer()).unwrap();
        assert_eq!(stats.downtime, Duration::from_millis(9));
        assert_eq!(stats.bytes_while_stopped / PAGE_ON_WIRE, 16.0);
        assert_eq!((stats.total, stats.syncs), (Duration::from_millis(73), 3.0));
    }

    #[test]
    fn a_figure_that_is_not_there_is_named() {
        let mut answer = answer();
        answer["ram"].as_object_mut().unwrap().remove("downtime-bytes");
        let error = MigrationStats::read(&answer).unwrap_err();
        assert!(error.to_string().contains("`downtime-bytes`"), "{error}");
    }

    #[test]
    fn each_row_is_named_by_its_set_and_curves_ascend() {
        let stats = MigrationStats::read(&answer()).unwrap();
        let moved = |pause| Move {
            pause: Duration::from_millis(pause),
            silence: Duration::from_millis(pause + 5),
            stats,
        };
        let group =
            group("QEMU", &[(16, vec![moved(4), moved(5), moved(9)]), (128, vec![moved(10)])]);
        let names: std::collections::BTreeSet<_> = group.rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), group.rows.len());
        let pause = group.rows.iter().find(|row| row.name == "pause, 16 pages").unwrap();
        assert_eq!((pause.value, pause.spread.unwrap().max), (5000.0, 9000.0));
        assert_eq!(group.curves[0].lines[0].points, [(16.0, 5000.0), (128.0, 10_000.0)]);
    }
}
