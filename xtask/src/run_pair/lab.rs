//! A run with the stock Debian guest in the nested lab: this program runs there as well, with its
//! files beside it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kemari_testbed::guest::LinuxGuest;
use kemari_testbed::lab::{self, LabImages, LabSpec};
use kemari_testbed::pair::{Progress, config};
use kemari_testbed::run_pair::{ROOT, Run};
use kemari_testbed::terminal::STEP;

use super::Arguments;
use super::arguments::ArbiterChoice;
use crate::build;

const REPORT: &str = "report.json";
/// The factor of all waits, because the lab is an emulator.
const SLOW: u32 = 10;
const TIMEOUT: Duration = Duration::from_secs(1800);
/// The longest step without output is the boot of the guest.
const STALL: Duration = Duration::from_secs(300);

/// Runs the pair in the lab; `true` if every promise held.
pub(super) fn run(
    arguments: &Arguments,
    images: &LabImages,
    guest: &LinuxGuest,
    of: &Run<'_>,
) -> Result<bool> {
    let ignored = [
        (arguments.tls, "--tls"),
        (arguments.arbiter == ArbiterChoice::Etcd, "--arbiter etcd"),
        (arguments.keep, "--keep"),
    ];
    if let Some((_, flag)) = ignored.iter().find(|(given, _)| *given) {
        bail!(
            "{flag}: expected a /dev/kvm that runs stock kernels: the nested lab has none. Leave the flag out"
        );
    }
    let terminal = of.terminal;
    let what = "building static programs for the lab";
    let kemari = terminal.aside(what, build::static_kemari)?;
    let xtask = terminal.aside(what, build::static_xtask)?;
    let mut spec = LabSpec::new("pair", &command(arguments))
        .linux_guest(guest, &[ROOT])
        .file(kemari, "kemari")
        .file(xtask, "xtask");
    spec.timeout = TIMEOUT;
    spec.stall = STALL;
    spec.interrupted = Arc::clone(&of.stop);
    terminal.step("the lab boots");
    let mut started = false;
    let mut show = |line: &str| {
        started |= line.starts_with("LAB up");
        match line.strip_prefix(STEP) {
            Some(step) => terminal.step(&format!("lab: {step}")),
            None if started => terminal.line(&format!("  {line}")),
            None => {}
        }
    };
    let (status, mut lab) = lab::run(images, &spec, &mut show)?;
    terminal.finish();
    if let Some(path) = &arguments.json {
        let report = lab.fetch(REPORT).context("the run in the lab wrote no report")?;
        crate::report_file::write(path, report).context("--json")?;
    }
    Ok(status == 0)
}

/// The command that runs in the lab.
fn command(arguments: &Arguments) -> String {
    let Arguments { rounds, seed, cpus, writers, load, .. } = arguments;
    let mut words = vec![
        "TMPDIR=/scratch ./xtask run-pair --guest linux --prebuilt /scratch".to_owned(),
        format!(
            "--json {REPORT} --kill {} --rounds {rounds} --seed {seed}",
            arguments.kill.join(",")
        ),
        format!("--cpus {cpus} --writers {writers} --load {load} --slow {}", arguments.slow * SLOW),
    ];
    words.push(format!("--net-model {}", config::NetModel::from(arguments.net_model).name()));
    words.extend(arguments.memory.map(|memory| format!("--memory {memory}")));
    words.extend(arguments.verify.then(|| "--verify".to_owned()));
    words.extend(arguments.audit.then(|| "--audit".to_owned()));
    words.extend(arguments.loopback.then(|| "--loopback".to_owned()));
    if !arguments.flags.is_empty() {
        words.push(format!("-- {}", arguments.flags.join(" ")));
    }
    words.join(" ")
}
