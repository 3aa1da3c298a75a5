//! What to run as a pair, how to break it, and how long to wait.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

/// How a round breaks the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kill {
    /// SIGKILL to the primary: the standby takes over.
    Primary,
    /// SIGKILL to the standby: the primary goes on alone.
    Standby,
    /// The replication link and the primary's cable go silent: exactly one side goes on.
    BothLinks,
    /// The primary stops, the standby takes over, and the primary wakes up again.
    PausePrimary,
    /// The standby stops, the primary goes on alone, and the standby wakes up again.
    PauseStandby,
    /// The replication link goes silent; both sides still reach the network: exactly one side goes on.
    Link,
    /// What the primary sends to the standby is lost, and what the standby sends arrives.
    LinkToStandby,
    /// What the standby sends to the primary is lost, and what the primary sends arrives.
    LinkToPrimary,
    /// A bit flips on the replication link: the receiver must not take it for what was sent.
    Corrupt,
    /// The replication link is slow for a while: the guest goes on.
    Throttle,
    /// The disk is full for a while: the guest gets errors, goes on, and loses nothing.
    DiskFull,
    /// The arbiter disappears and comes back: nothing leaves in the meantime, and the guest goes on.
    Arbiter,
    /// The arbiter disappears, the primary dies, the arbiter comes back: the standby goes on only then.
    PrimaryWithoutArbiter,
    /// The arbiter accepts requests and answers none: the effect is that of a missing arbiter.
    ArbiterSilent,
    /// The primary alone does not reach the arbiter: it may not perform, and the pair stays as it is.
    ArbiterFromPrimary,
    /// The standby alone does not reach the arbiter, and the primary says so; then the primary dies, and the standby waits.
    StandbyWithoutArbiter,
    /// The primary reaches neither standby nor arbiter, but still the network: it holds its effects until it learns who won the
    /// term.
    PrimaryCutOff,
    /// The console and the standard error of both sides are not read, and the primary dies.
    Unread,
    /// The network takes the guest's frames slowly; usually the primary dies in the meantime.
    SlowNetwork,
    /// One side's arbiter becomes a separate copy: that side may not decide.
    TwoArbiters,
    /// The guest resets itself; usually a side dies at the same time. What the guest kept in memory only is gone; what is on its
    /// disk stays.
    Reset,
    /// The disk is slow for each write; usually the primary dies in the meantime.
    SlowDisk,
    /// The reader of the consoles' output is slow; usually the primary dies in the meantime.
    SlowConsole,
    /// The arbiter's directory is slow for each call; usually the primary dies in the meantime.
    SlowArbiter,
    /// The tap of one side is deleted and made again; usually the primary dies in the meantime.
    DeletedTap,
    /// The guest powers itself off as a side dies: it stays off. The pair ends with it.
    PowerOff,
}

