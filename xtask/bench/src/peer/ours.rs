//! Our checkpoints at COLO's pace: the same guest, dirty sets, interval and kind of link.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kemari_testbed::pair::status::Status;
use kemari_testbed::switch::Switch;
use serde_json::Value;
use xtask_common::stop;

use super::client::Client;
use super::colo::{DELAY, REWRITES_PER_SECOND};
use super::kemari::Kemari;
use super::migration::dirty;
use crate::data::{Group, Row, Spread, Unit};

/// The longest time until an interruption is noticed.
const TICK: Duration = Duration::from_millis(100);

/// Adds our pauses to those of COLO in `group`.
///
/// # Errors
/// A pair does not start, or does not stay protected.
pub(super) fn beside(
    group: &mut Group,
    kemari: Kemari<'_>,
    sets: &[u32],
    time: Duration,
) -> Result<()> {
    for (number, &pages) in sets.iter().enumerate() {
        let (pages, status) = visit(kemari, &format!("ours-{number}"), pages, time)
            .with_context(|| format!("kemari's own pair, {pages} pages"))?;
        let rows = rows(pages, &status, |name| value_of(group, name))?;
        group.rows.extend(rows);
    }
    group.how.push_str(
        " kemari's pair is on this machine as well, over a Unix socket, with an epoch interval as long as COLO's \
         delay; its figures are kemari's own measurements, and cover the whole pause and all checkpoints.",
    );
    Ok(())
}

/// Runs one pair for `time` with the dirty set. Returns the size of the set, and the primary's last
/// status.
fn visit(kemari: Kemari<'_>, name: &str, pages: u32, time: Duration) -> Result<(u64, Status)> {
    let ports = [format!("{name}-a"), format!("{name}-b")];
    let switch = Switch::new(kemari.model.dir, &[&ports[0], &ports[1]])
        .context("cannot start the switch")?;
    let mut client = Client::new(&switch, 1, kemari.model.stop.clone());
    let pair = kemari.pair(name, &switch, DELAY)?;
    client.find_guest()?;
    let pages = dirty(&mut client, pages, REWRITES_PER_SECOND)?;
    pass(time, &kemari.model.stop)?;
    Ok((pages, pair.status()?))
}

/// Lets the guest run for `time`.
fn pass(time: Duration, stop: &stop::Flag) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        ensure!(!stop.load(Ordering::SeqCst), "interrupted");
        std::thread::sleep(left.min(TICK));
    }
    Ok(())
}

fn value_of(group: &Group, name: &str) -> Option<f64> {
    group.rows.iter().find(|row| row.name == name).map(|row| row.value)
}

fn rows(pages: u64, status: &Status, colo: impl Fn(&str) -> Option<f64>) -> Result<Vec<Row>> {
    let measure = |name: &str| spread(&status.json()[name]).with_context(|| unknown(name, status));
    let (pause, dirty) = (measure("pause_us")?, measure("dirty_pages")?);
    let row = |what: &str, unit, spread: Spread| {
        Row::new(format!("{what}, {pages} pages: kemari"), unit, spread.p50).spread(spread)
    };
    let mut ours = row("pause", Unit::Microseconds, pause);
    if let Some(theirs) = colo(&format!("pause, {pages} pages")) {
        ours = ours.limit(theirs, "QEMU's COLO in the same run");
    }
    Ok(vec![ours, row("in a checkpoint", Unit::Pages, dirty)])
}

fn unknown(name: &str, status: &Status) -> String {
    format!("expected `{name}` in kemari's status, found {}", status.json())
}

/// A distribution in the status.
fn spread(value: &Value) -> Option<Spread> {
    let number = |name: &str| value[name].as_f64();
    Some(Spread {
        count: value["count"].as_u64()?,
        p50: number("p50")?,
        p90: number("p90")?,
        p99: number("p99")?,
        p999: number("p999")?,
        max: number("max")?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn distributions_are_read_and_what_is_missing_is_not_made_up() {
        let mut value = json!({ "count": 9, "p50": 5, "p90": 9, "p99": 10, "p999": 10, "max": 11 });
        let expected = Spread { count: 9, p50: 5.0, p90: 9.0, p99: 10.0, p999: 10.0, max: 11.0 };
        assert_eq!(spread(&value), Some(expected));
        value.as_object_mut().unwrap().remove("p99");
        assert_eq!(spread(&value), None);
        assert_eq!(spread(&Value::Null), None);
    }

    #[test]
    fn a_pause_that_ends_early_is_none() {
        let stop = stop::Flag::default();
        pass(Duration::from_millis(1), &stop).unwrap();
        stop.store(true, Ordering::SeqCst);
        assert!(pass(Duration::from_secs(3600), &stop).is_err());
    }
}
