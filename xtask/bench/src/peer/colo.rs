//! The pause of the checkpoints of QEMU's own fault tolerance, COLO (`docs/COLO-FT.txt` of QEMU).
//!
//! COLO runs the guest on both sides. It makes a checkpoint when the packets of both sides differ,
//! or after some time. Here only the time triggers checkpoints, and no packet is compared or held:
//! this is the minimum cost of COLO's checkpoints.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kemari_testbed::switch::Switch;
use kemari_workload::Op;
use serde_json::{Value, json};

use super::client::Client;
use super::figures::Samples;
use super::machine::{Machine, Model, Spec};
use super::migration::dirty;
use crate::data::{Axis, Curve, Group, Line, Row, Unit};

/// The longest duration of the first transfer of the whole guest.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time from the end of one checkpoint to the next, in milliseconds.
pub(super) const DELAY: u32 = 10;
/// Two rewrites of the set within that time.
pub(super) const REWRITES_PER_SECOND: u32 = 2 * 1000 / DELAY;
/// The longest time without a checkpoint.
const STANDSTILL: Duration = Duration::from_secs(10);
/// The interval at which the loop checks the time.
const TICK: Duration = Duration::from_millis(20);
/// The smallest number of checkpoints from which figures are meaningful.
const FEWEST: usize = 3;
/// Number of first checkpoints that are not counted: they write all guest memory on the other side
/// and sometimes take a second.
const FIRST: u32 = 20;

/// Checkpoints of a guest that rewrites a set of pages.
#[derive(Debug, Default, PartialEq)]
struct Checkpoints {
    /// The duration of the observation.
    watched: Duration,
    /// The number of pages that the guest rewrote in that time.
    rewritten: u64,
    /// The times from each `STOP` to the following `RESUME`.
    pauses: Vec<Duration>,
    /// The times from each `STOP` to the next `STOP`.
    periods: Vec<Duration>,
}

impl Checkpoints {
    /// Computes the figures from the names and times of the primary's events.
    fn from_events<'e>(
        watched: Duration,
        events: impl Iterator<Item = (&'e str, Duration)>,
    ) -> Self {
        let mut found = Self { watched, ..Self::default() };
        let (mut stopped, mut previous): (Option<Duration>, Option<Duration>) = (None, None);
        for (name, at) in events {
            match name {
                "STOP" => {
                    found.periods.extend(previous.and_then(|previous| at.checked_sub(previous)));
                    (stopped, previous) = (Some(at), Some(at));
                }
                "RESUME" => {
                    found.pauses.extend(stopped.take().and_then(|stop| at.checked_sub(stop)));
                }
                _ => {}
            }
        }
        found
    }

    /// Whether there are too few checkpoints for figures.
    fn are_few(&self) -> bool {
        self.pauses.len() < FEWEST || self.periods.is_empty()
    }

    /// The share of time in which the guest was stopped, in per cent.
    fn stopped(&self) -> f64 {
        let mean = |times: &[Duration]| {
            times.iter().map(Duration::as_secs_f64).sum::<f64>() / times.len().max(1) as f64
        };
        100.0 * mean(&self.pauses) / mean(&self.periods)
    }
}

/// Observes the checkpoints of a guest for `time` with each dirty set of `sets`, given in pages.
///
/// # Errors
/// COLO does not start, or ends.
pub(super) fn measure(model: &Model<'_>, sets: &[u32], time: Duration) -> Result<Group> {
    let switch =
        Switch::new(model.dir, &["colo-a", "colo-b"]).context("cannot start the switch")?;
    // Packets of the secondary must not reach the network.
    switch.cut(1);
    let mut client = Client::new(&switch, 1, model.stop.clone());
    let mut primary = model.start(&spec(&switch, 0))?;
    let mut secondary = model.start(&spec(&switch, 1))?;
    client.find_guest()?;
    let begun = begin(model, &mut primary, &mut secondary);
    let begun = begun.and_then(|()| first_checkpoints(&mut primary));
    begun.map_err(|error| secondary.explain(primary.explain(error)))?;
    let mut found = Vec::new();
    for &pages in sets {
        let pages =
            dirty(&mut client, pages, REWRITES_PER_SECOND).context("the guest under COLO")?;
        let before = client.ask(Op::Ping)?.dirty_pages;
        let mut checkpoints = observe(&mut primary, time)
            .map_err(|error| secondary.explain(primary.explain(error)))?;
        checkpoints.rewritten = client.ask(Op::Ping)?.dirty_pages - before;
        found.push((pages, checkpoints));
    }
    Ok(group(model.version, &found))
}