impl Kill {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Primary,
        Self::Standby,
        Self::BothLinks,
        Self::PausePrimary,
        Self::Arbiter,
        Self::PrimaryWithoutArbiter,
        Self::PauseStandby,
        Self::Link,
        Self::LinkToStandby,
        Self::LinkToPrimary,
        Self::Corrupt,
        Self::Throttle,
        Self::DiskFull,
        Self::ArbiterSilent,
        Self::ArbiterFromPrimary,
        Self::StandbyWithoutArbiter,
        Self::PrimaryCutOff,
        Self::Unread,
        Self::SlowNetwork,
        Self::TwoArbiters,
        Self::Reset,
        Self::SlowDisk,
        Self::SlowConsole,
        Self::SlowArbiter,
        Self::DeletedTap,
        Self::PowerOff,
    ];

    /// Faults that every run can have, whatever its hosts are: the meaning of `all`.
    pub fn everywhere() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().take(6)
    }

    /// Whether it needs a relay between the hosts, which exists on loopback.
    pub const fn needs_relay(self) -> bool {
        matches!(self, Self::Corrupt | Self::Throttle)
    }

    /// Whether it needs the right to mount, or to make interfaces.
    pub const fn needs_root(self) -> bool {
        matches!(self, Self::DiskFull | Self::DeletedTap)
    }

    /// Whether it needs a guest whose network is a tap on each host, which namespaces have.
    pub const fn needs_taps(self) -> bool {
        matches!(self, Self::DeletedTap)
    }

    /// Whether it needs a guest whose network is a socket: frames that wait in the socket can be lost with their sender.
    pub const fn needs_sockets(self) -> bool {
        matches!(self, Self::SlowNetwork)
    }

    /// Whether it needs each side's system calls intercepted, which slows every call.
    pub const fn needs_questions(self) -> bool {
        matches!(self, Self::SlowDisk | Self::SlowConsole | Self::SlowArbiter)
    }

    /// Whether it needs a directory as arbiter.
    pub const fn needs_directory(self) -> bool {
        matches!(self, Self::TwoArbiters | Self::SlowArbiter)
    }

    /// Whether playing the fault always undoes it, even if the play fails.
    pub(super) const fn leaves_nothing(self) -> bool {
        self.needs_questions()
            || self.needs_taps()
            || matches!(self, Self::DiskFull | Self::Unread | Self::SlowNetwork)
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        self.describe().0
    }

    /// A description in one line.
    pub const fn what(self) -> &'static str {
        self.describe().1
    }

    const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Primary => ("primary", "the primary dies"),
            Self::Standby => ("standby", "the standby dies"),
            Self::BothLinks => ("both-links", "the primary reaches neither standby nor network"),
            Self::PausePrimary => {
                ("pause-primary", "the primary is stopped, and continues after it was replaced")
            }
            Self::Arbiter => ("arbiter", "the arbiter is gone for a while"),
            Self::PrimaryWithoutArbiter => {
                ("primary-without-arbiter", "the primary dies while the arbiter is gone")
            }
            Self::PauseStandby => (
                "pause-standby",
                "the standby is stopped, and continues after the primary has \
            given it up",
            ),
            Self::Link => ("link", "the replication link is cut in both directions"),
            Self::LinkToStandby => (
                "link-to-standby",
                "the link is cut in one direction: the standby receives \
            nothing",
            ),
            Self::LinkToPrimary => (
                "link-to-primary",
                "the link is cut in one direction: the primary receives \
            nothing",
            ),
            Self::Corrupt => ("corrupt", "a bit flips on the replication link (loopback)"),
            Self::Throttle => ("throttle", "the replication link is slow for a while (loopback)"),
            Self::DiskFull => ("disk-full", "the disk is full for a while (needs root)"),
            Self::ArbiterSilent => {
                ("arbiter-silent", "the arbiter does not answer, or answers with errors")
            }
            Self::ArbiterFromPrimary => {
                ("arbiter-from-primary", "the primary alone does not reach the arbiter")
            }
            Self::StandbyWithoutArbiter => (
                "standby-without-arbiter",
                "the standby does not reach the arbiter, and the primary dies",
            ),
            Self::PrimaryCutOff => (
                "primary-cut-off",
                "the primary reaches its clients, but no standby and no arbiter",
            ),
            Self::Unread => {
                ("unread", "consoles and standard error are not read, and the primary dies")
            }
            Self::SlowNetwork => (
                "slow-network",
                "the network accepts frames slowly; usually the primary dies meanwhile",
            ),
            Self::TwoArbiters => {
                ("two-arbiters", "one side's arbiter (a directory) becomes a separate copy")
            }
            Self::Reset => {
                ("reset", "the guest resets itself; usually a side dies at the same time")
            }
            Self::SlowDisk => {
                ("slow-disk", "the disk is slow for each write; usually the primary dies meanwhile")
            }
            Self::SlowConsole => (
                "slow-console",
                "the consoles' output is read slowly; usually the primary dies meanwhile",
            ),
            Self::SlowArbiter => (
                "slow-arbiter",
                "the arbiter (a directory) is slow for each call; usually the primary dies meanwhile",
            ),
            Self::DeletedTap => (
                "deleted-tap",
                "the tap of a side is deleted; usually the primary dies meanwhile (needs root and namespaces)",
            ),
            Self::PowerOff => ("power-off", "the guest powers itself off while a side dies"),
        }
    }
}

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kill| kill.name() == text).ok_or_else(|| {
            format!("expected {}, found `{text}`", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Checks that a pair on these hosts can be broken in these ways.
///
/// # Errors
/// The first way that is not available.
pub fn check_kills(kills: &[Kill], loopback: bool) -> Result<()> {
    ensure!(!kills.is_empty(), "--kill: expected at least one way to break the pair");
    if let Some(kill) = kills.iter().find(|kill| kill.needs_relay() && !loopback) {
        bail!(
            "--kill {}: it needs the relay between two hosts on loopback: add --loopback",
            kill.name()
        );
    }
    if let Some(kill) = kills.iter().find(|kill| kill.needs_taps() && loopback) {
        bail!("--kill {}: it needs hosts in namespaces: remove --loopback", kill.name());
    }
    let taps = kills.iter().find(|kill| kill.needs_taps());
    let sockets = kills.iter().find(|kill| kill.needs_sockets());
    if let (Some(taps), Some(sockets)) = (taps, sockets) {
        bail!(
            "--kill {},{}: the first needs a tap as the guest's network, the second a socket: run them one after the \
             other",
            taps.name(),
            sockets.name()
        );
    }
    Ok(())
}

/// Checks that a pair with this arbiter can be broken in these ways.
///
/// # Errors
/// The first way that needs another arbiter.
pub fn check_arbiter(kills: &[Kill], arbiter: ArbiterKind) -> Result<()> {
    let directory = kills.iter().find(|kill| kill.needs_directory());
    if let (ArbiterKind::Etcd, Some(kill)) = (arbiter, directory) {
        bail!("--kill {}: it needs a directory as arbiter: remove --arbiter etcd", kill.name());
    }
    Ok(())
}

/// Checks that this user may break a pair in these ways.
///
/// # Errors
/// The first way that needs root.
pub fn check_root(kills: &[Kill]) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    if let Some(kill) = kills.iter().find(|kill| kill.needs_root() && !root) {
        bail!(
            "--kill {}: it mounts a disk or creates interfaces, which requires root: run it as root",
            kill.name()
        );
    }
    Ok(())
}

/// The guest's network card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's 82540EM.
    E1000,
}

impl NetModel {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
        }
    }
}

