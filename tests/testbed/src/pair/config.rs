//! The configuration of a run: the pair, its faults and the time limits.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

/// The fault of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kill {
    /// SIGKILL to the primary. The standby takes over.
    Primary,
    /// SIGKILL to the standby. The primary continues alone.
    Standby,
    /// The replication link and the primary's cable go silent. Exactly one side continues.
    BothLinks,
    /// The primary is stopped, the standby takes over, and the primary is resumed.
    PausePrimary,
    /// The standby is stopped, the primary continues alone, and the standby is resumed.
    PauseStandby,
    /// The replication link goes silent; both sides still reach the network. Exactly one side
    /// continues.
    Link,
    /// The replication link loses all bytes from the primary, and delivers those from the standby.
    LinkToStandby,
    /// The replication link loses all bytes from the standby, and delivers those from the primary.
    LinkToPrimary,
    /// A bit flips on the replication link. The receiver must detect it.
    Corrupt,
    /// The replication link is slow for a while. The guest continues.
    Throttle,
    /// The disk is full for a while. The guest gets errors, continues, and loses nothing.
    DiskFull,
    /// The arbiter disappears and returns. No effect leaves in the meantime, and the guest
    /// continues.
    Arbiter,
    /// The arbiter disappears, the primary dies, and the arbiter returns. Only then does the
    /// standby continue.
    PrimaryWithoutArbiter,
    /// The arbiter accepts requests and never answers, which must have the same result as a missing
    /// arbiter.
    ArbiterSilent,
    /// Only the primary cannot reach the arbiter. The primary may not perform effects, and the
    /// roles stay the same.
    ArbiterFromPrimary,
    /// The standby alone cannot reach the arbiter, and the primary reports this. Then the primary
    /// dies, and the standby waits.
    StandbyWithoutArbiter,
    /// The primary reaches the network, but neither standby nor arbiter. It holds its effects until
    /// it learns who won the term.
    PrimaryCutOff,
    /// The consoles and standard errors of both sides are not read, and the primary dies.
    Unread,
    /// The network accepts the guest's frames slowly. Usually the primary dies in the meantime.
    SlowNetwork,
    /// One side's arbiter becomes a separate copy. That side must not decide.
    TwoArbiters,
    /// The guest resets itself. Usually a side dies at the same time. The guest loses its memory
    /// and keeps its disk.
    Reset,
    /// Each write to the disk is slow. Usually the primary dies in the meantime.
    SlowDisk,
    /// The consoles' output is read slowly. Usually the primary dies in the meantime.
    SlowConsole,
    /// Each call on the arbiter's directory is slow. Usually the primary dies in the meantime.
    SlowArbiter,
    /// The tap of one side is deleted and created again. Usually the primary dies in the meantime.
    DeletedTap,
    /// The guest powers itself off while a side dies. It stays off, and the pair ends.
    PowerOff,
}

impl Kill {
    /// All faults.
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

    /// The faults that `all` stands for. Each pair permits them.
    pub fn everywhere() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().take(6)
    }

    /// Whether the fault needs the relay. Only pairs on loopback have one.
    pub const fn needs_relay(self) -> bool {
        matches!(self, Self::Corrupt | Self::Throttle)
    }

    /// Whether the fault needs root, to mount a disk or to create interfaces.
    pub const fn needs_root(self) -> bool {
        matches!(self, Self::DiskFull | Self::DeletedTap)
    }

    /// Whether the fault needs a tap as the guest's network. Only pairs in namespaces have taps.
    pub const fn needs_taps(self) -> bool {
        matches!(self, Self::DeletedTap)
    }

    /// Whether the fault needs a socket as the guest's network. Frames that wait in a socket can be
    /// lost with their sender.
    pub const fn needs_sockets(self) -> bool {
        matches!(self, Self::SlowNetwork)
    }

    /// Whether the fault needs the system calls of both sides to be intercepted, which slows each
    /// call.
    pub const fn needs_questions(self) -> bool {
        matches!(self, Self::SlowDisk | Self::SlowConsole | Self::SlowArbiter)
    }

    /// Whether the fault needs a directory as arbiter.
    pub const fn needs_directory(self) -> bool {
        matches!(self, Self::TwoArbiters | Self::SlowArbiter)
    }

    /// Whether injecting the fault also undoes it, even if the injection fails.
    pub(super) const fn leaves_nothing(self) -> bool {
        self.needs_questions()
            || self.needs_taps()
            || matches!(self, Self::DiskFull | Self::Unread | Self::SlowNetwork)
    }

    /// The fault's name on the command line.
    pub const fn name(self) -> &'static str {
        self.describe().0
    }

    /// The fault's description in one line.
    pub const fn what(self) -> &'static str {
        self.describe().1
    }

    const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Primary => ("primary", "the primary dies"),
            Self::Standby => ("standby", "the standby dies"),
            Self::BothLinks => {
                ("both-links", "the primary reaches neither the standby nor the network")
            }
            Self::PausePrimary => (
                "pause-primary",
                "the primary is stopped, and continues after a standby has replaced it",
            ),
            Self::Arbiter => ("arbiter", "the arbiter is out of reach for a while"),
            Self::PrimaryWithoutArbiter => {
                ("primary-without-arbiter", "the primary dies while the arbiter is out of reach")
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
                "the primary reaches its clients, but neither the standby nor the arbiter",
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

/// Checks that these faults can be injected into a pair on these hosts.
///
/// # Errors
/// The first fault that is not available.
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

/// Checks that these faults can be injected into a pair with this arbiter.
///
/// # Errors
/// The first fault that needs another arbiter.
pub fn check_arbiter(kills: &[Kill], arbiter: ArbiterKind) -> Result<()> {
    let directory = kills.iter().find(|kill| kill.needs_directory());
    if let (ArbiterKind::Etcd, Some(kill)) = (arbiter, directory) {
        bail!("--kill {}: it needs a directory as arbiter: remove --arbiter etcd", kill.name());
    }
    Ok(())
}

/// Checks that this user may inject these faults.
///
/// # Errors
/// The first fault that needs root.
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
    /// Intel 82540EM.
    E1000,
}