fn spec<'s>(switch: &'s Switch, side: usize) -> Spec<'s> {
    Spec {
        name: format!("colo-{side}"),
        network: switch.socket(side),
        disk: None,
        incoming: side == 1,
    }
}

/// Transfers the guest to the secondary; both sides run afterwards.
fn begin(model: &Model<'_>, primary: &mut Machine, secondary: &mut Machine) -> Result<()> {
    let enable = |name: &str| json!({ "capability": name, "state": true });
    let both = json!({ "capabilities": [enable("events"), enable("x-colo")] });
    for machine in [&mut *secondary, &mut *primary] {
        let enabled = machine.qmp.execute("migrate-set-capabilities", both.clone());
        enabled.context("this QEMU was built without COLO")?;
    }
    let parameters = json!({ "x-checkpoint-delay": DELAY, "max-bandwidth": 10_000_000_000_u64 });
    primary.qmp.execute("migrate-set-parameters", parameters)?;
    let socket = model.dir.join("colo.sock");
    let uri = json!({ "uri": format!("unix:{}", socket.display()) });
    secondary.qmp.execute("migrate-incoming", uri.clone())?;
    primary.qmp.execute("migrate", uri)?;
    let reached = primary.qmp.wait(PATIENCE, |event| {
        ["colo", "failed", "completed"].iter().any(|status| event.is_migration(status))
    })?;
    match reached {
        Some(event) if event.is_migration("colo") => Ok(()),
        Some(event) => bail!("expected the state `colo`, found {}", event.data),
        None => {
            let state: Value = primary.qmp.execute("query-migrate", json!({}))?;
            bail!(
                "expected the state `colo` within {} s, found {}",
                PATIENCE.as_secs(),
                state["status"]
            )
        }
    }
}

fn first_checkpoints(primary: &mut Machine) -> Result<()> {
    for number in 1..=FIRST {
        let resumed = primary.qmp.wait(PATIENCE, |event| event.name == "RESUME")?;
        resumed.with_context(|| format!("COLO did not reach checkpoint {number} in time"))?;
    }
    Ok(())
}

fn observe(primary: &mut Machine, time: Duration) -> Result<Checkpoints> {
    // Earlier events belong to another set.
    primary.qmp.forget()?;
    let begun = Instant::now();
    let mut found = Checkpoints::default();
    let mut events = Vec::new();
    // COLO sometimes stops for some seconds; the observation then takes longer.
    while begun.elapsed() < time || found.are_few() && begun.elapsed() < time + STANDSTILL {
        let event = primary.qmp.wait(TICK, |_| true)?;
        if let Some(event) = event {
            ensure!(event.name != "COLO_EXIT", "COLO ended: {}", event.data);
            events.push(event);
        }
        let named = events.iter().map(|event| (event.name.as_str(), event.at));
        if begun.elapsed() >= time {
            found = Checkpoints::from_events(begun.elapsed(), named);
        }
    }
    let (count, seconds) = (found.pauses.len(), begun.elapsed().as_secs_f64());
    ensure!(!found.are_few(), "only {count} checkpoints within {seconds:.1} s");
    Ok(found)
}

