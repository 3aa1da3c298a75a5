//! The system under test: a guest under one monitor, alone or protected by a second one, with a
//! [`LoadGenerator`] on the guest's network.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kemari_testbed::micro;
use kemari_testbed::pair::status::control;
use kemari_testbed::ports::free_address;
use kemari_testbed::process::{Process, tied_to_us};
use serde_json::Value;

use super::load::LoadGenerator;
use super::wire::Socket;
use crate::data::Spread;

/// How the guest is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Fault tolerance is off: no arbiter, no standby.
    Off,
    /// The gate is on, and there is no standby: the arbiter is asked before every effect.
    Alone,
    /// A standby protects the guest.
    Protected,
}

impl Mode {
    /// The name for people.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Alone => "no standby",
            Self::Protected => "protected",
        }
    }
}

/// The configuration of a system under test.
#[derive(Debug, Clone)]
pub(crate) struct SystemConfig {
    /// The `kemari` binary.
    pub(crate) kemari: PathBuf,
    /// The micro-guest.
    pub(crate) kernel: PathBuf,
    /// How the guest is protected.
    pub(crate) mode: Mode,
    /// Guest memory in MiB.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// Additional words for the guest's command line.
    pub(crate) guest: &'static str,
    /// Further flags of `kemari run` and `kemari standby`.
    pub(crate) flags: Vec<String>,
}

/// A running guest.
pub(crate) struct SystemUnderTest {
    primary: Process,
    standby: Option<Process>,
    /// Sends the requests.
    pub(crate) load: LoadGenerator,
    kemari: PathBuf,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

/// The limit of every wait: copying the largest guest takes longest.
const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "bench";

impl SystemUnderTest {
    /// Starts the guest, and waits until it answers and is protected if `mode` requires that.
    ///
    /// # Errors
    /// The guest does not come up.
    pub(crate) fn start(config: &SystemConfig) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kemari-bench-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        std::fs::File::create(at("disk.img"))?.set_len(micro::DISK_BYTES)?;
        // TCP over loopback, as for the limits.
        let link = free_address()?.to_string();
        let mut standby = None;
        if config.mode == Mode::Protected {
            let role = ["standby".to_owned(), format!("--listen={link}")];
            let process = start(config, dir.path(), "standby", &role, &at("standby.net"))?;
            process
                .wait_line("listening", PATIENCE)
                .context("the standby did not start listening in time")?;
            standby = Some(process);
        }
        let mut role = vec![
            "run".to_owned(),
            format!("--memory={}", config.memory),
            format!("--cpus={}", config.cpus),
        ];
        role.extend((config.mode == Mode::Protected).then(|| format!("--standby={link}")));
        let socket = Socket::listen(&at("primary.net"))?;
        let mut primary = start(config, dir.path(), "primary", &role, &at("primary.net"))?;
        let wire = socket.accept(PATIENCE, || still_runs(&mut primary))?;
        let load = LoadGenerator::find(wire, micro::CLIENT, micro::GUEST)?;
        let mut system = Self {
            primary,
            standby,
            load,
            kemari: config.kemari.clone(),
            socket: at("primary.ctl"),
            _dir: dir,
        };
        if config.mode == Mode::Protected {
            system.wait_protected()?;
        }
        Ok(system)
    }

    fn wait_protected(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.status()?;
            if status["state"] == "protected" {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "the guest is not protected: {status}");
            still_runs(&mut self.primary)?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The primary's status.
    ///
    /// # Errors
    /// The primary does not answer.
    pub(crate) fn status(&self) -> Result<Value> {
        control(&self.kemari, &self.socket, &["status"])
    }

    /// Resets the statistics: the measurement starts now.
    ///
    /// # Errors
    /// The primary does not answer.
    pub(crate) fn reset_stats(&self) -> Result<()> {
        control(&self.kemari, &self.socket, &["reset-stats"]).map(drop)
    }

    /// The processor time that both monitors have used so far.
    ///
    /// # Errors
    /// The system does not report it.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let standby = self.standby.as_ref().map_or(Ok(Duration::ZERO), processor_time);
        Ok(processor_time(&self.primary)? + standby?)
    }
}

fn start(
    config: &SystemConfig,
    dir: &Path,
    name: &str,
    role: &[String],
    net: &Path,
) -> Result<Process> {
    let at = |file: &str| dir.join(file).display().to_string();
    let mut command = tied_to_us(&config.kemari);
    command.args(role).args([
        format!("--name={NAME}"),
        format!("--kernel={}", config.kernel.display()),
        format!("--cmdline={} {}", micro::command_line(config.cpus), config.guest),
        // Both hosts share one kernel: its page cache survives the death of either process.
        format!("--disk=path={},cache=writeback", at("disk.img")),
        format!("--net=stream={},mac=52:54:00:4b:45:4d", net.display()),
        "--rng".to_owned(),
        "--insecure-plain-tcp".to_owned(),
        format!("--serial=file={}", at(&format!("{name}.serial"))),
        format!("--control={}", at(&format!("{name}.ctl"))),
    ]);
    if config.mode != Mode::Off {
        std::fs::create_dir_all(dir.join("arbiter"))?;
        command.arg(format!("--arbiter=file:{}", at("arbiter")));
    }
    command.args(&config.flags);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    Process::start(name, command, &dir.join(format!("{name}.log")))
}

fn still_runs(process: &mut Process) -> Result<()> {
    if let Some(exit) = process.exited() {
        let last = process.lines().pop().unwrap_or_default();
        bail!("{} has ended ({exit}); it last said: {last}", process.name());
    }
    Ok(())
}

/// The run time of a process's threads by the scheduler's own account, in nanoseconds. The times in
/// `/proc/PID/stat` (fields 14 and 15, proc(5)) count clock ticks, and threads that a timer wakes
/// are running at many of the ticks.
fn processor_time(process: &Process) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", process.pid()))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let run = text
            .split_whitespace()
            .next()
            .context("/proc/PID/task/TID/schedstat: expected a run time, found an empty file")?;
        nanoseconds += run.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// A distribution from `kemari ctl status`.
#[must_use]
pub(crate) fn spread(status: &Value) -> Spread {
    let number = |name: &str| status[name].as_f64().unwrap_or_default();
    Spread {
        count: status["count"].as_u64().unwrap_or_default(),
        p50: number("p50"),
        p90: number("p90"),
        p99: number("p99"),
        p999: number("p999"),
        max: number("max"),
    }
}
