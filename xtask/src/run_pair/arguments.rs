//! The flags of `run-pair`, and the configuration that they give.

use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kemari_flags::{SEEDS, numbers};
use kemari_testbed::etcd;
use kemari_testbed::micro::{self, Load};
use kemari_testbed::pair::config::{self, ArbiterKind, GuestConfig, Kill, PairConfig};
use kemari_testbed::run_pair::{LinuxFiles, OPERATIONS_AFTER};

/// The guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guest {
    /// The embedded bare-metal guest; takes seconds.
    Micro,
    /// A stock Debian kernel with Redis on ext4. Runs directly if /dev/kvm can run it, otherwise in
    /// the nested lab.
    Linux,
}

/// The network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetModel {
    /// virtio-net.
    Virtio,
    /// Intel's 82540EM on a PCI bus, with the kernel's own driver; Linux only.
    E1000,
}

impl From<NetModel> for config::NetModel {
    fn from(model: NetModel) -> Self {
        match model {
            NetModel::Virtio => Self::Virtio,
            NetModel::E1000 => Self::E1000,
        }
    }
}

/// The arbiters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArbiterChoice {
    /// A directory.
    File,
    /// A real etcd server, started for the run (Debian package etcd-server).
    Etcd,
}

impl From<ArbiterChoice> for ArbiterKind {
    fn from(choice: ArbiterChoice) -> Self {
        match choice {
            ArbiterChoice::File => Self::File,
            ArbiterChoice::Etcd => Self::Etcd,
        }
    }
}

/// What to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// The guest.
    #[arg(long, value_enum, default_value = "micro")]
    pub(crate) guest: Guest,
    /// The guest's network card.
    #[arg(long, value_enum, default_value = "virtio")]
    pub(crate) net_model: NetModel,
    /// How to break the pair. Several kinds, or `all`, are used in turn. `cargo xtask torture
    /// --list` describes each.
    #[arg(long, value_delimiter = ',', default_value = "primary", value_name = "KIND|all")]
    pub(crate) kill: Vec<String>,
    /// Number of rounds.
    #[arg(long, default_value_t = 3, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=100_000, "rounds"))]
    pub(crate) rounds: u32,
    /// Seed of the moments of the kills; the same seed gives the same moments.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub(crate) seed: u64,
    /// Milliseconds of load before each kill; a random time is added.
    #[arg(long, value_name = "MS", default_value_t = 0, allow_negative_numbers = true, value_parser = numbers::<u64>(0..=3_600_000, "milliseconds"))]
    pub(crate) load: u64,
    /// vCPUs of the guest.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=254, "vCPUs"))]
    pub(crate) cpus: u32,
    /// Memory of the guest in MiB [default: 64; Linux: 128].
    #[arg(long, value_name = "MIB", allow_negative_numbers = true, value_parser = numbers::<u64>(2..=16_777_216, "MiB, without a unit"))]
    pub(crate) memory: Option<u64>,
    /// Number of clients that send requests at the same time.
    #[arg(long, default_value_t = 4, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=1000, "clients"))]
    pub(crate) writers: u32,
    /// Pages that the micro-guest dirties per second in addition to its work.
    #[arg(long, value_name = "PAGES_PER_S", default_value_t = 2000, allow_negative_numbers = true, value_parser = numbers::<u32>(0..=10_000_000, "pages a second"))]
    pub(crate) dirty: u32,
    /// Compare memory and state of both sides at every checkpoint.
    #[arg(long)]
    pub(crate) verify: bool,
    /// No load and no rounds: the guest's console on this terminal, and keys that kill either side.
    #[arg(long, conflicts_with_all = ["json", "rounds", "kill"])]
    pub(crate) interactive: bool,
    /// Write the report to this file as well.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Factor for all waits, on a slow machine.
    #[arg(long, value_name = "FACTOR", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=1000, "how many times longer"))]
    pub(crate) slow: u32,
    /// Encrypt and authenticate the replication link, with credentials made for this run.
    #[arg(long)]
    pub(crate) tls: bool,
    /// Have both sides record every effect, and prove P1 and P2 from the records at the end.
    #[arg(long)]
    pub(crate) audit: bool,
    /// Put a device of `kemari run --device` into the machine, drive it, and judge what it prints
    /// (micro-guest only).
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Run this program, instead of building it.
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) kemari: Option<PathBuf>,
    /// Do not use network namespaces.
    #[arg(long)]
    pub(crate) loopback: bool,
    /// Arbiter that decides which side continues alone.
    #[arg(long, value_enum, default_value = "file")]
    pub(crate) arbiter: ArbiterChoice,
    /// Start without a standby: the standby joins after the guest has answered for a while.
    #[arg(long)]
    pub(crate) late: bool,
    /// Keep the logs and the disk even if the run was good.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Run the Linux guest in the nested lab even where /dev/kvm could run it directly.
    #[arg(long)]
    pub(crate) lab: bool,
    /// A directory that already has all programs and images; set inside the nested lab.
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) prebuilt: Option<PathBuf>,
    /// Further flags for `kemari run` and `kemari standby`.
    #[arg(last = true)]
    pub(crate) flags: Vec<String>,
}

