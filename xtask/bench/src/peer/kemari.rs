//! `kemari` with the micro-guest of the comparison: alone, or as a pair on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use kemari_testbed::micro::{self, Load};
use kemari_testbed::pair::status::Status;
use kemari_testbed::process::{Process, tied_to_us};
use kemari_testbed::switch::Switch;

use super::machine::{MAC, Model, said};

/// The longest duration of a pair's start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program, and the machine that it runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kemari<'a> {
    /// The binary.
    pub(super) program: &'a Path,
    /// The machine.
    pub(super) model: &'a Model<'a>,
}

/// A protected guest; both processes end when this value is dropped.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    kemari: Kemari<'a>,
    primary: Process,
    _standby: Process,
    control: PathBuf,
}

impl<'a> Kemari<'a> {
    /// Starts a guest without protection.
    ///
    /// # Errors
    /// The guest cannot be started.
    pub(super) fn run(&self, name: &str, network: &Path, disk: &Path) -> Result<Process> {
        let mut command = self.command("run", name, network);
        command.args(self.size());
        command.arg(format!("--disk=path={},cache=writeback", disk.display()));
        self.start(name, command)
    }

    /// Starts a pair with its sides at ports 0 and 1 of `switch`, and with a checkpoint at least
    /// every `interval` milliseconds. Waits until the guest is protected.
    ///
    /// # Errors
    /// The pair does not start; the error contains the output of both sides.
    pub(super) fn pair(&self, name: &str, switch: &Switch, interval: u32) -> Result<Pair<'a>> {
        let path = |what: &str| self.model.dir.join(format!("{name}.{what}"));
        let (link, control, arbiter) = (path("link"), path("ctl"), path("terms"));
        std::fs::create_dir(&arbiter)
            .with_context(|| format!("cannot make {}", arbiter.display()))?;
        let arbiter = format!("--arbiter=file:{}", arbiter.display());
        let link = format!("unix:{}", link.display());

        let side = format!("{name}-standby");
        let mut command = self.command("standby", &side, switch.socket(1));
        command.args(["--listen", &link, &arbiter]);
        let standby = self.start(&side, command)?;
        heard(&standby, "listening on")?;

        let side = format!("{name}-primary");
        let mut command = self.command("run", &side, switch.socket(0));
        command.args(self.size()).args(["--standby", &link, &arbiter]);
        command.arg(format!("--epoch-interval={interval}")).arg("--control").arg(&control);
        let primary = self.start(&side, command)?;
        heard(&primary, "protected:").map_err(|error| error.context(said(&standby)))?;
        Ok(Pair { kemari: *self, primary, _standby: standby, control })
    }

    fn command(&self, verb: &str, name: &str, network: &Path) -> Command {
        let load = Load { writers: 0, seed: 0, dirty: 0, resend: Duration::ZERO };
        let guest = micro::guest(self.model.guest.to_owned(), self.model.memory, 1, load);
        let serial = self.model.dir.join(format!("{name}.serial"));
        let mut command = tied_to_us(self.program);
        command.args([verb, "--name=peer"]);
        command.arg(format!("--kernel={}", guest.kernel.display()));
        command.arg(format!("--cmdline={}", guest.command_line));
        command.arg(format!("--net=stream={},mac={MAC}", network.display())).arg("--rng");
        command.arg(format!("--serial=file={}", serial.display()));
        command
    }

    fn size(&self) -> [String; 2] {
        [format!("--memory={}", self.model.memory), "--cpus=1".to_owned()]
    }

    fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Process::start(name, command, &self.model.dir.join(format!("{name}.log")))
    }
}

impl Pair<'_> {
    /// The primary's status.
    ///
    /// # Errors
    /// The primary does not answer, or is no longer protected.
    pub(super) fn status(&self) -> Result<Status> {
        let status = Status::ask(self.kemari.program, &self.control)?;
        if status.is_protected() {
            return Ok(status);
        }
        let error = anyhow::anyhow!("expected a protected guest, found it {}", status.state());
        Err(error.context(said(&self.primary)))
    }
}

fn heard(process: &Process, text: &str) -> Result<()> {
    let line = process.wait_line(text, PATIENCE).map(drop);
    line.with_context(|| format!("{} does not say `{text}`; {}", process.name(), said(process)))
}