impl NetModel {
    /// The card's name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
        }
    }
}

/// The kind of arbiter, which decides which side continues alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArbiterKind {
    /// A directory that both hosts can access.
    #[default]
    File,
    /// A real etcd server, started for the run.
    Etcd,
}

/// The guest of a run.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Memory in MiB.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Whether replication starts with the guest. Otherwise it starts once the guest serves
    /// requests.
    pub boots_protected: bool,
}

/// The configuration of a run.
#[derive(Debug, Clone)]
pub struct PairConfig {
    /// The `kemari` binary.
    pub kemari: PathBuf,
    /// The guest.
    pub guest: GuestConfig,
    /// The faults, one for each round, repeated in turn.
    pub kills: Vec<Kill>,
    /// Number of rounds.
    pub rounds: u32,
    /// The seed of the times of the faults, and of the load.
    pub seed: u64,
    /// Number of operations that must be answered after a fault.
    pub operations_after: u64,
    /// Minimum duration of the load before a fault; a random time is added.
    pub load: Duration,
    /// Whether memory and state of both sides are compared at each checkpoint.
    pub verify: bool,
    /// Factor by which this machine is slower than an ordinary one.
    pub slow: u32,
    /// Whether the replication link is encrypted and authenticated.
    pub tls: bool,
    /// Whether both sides write audit logs, which are judged at the end.
    pub audit: bool,
    /// A device of the catalogue, with a console as backend, that the guest drives.
    pub device: Option<String>,
    /// Whether the hosts are on loopback instead of in network namespaces.
    pub loopback: bool,
    /// The guest's network card.
    pub net_model: NetModel,
    /// The arbiter.
    pub arbiter: ArbiterKind,
    /// Further flags of `kemari run` and `kemari standby`.
    pub flags: Vec<String>,
}

impl PairConfig {
    /// The fault of a round. The first round is 1.
    pub(super) fn kill(&self, round: u32) -> Kill {
        self.kills[(round as usize - 1) % self.kills.len()]
    }

    /// Whether the guest's network is a tap on each host.
    pub(super) fn has_taps(&self) -> bool {
        self.kills.iter().any(|kill| kill.needs_taps())
    }

    /// Whether the system calls of both sides are intercepted, to slow some of them.
    pub(super) fn is_slow(&self) -> bool {
        self.kills.iter().any(|kill| kill.needs_questions())
    }

    /// Checks conditions on several fields.
    ///
    /// # Errors
    /// The first condition that is not met.
    pub fn check(&self) -> Result<()> {
        check_kills(&self.kills, self.loopback)?;
        check_arbiter(&self.kills, self.arbiter)?;
        ensure!(self.rounds > 0, "--rounds: expected at least 1, found 0");
        ensure!(self.slow > 0, "--slow: expected at least 1, found 0");
        Ok(())
    }

    /// Memory limit of a process of the pair, in MiB. docs/threads.md explains its parts.
    pub fn memory_bound(&self) -> u64 {
        2 * self.guest.memory + 768
    }

    /// Scales a time for an ordinary machine to this machine.
    pub fn scaled(&self, time: Duration) -> Duration {
        time * self.slow
    }
}