/// Checks a device's name against the catalogue in the product's source: this program is not linked
/// to the product, and works even if the product does not compile.
fn check_device(name: &str) -> Result<()> {
    let known = crate::new_device::known(crate::build::repository())?;
    ensure!(
        known.iter().any(|known| known == name),
        "--device: expected one of {}, found `{name}`; `cargo xtask new-device` adds one",
        known.join(", ")
    );
    Ok(())
}

/// Refuses more memory than the host has, as `kemari` does.
fn check_memory(mebibytes: u64) -> Result<()> {
    let host = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = host.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let total = total.map_or(u64::MAX, |kibibytes| kibibytes / 1024);
    ensure!(
        mebibytes < total,
        "--memory {mebibytes}: expected less than the {total} MiB that this host has"
    );
    Ok(())
}

impl Arguments {
    /// Refuses arguments that are wrong by themselves, before anything is built.
    pub(crate) fn check(&self) -> Result<()> {
        let kills = self.kills()?;
        config::check_kills(&kills, self.loopback)?;
        config::check_arbiter(&kills, self.arbiter.into())?;
        config::check_root(&kills)?;
        self.json.as_deref().map_or(Ok(()), crate::report_file::check).context("--json")?;
        self.kemari.as_deref().map_or(Ok(()), crate::build::check_program)?;
        ensure!(
            self.guest == Guest::Linux || self.net_model == NetModel::Virtio,
            "--net-model e1000: the micro-guest has no driver for it: add --guest linux"
        );
        ensure!(
            self.guest == Guest::Micro || self.device.is_none(),
            "--device: the stock Debian guest does not drive it: remove --guest linux"
        );
        ensure!(
            self.guest == Guest::Micro || !kills.contains(&Kill::Reset),
            "--kill reset: the Debian guest does not reset itself on request: remove --guest linux"
        );
        ensure!(
            self.guest == Guest::Linux || self.cpus <= micro::MAX_CPUS,
            "--cpus {}: expected 1 to {} vCPUs, as the micro-guest drives no more: give fewer, or add --guest linux",
            self.cpus,
            micro::MAX_CPUS
        );
        // A program that was built before may have other devices.
        let device = self.device.as_deref().filter(|_| self.kemari.is_none());
        device.map_or(Ok(()), check_device)?;
        self.memory.map_or(Ok(()), check_memory)?;
        kemari_flags::kemari::check(&self.flags)
            .map_err(|error| anyhow::anyhow!("flags for kemari, after `--`: {error}"))?;
        ensure!(
            !(self.lab && self.interactive),
            "--lab: expected no --interactive: the nested lab has no terminal"
        );
        ensure!(
            !self.interactive || stdin().is_terminal(),
            "--interactive: expected a terminal on standard input"
        );
        ensure!(
            self.arbiter == ArbiterChoice::File || etcd::is_installed(),
            "--arbiter etcd: {}",
            etcd::MISSING
        );
        Ok(())
    }

    /// The ways to break the pair.
    pub(crate) fn kills(&self) -> Result<Vec<Kill>> {
        if self.kill.iter().any(|kill| kill == "all") {
            return Ok(Kill::everywhere().collect());
        }
        self.kill
            .iter()
            .map(|kill| kill.parse().map_err(|error| anyhow::anyhow!("--kill: {error}, or all")))
            .collect()
    }

    /// The load on a micro-guest.
    pub(crate) fn micro_load(&self) -> Load {
        let resend = Duration::from_millis(50) * self.slow;
        Load { writers: self.writers, seed: self.seed, dirty: self.dirty, resend }
    }

    /// The configuration for the micro-guest.
    pub(crate) fn micro_config(&self, kemari: PathBuf, kernel: PathBuf) -> Result<PairConfig> {
        let mut guest =
            micro::guest(kernel, self.memory.unwrap_or(64), self.cpus, self.micro_load());
        guest.boots_protected = !self.late;
        if self.device.is_some() {
            micro::exercise(&mut guest);
        }
        self.config(kemari, guest, 100)
    }

    /// The configuration for the stock Debian guest.
    pub(crate) fn linux_config(&self, files: &LinuxFiles) -> Result<PairConfig> {
        let guest = files.guest(self.memory, self.cpus);
        self.config(files.kemari.clone(), guest, OPERATIONS_AFTER)
    }

    /// The configuration for any guest.
    fn config(
        &self,
        kemari: PathBuf,
        guest: GuestConfig,
        operations_after: u64,
    ) -> Result<PairConfig> {
        Ok(PairConfig {
            kemari,
            guest,
            kills: self.kills()?,
            rounds: self.rounds,
            seed: self.seed,
            operations_after,
            load: Duration::from_millis(self.load),
            verify: self.verify,
            slow: self.slow,
            tls: self.tls,
            audit: self.audit,
            device: self.device.clone(),
            loopback: self.loopback,
            net_model: self.net_model.into(),
            arbiter: self.arbiter.into(),
            flags: self.flags.clone(),
        })
    }
}
