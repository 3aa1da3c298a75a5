//! How long a service is silent after the death of its primary.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use kemari_testbed::micro::{self, Load, MicroObserver};
use kemari_testbed::pair::config::{ArbiterKind, Kill, NetModel, PairConfig};
use kemari_testbed::pair::{self, RunContext};
use kemari_testbed::switch::Switch;

use super::{Bench, Progress};
use crate::data::{Group, Row, Spread, Unit};

/// Kills the primary repeatedly.
///
/// # Errors
/// A pair gets stuck, or breaks a promise.
pub(super) fn takeover(bench: &Bench<'_>) -> Result<Group> {
    bench.progress.step("takeovers");
    let dir = tempfile::Builder::new().prefix("kemari-bench-").tempdir()?;
    let image = dir.path().join("disk.img");
    File::create(&image)?.set_len(micro::DISK_BYTES)?;
    let load = Load { writers: 4, seed: 1, dirty: 2000, resend: Duration::from_millis(50) };
    let switch = Switch::new(dir.path(), &["a", "b"])?;
    let mut observer = MicroObserver::start(switch.plug_in(), load, &image)?;
    let config = config(bench.kemari.to_owned(), bench.kernel.to_owned(), load, bench.quick);
    let context = RunContext {
        config: &config,
        dir: dir.path(),
        switch: &switch,
        small_disk: None,
        progress: &Quiet,
        stop: bench.stop.clone(),
    };
    let report = pair::run(&context, &mut observer)?;
    anyhow::ensure!(report.held(), "a promise was broken:\n{report}");
    let takeovers = report.rounds.iter().filter_map(|round| round.takeover_us);
    let gaps = report.rounds.iter().map(|round| (round.longest_gap_ms * 1e3) as u64);
    let us = Unit::Microseconds;
    let (restore, gap) = (spread(takeovers.collect()), spread(gaps.collect()));
    Ok(Group {
        name: "takeover".to_owned(),
        title: "The primary dies".to_owned(),
        how: "Repeated SIGKILL to the primary under load. The standby sees the link end, asks the arbiter (a \
              directory) and continues the guest. The client repeats a request after 50 ms. A silent host is \
              suspected only after the heartbeat timeout (500 ms)."
            .to_owned(),
        rows: vec![
            Row::new("from the right to run to the running guest", us, restore.p50).spread(restore),
            Row::new("the client's longest wait for any answer", us, gap.p50).spread(gap),
        ],
        curves: Vec::new(),
    })
}

fn config(kemari: PathBuf, kernel: PathBuf, load: Load, quick: bool) -> PairConfig {
    PairConfig {
        kemari,
        guest: micro::guest(kernel, 64, 1, load),
        kills: vec![Kill::Primary],
        rounds: if quick { 5 } else { 25 },
        seed: 1,
        operations_after: 100,
        load: Duration::ZERO,
        verify: false,
        slow: 1,
        tls: false,
        audit: false,
        device: None,
        loopback: true,
        net_model: NetModel::Virtio,
        arbiter: ArbiterKind::File,
        flags: Vec::new(),
    }
}

fn spread(mut values: Vec<u64>) -> Spread {
    values.sort_unstable();
    let at = |quantile: f64| {
        let place = (values.len() as f64 * quantile).ceil() as usize;
        values.get(place.saturating_sub(1)).copied().unwrap_or_default() as f64
    };
    Spread {
        count: values.len() as u64,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
    }
}

struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str) {}
    fn line(&self, _: &str) {}
}
