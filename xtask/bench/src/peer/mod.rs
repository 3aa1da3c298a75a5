//! The peer, measured in the same run: QEMU from Debian's packages, with the same guest and the
//! same dirty sets.
//!
//! There are three independent comparisons: the pause of QEMU's live migration, the pause of QEMU's
//! own fault tolerance (COLO), and requests to a guest without protection, under QEMU and under
//! `kemari run`. A comparison that cannot run on this machine is skipped, with the reason and the
//! remedy.

mod client;
mod colo;
mod figures;
mod kemari;
mod machine;
mod migration;
mod ours;
mod plain;
mod qmp;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_testbed::guest::{Preparation, output};
use kemari_testbed::lab;
use xtask_common::stop;

use crate::data::{Group, Skipped};
use kemari::Kemari;
use machine::Model;

/// What to measure, and with which files.
pub(super) struct Options<'a> {
    /// The `kemari` binary.
    pub(super) kemari: &'a Path,
    /// The micro-guest.
    pub(super) guest: &'a Path,
    /// The directory in which a directory for sockets and logs is created, which is removed at the
    /// end. The path must be short, because socket paths are limited.
    pub(super) scratch: &'a Path,
    /// The guest's memory in MiB.
    pub(super) memory: u64,
    /// The dirty sets, in pages.
    pub(super) sets: &'a [u32],
    /// Whether this is the short run.
    pub(super) quick: bool,
    /// Set when the run must end early.
    pub(super) stop: stop::Flag,
    /// Called with each step.
    pub(super) say: &'a dyn Fn(&str),
}

/// The results of the comparisons.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The measured figures.
    pub(super) groups: Vec<Group>,
    /// The measurements that could not be made, and why.
    pub(super) skipped: Vec<Skipped>,
}

impl Measured {
    fn take(&mut self, what: &str, say: &dyn Fn(&str), found: Result<Group>) {
        match found {
            Ok(group) => self.groups.push(group),
            Err(error) => {
                let skipped = Skipped { what: what.to_owned(), why: format!("{error:#}") };
                say(&format!("SKIPPED {}: {}", skipped.what, skipped.why));
                self.skipped.push(skipped);
            }
        }
    }
}

/// How much to measure.
struct Amount {
    /// Number of migrations with each dirty set.
    migrations: u32,
    /// Duration of the observation of COLO with each dirty set.
    checkpoints: Duration,
    /// Number of starts of each monitor for requests.
    rounds: u32,
    /// Duration of each kind of request in a round.
    requests: Duration,
}

impl Amount {
    const fn of(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        match quick {
            true => Self {
                migrations: 3,
                checkpoints: seconds(2),
                rounds: 3,
                requests: Duration::from_millis(200),
            },
            false => {
                Self { migrations: 15, checkpoints: seconds(10), rounds: 3, requests: seconds(3) }
            }
        }
    }
}

/// Measures the peers. A measurement that fails is listed as skipped.
///
/// # Errors
/// The run must end early, or cannot create its directory.
pub(super) fn measure(options: &Options<'_>) -> Result<Measured> {
    let dir = tempfile::Builder::new().prefix("peer-").tempdir_in(options.scratch);
    let dir = dir.with_context(|| format!("no directory in {}", options.scratch.display()))?;
    let mut measured = Measured::default();
    let qemu = match Qemu::find(options.say) {
        Ok(qemu) => qemu,
        Err(error) => {
            measured.take("the comparison with QEMU", options.say, Err(error));
            return Ok(measured);
        }
    };
    let model = Model {
        qemu: &qemu.command,
        version: &qemu.version,
        guest: options.guest,
        memory: options.memory,
        dir: dir.path(),
        stop: options.stop.clone(),
    };
    let kemari = Kemari { program: options.kemari, model: &model };
    let amount = Amount::of(options.quick);
    let mut comparison = |what: &str, found: &mut dyn FnMut() -> Result<Group>| -> Result<()> {
        (options.say)(&format!("peer: {what}"));
        measured.take(what, options.say, found());
        ensure!(!options.stop.load(Ordering::SeqCst), "interrupted");
        Ok(())
    };
    comparison("QEMU and kemari without protection", &mut || {
        plain::measure(kemari, amount.rounds, amount.requests)
    })?;
    comparison("QEMU's live migration", &mut || {
        migration::measure(&model, options.sets, amount.migrations)
    })?;
    comparison("QEMU's COLO, and kemari at its pace", &mut || {
        let mut group = colo(options, &model, amount.checkpoints)?;
        ours::beside(&mut group, kemari, options.sets, amount.checkpoints)?;
        Ok(group)
    })?;
    Ok(measured)
}

/// Measures COLO in the first QEMU in which it works.
fn colo(options: &Options<'_>, model: &Model<'_>, time: Duration) -> Result<Group> {
    let first = match colo::measure(model, options.sets, time) {
        Err(first) if !options.stop.load(Ordering::SeqCst) => first,
        found => return found,
    };
    // COLO does not work in some versions: the distribution's QEMU may be a different version.
    let tried = model.version;
    let installed = Qemu::installed().ok().filter(|installed| installed.version != tried);
    let Some(installed) = installed else { return Err(first.context(tried.to_owned())) };
    (options.say)(&format!("peer: {tried}: {first:#}; trying {}", installed.version));
    let model = Model { qemu: &installed.command, version: &installed.version, ..model.clone() };
    colo::measure(&model, options.sets, time)
        .with_context(|| format!("{tried}: {first:#}; {}", installed.version))
}

/// A QEMU program.
struct Qemu {
    /// The program and its first options.
    command: Vec<String>,
    /// The name and version that the program reports.
    version: String,
}

impl Qemu {
    /// The lab's QEMU, or else the installed one of any version.
    fn find(say: &dyn Fn(&str)) -> Result<Self> {
        Self::of_lab(say).or_else(|error| {
            let installed = Self::installed().map_err(|_| error)?;
            say(&format!("peer: QEMU 10 or newer is not available, using {}", installed.version));
            Ok(installed)
        })
    }

    /// The QEMU of the nested lab.
    fn of_lab(say: &dyn Fn(&str)) -> Result<Self> {
        let preparation = Preparation::begin(say)?;
        let command = lab::qemu(&preparation).context(
            "it requires QEMU 10 or newer from Debian's package qemu-system-x86 \
             (apt-get install qemu-system-x86)",
        )?;
        Self::ask(command)
    }

    /// The installed QEMU.
    fn installed() -> Result<Self> {
        Self::ask(vec!["qemu-system-x86_64".to_owned()])
    }

    fn ask(command: Vec<String>) -> Result<Self> {
        let text = output(Command::new(&command[0]).arg("--version"))?;
        let version =
            name(&text).with_context(|| format!("{} --version said {text:?}", command[0]))?;
        Ok(Self { command, version })
    }
}

/// QEMU's name and version, from its `--version` output.
fn name(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("version ")?;
    let number = rest.split_ascii_whitespace().next()?;
    Some(format!("QEMU {number}"))
}