/// Who decides which side goes on alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArbiterKind {
    /// A directory that both hosts see.
    #[default]
    File,
    /// A real etcd server, started for the run.
    Etcd,
}

/// The guest of a run.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Memory in MiB.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Whether protection begins at once; otherwise it begins when the guest serves requests.
    pub boots_protected: bool,
}

/// The configuration of a run.
#[derive(Debug, Clone)]
pub struct PairConfig {
    /// The `kemari` binary.
    pub kemari: PathBuf,
    /// The guest.
    pub guest: GuestConfig,
    /// How to break the pair, in turn, round by round.
    pub kills: Vec<Kill>,
    /// Number of rounds.
    pub rounds: u32,
    /// The seed of the moments of the kills.
    pub seed: u64,
    /// Operations that must be answered after a kill.
    pub operations_after: u64,
    /// The load before a kill lasts this long, plus a random time.
    pub load: Duration,
    /// Compare memory and state of both sides at every checkpoint.
    pub verify: bool,
    /// How many times slower this machine is than an ordinary one.
    pub slow: u32,
    /// Encrypt and authenticate the replication link.
    pub tls: bool,
    /// Both sides write audit logs, which are judged at the end.
    pub audit: bool,
    /// A device of the catalogue that the guest drives, with a console behind it.
    pub device: Option<String>,
    /// Do not use network namespaces.
    pub loopback: bool,
    /// The guest's network card.
    pub net_model: NetModel,
    /// The arbiter.
    pub arbiter: ArbiterKind,
    /// Further flags of `kemari run` and `kemari standby`.
    pub flags: Vec<String>,
}

impl PairConfig {
    /// How the pair is broken in a round; the first is 1.
    pub(super) fn kill(&self, round: u32) -> Kill {
        self.kills[(round as usize - 1) % self.kills.len()]
    }

    /// Whether the guest's network is a tap on each host.
    pub(super) fn has_taps(&self) -> bool {
        self.kills.iter().any(|kill| kill.needs_taps())
    }

    /// Whether slowness can be injected on the sides.
    pub(super) fn is_slow(&self) -> bool {
        self.kills.iter().any(|kill| kill.needs_questions())
    }

    /// Checks conditions that concern several fields.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<()> {
        check_kills(&self.kills, self.loopback)?;
        check_arbiter(&self.kills, self.arbiter)?;
        ensure!(self.rounds > 0, "--rounds: expected at least 1, found 0");
        ensure!(self.slow > 0, "--slow: expected at least 1, found 0");
        Ok(())
    }

    /// The memory that a process of the pair may use at most, in MiB; docs/threads.md explains the parts.
    pub fn memory_bound(&self) -> u64 {
        2 * self.guest.memory + 768
    }

    /// Converts a `time` for an ordinary machine to this machine.
    pub fn scaled(&self, time: Duration) -> Duration {
        time * self.slow
    }
}