fn group(version: &str, found: &[(u64, Checkpoints)]) -> Group {
    let points = found.iter().filter_map(|(pages, checkpoints)| {
        Some((*pages as f64, micros(&checkpoints.pauses).spread()?.p50))
    });
    let axis = |title: &str| Axis { title: title.to_owned(), logarithmic: true };
    let pause = Curve {
        name: "peer-colo-pause".to_owned(),
        title: "Pause of QEMU's COLO".to_owned(),
        x: axis("pages that the guest keeps rewriting"),
        y: axis("microseconds"),
        lines: vec![Line { name: "guest stopped".to_owned(), points: points.collect() }],
    };
    Group {
        name: "peer-colo".to_owned(),
        title: "Peer: QEMU's COLO, and kemari at its pace".to_owned(),
        how: format!(
            "The same guest under {version} (microvm, /dev/kvm) with the capability x-colo, both sides on this \
             machine, over a Unix socket; x-checkpoint-delay is {DELAY} ms. No packet is compared or held, so \
             checkpoints come only by time. The pause is from QEMU's event STOP to RESUME at the primary; both sides \
             run the guest \
             meanwhile, as COLO does. The first {FIRST} checkpoints are not counted."
        ),
        rows: found.iter().flat_map(|(pages, checkpoints)| rows(*pages, checkpoints)).collect(),
        curves: vec![pause],
    }
}

fn rows(pages: u64, checkpoints: &Checkpoints) -> Vec<Row> {
    let name = |what: &str| format!("{what}, {pages} pages");
    let periods = micros(&checkpoints.periods);
    let pause = micros(&checkpoints.pauses).row(name("pause"), Unit::Microseconds);
    let period = periods.row(name("from checkpoint to checkpoint"), Unit::Microseconds);
    let per_second = |count: f64| count / checkpoints.watched.as_secs_f64();
    let rate = per_second(checkpoints.pauses.len() as f64);
    let rate = Row::new(name("checkpoints"), Unit::PerSecond, rate);
    let pages = per_second(checkpoints.rewritten as f64);
    let pages = Row::new(name("pages rewritten"), Unit::PerSecond, pages);
    let stopped = Row::new(name("guest stopped"), Unit::Percent, checkpoints.stopped());
    [pause, period, Some(rate), Some(pages), Some(stopped)].into_iter().flatten().collect()
}

fn micros(times: &[Duration]) -> Samples {
    times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_pause_is_from_stop_to_resume_and_a_period_from_stop_to_stop() {
        // The observation begins within one checkpoint and ends within another.
        let events = [("RESUME", 1), ("STOP", 10), ("OTHER", 11), ("RESUME", 14), ("STOP", 30)];
        let found =
            Checkpoints::from_events(at(40), events.into_iter().map(|(name, ms)| (name, at(ms))));
        assert_eq!(
            found,
            Checkpoints {
                watched: at(40),
                rewritten: 0,
                pauses: vec![at(4)],
                periods: vec![at(20)]
            }
        );
        assert!((found.stopped() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn each_set_has_its_rows() {
        let checkpoints = || Checkpoints {
            watched: at(500),
            rewritten: 30,
            pauses: vec![at(4), at(6)],
            periods: vec![at(20)],
        };
        let group = group("QEMU", &[(16, checkpoints()), (128, checkpoints())]);
        let row = group.rows.iter().find(|row| row.name == "pause, 128 pages").unwrap();
        assert_eq!((row.value, row.spread.unwrap().max), (4000.0, 6000.0));
        let rate = group.rows.iter().find(|row| row.name == "checkpoints, 16 pages").unwrap();
        assert_eq!(rate.value, 4.0);
        let pages = group.rows.iter().find(|row| row.name == "pages rewritten, 16 pages").unwrap();
        assert_eq!(pages.value, 60.0);
        assert_eq!(group.rows.len(), 10);
        assert_eq!(group.curves[0].lines[0].points.len(), 2);
    }
}
