//! The processes of a pair: their command lines, their status and their end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use kemari_inject::Injector;

use super::arbiter::{Arbiter, Outage};
use super::config::{Kill, PairConfig};
use super::slow::Slowness;
use super::status::{Status, control};
use crate::certs::Authority;
use crate::network::{GUEST_TAP, Host, TestNetwork};
use crate::process::{PeakMemory, Process};
use crate::switch::Switch;

const NAME: &str = "pair";
/// The guest's Ethernet address, the same on both hosts.
const MAC: &str = "52:54:00:4b:45:4d";

/// A `kemari` process on a host.
#[derive(Debug)]
pub(super) struct Member {
    /// The process's host.
    pub(super) host: Host,
    /// The process.
    pub(super) process: Process,
    socket: PathBuf,
    kemari: PathBuf,
    /// Answers the process's intercepted calls until dropped.
    _injector: Option<Injector>,
}

impl Member {
    /// The process's status.
    ///
    /// # Errors
    /// The process does not answer.
    pub(super) fn status(&self) -> Result<Status> {
        Status::ask(&self.kemari, &self.socket)
    }

    /// A closure that requests the status, for a thread that may block. The closure works even if
    /// this value is replaced in the meantime.
    pub(super) fn asker(&self) -> impl FnOnce() -> Result<Status> + Send + use<> {
        let (kemari, socket) = (self.kemari.clone(), self.socket.clone());
        move || Status::ask(&kemari, &socket)
    }

    /// Sends a command of `kemari ctl` to the process.
    ///
    /// # Errors
    /// The process does not answer, or refuses.
    pub(super) fn control(&self, arguments: &[&str]) -> Result<()> {
        control(&self.kemari, &self.socket, arguments).map(drop)
    }
}

/// Starts the processes of a pair.
#[derive(Debug)]
pub(super) struct Launcher<'a> {
    config: &'a PairConfig,
    network: &'a TestNetwork,
    switch: &'a Switch,
    dir: &'a Path,
    arbiter: Arbiter,
    started: u32,
    /// The audit logs of all processes so far.
    audits: Vec<PathBuf>,
    /// The peak memory of all processes so far.
    peak: PeakMemory,
    /// Whether the guest's serial line is on pipes instead of in a file.
    console: bool,
    /// Whether the guest's network is a tap on each host.
    taps: bool,
    /// Intercepts system calls to slow them, if a fault of the run needs it.
    slowness: Option<Slowness>,
}

impl<'a> Launcher<'a> {
    /// Prepares a run with all its files in `dir`, and starts the arbiter.
    ///
    /// # Errors
    /// A network or the hosts' credentials cannot be created, or the arbiter does not start.
    pub(super) fn new(
        config: &'a PairConfig,
        network: &'a TestNetwork,
        switch: &'a Switch,
        dir: &'a Path,
    ) -> Result<Self> {
        let arbiter = Arbiter::start(config, network, dir)?;
        let taps = config.has_taps() && network.is_of_namespaces();
        if taps {
            for (port, tap) in network.make_networks()?.into_iter().enumerate() {
                switch.plug_in_tap(port, tap).context("cannot make a tap a port of the switch")?;
            }
        }
        let slowness = config.is_slow().then(|| Slowness::new(dir)).transpose()?;
        let launcher = Self {
            config,
            network,
            switch,
            dir,
            arbiter,
            started: 0,
            audits: Vec::new(),
            peak: PeakMemory::default(),
            console: false,
            taps,
            slowness,
        };
        if config.tls {
            let authority = Authority::new("run-pair")?;
            for host in [Host::A, Host::B] {
                let called = network.dial_address(host);
                let name = called.rsplit_once(':').map_or(called.as_str(), |(name, _)| name);
                authority.issue(&launcher.credentials(host), &[name.to_owned()])?;
            }
        }
        Ok(launcher)
    }

    fn credentials(&self, host: Host) -> PathBuf {
        self.dir.join(format!("tls-{}", host.name()))
    }

    /// Begins an outage of the arbiter.
    pub(super) fn fail_arbiter(&mut self, outage: Outage) -> Result<()> {
        self.arbiter.fail(self.network, outage)
    }

    /// Ends the outage.
    pub(super) fn recover_arbiter(&mut self, outage: Outage) -> Result<()> {
        self.arbiter.recover(self.network, outage)
    }

    /// Connects the serial line of later guests to the standard input and output of the process
    /// that runs the guest.
    pub(super) fn with_console(mut self) -> Self {
        self.console = true;
        self
    }

    /// The file with the output of the device under test, on both hosts.
    pub(super) fn device_output(&self) -> PathBuf {
        self.dir.join("device.out")
    }

    /// Removes the audit log of the last process: the process was refused at its start and may have
    /// none.
    pub(super) fn forget_last(&mut self) {
        self.audits.pop();
    }

    /// The audit logs of all processes so far, running or not.
    pub(super) fn audits(&self) -> &[PathBuf] {
        &self.audits
    }

    /// The peak memory of all processes.
    pub(super) fn peak(&self) -> &PeakMemory {
        &self.peak
    }

    /// The image of the guest's disk, which both hosts share.
    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Starts the guest on `host`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(super) fn start_primary(&mut self, host: Host) -> Result<Member> {
        let guest = &self.config.guest;
        // Only the primary has these flags: a standby receives their values with the session.
        let mut arguments = vec![
            "run".to_owned(),
            format!("--kernel={}", guest.kernel.display()),
            format!("--cmdline={}", guest.command_line),
        ];
        arguments
            .extend(guest.initrd.iter().map(|initrd| format!("--initrd={}", initrd.display())));
        arguments.extend(["--memory".to_owned(), guest.memory.to_string()]);
        arguments.extend(["--cpus".to_owned(), guest.cpus.to_string()]);
        if guest.boots_protected {
            arguments.extend(["--standby".to_owned(), self.network.dial_address(host.other())]);
        }
        self.start(host, "primary", arguments)
    }

    /// Starts a standby on `host`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(super) fn start_standby(&mut self, host: Host) -> Result<Member> {
        let listen = self.network.listen_address(host);
        self.start(host, "standby", vec!["standby".to_owned(), "--listen".to_owned(), listen])
    }

    fn start(&mut self, host: Host, role: &str, arguments: Vec<String>) -> Result<Member> {
        self.started += 1;
        let name = format!("{:02}-{role}-{}", self.started, host.name());
        let socket = self.dir.join(format!("{name}.ctl"));
        let mut command = self.network.command(host, &self.config.kemari);
        command.args(arguments).args(self.common(host, &name)).arg("--control").arg(&socket);
        if self.config.audit {
            let audit = self.dir.join(format!("{name}.audit"));
            command.arg("--audit").arg(&audit);
            self.audits.push(audit);
        }
        let end = |pipe: bool| if pipe { Stdio::piped() } else { Stdio::null() };
        command.stdin(end(self.console)).stdout(end(self.console || self.printed()));
        let log = self.dir.join(format!("{name}.log"));
        let slowness = self.slowness.as_ref();
        let pending = slowness.map(|_| Slowness::ask(&mut command)).transpose()?;
        let mut process = Process::start(&name, command, &log)?;
        let injector = match slowness.zip(pending) {
            Some((slowness, pending)) => Some(slowness.answer(host, pending)?),
            None => None,
        };
        process.counts_in(&self.peak);
        if self.printed() {
            process.keep_output(&self.dir.join(format!("{name}.serial")))?;
        }
        let kemari = self.config.kemari.clone();
        Ok(Member { host, process, socket, kemari, _injector: injector })
    }

    /// Whether the serial line is on a pipe that the harness reads and can leave unread.
    fn printed(&self) -> bool {
        !self.console && self.config.kills.contains(&Kill::Unread)
    }

    /// Whether the guest's network is a tap on each host.
    pub(super) fn has_taps(&self) -> bool {
        self.taps
    }

    fn net(&self, host: Host) -> String {
        match self.taps {
            true => format!("tap={GUEST_TAP}"),
            false => format!("stream={}", self.switch.socket(host.index()).display()),
        }
    }

    /// The flags of both roles.
    fn common(&self, host: Host, name: &str) -> Vec<String> {
        let path = |file: &str| self.dir.join(file).display().to_string();
        let heartbeat =
            |milliseconds| self.config.scaled(Duration::from_millis(milliseconds)).as_millis();
        let mut flags = vec![
            format!("--name={NAME}"),
            // P3 holds with `writeback`: both hosts share one kernel here, whose page cache
            // survives the end of either process.
            format!("--disk=path={},cache=writeback", self.disk().display()),
            format!("--net={},mac={MAC},model={}", self.net(host), self.config.net_model.name()),
            match self.console || self.printed() {
                true => "--serial=stdio".to_owned(),
                false => format!("--serial=file={}", path(&format!("{name}.serial"))),
            },
            format!("--heartbeat-interval={}", heartbeat(50)),
            format!("--heartbeat-timeout={}", heartbeat(500)),
            "--rng".to_owned(),
            "--rtc".to_owned(),
            match self.config.tls {
                true => format!("--tls={}", self.credentials(host).display()),
                false => "--insecure-plain-tcp".to_owned(),
            },
        ];
        flags.extend(self.arbiter.flags(self.network, host));
        flags.extend(self.config.verify.then(|| "--verify".to_owned()));
        if let Some(device) = &self.config.device {
            flags
                .push(format!("--device={device},console=file={}", self.device_output().display()));
        }
        flags.extend(self.config.flags.iter().cloned());
        flags
    }

    /// Tells the active side to replicate to the standby on the other host.
    ///
    /// # Errors
    /// The active side refuses.
    pub(super) fn protect(&self, active: &Member) -> Result<()> {
        let address = self.network.dial_address(active.host.other());
        // Do not wait: the test may inject a fault in the meantime, and watches the status itself.
        let protect = ["--timeout", "0", "protect", &address];
        active.control(&protect).context("the guest cannot be protected again")
    }

    /// The slowness of the sides' resources.
    pub(super) fn slowness(&self) -> Result<&Slowness> {
        self.slowness.as_ref().context("expected a pair whose files can be slow")
    }

    /// The hosts and the replication link between them.
    pub(super) fn network(&self) -> &TestNetwork {
        self.network
    }

    /// The guest's network.
    pub(super) fn switch(&self) -> &Switch {
        self.switch
    }
}
