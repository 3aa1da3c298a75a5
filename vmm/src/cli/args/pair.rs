//! The flags that both hosts of a pair have: the groups Replication, Arbiter, Security and
//! Operation.

use std::path::PathBuf;

use clap::Args;
use ft_core::primary::MAX_IN_FLIGHT;
use io_gate_host::RESET_PATIENCE;
use kemari_arbiter::ArbiterSpec;
use kemari_audit::AuditSpec;
use kemari_confine::seccomp::Mode;
use kemari_replication::link::LinkAddr;
use kemari_support::values::{Unit, numbers};

/// The minimum of `--stall-timeout`, in milliseconds.
const LEAST_STALL_TIMEOUT: u64 = 5000;
// P7: one disk that does not answer must not count as a stall. A device's reset waits for it twice
// (docs/threads.md), and then counts as progress.
const _: () = assert!(LEAST_STALL_TIMEOUT as u128 > 2 * 2 * RESET_PATIENCE.as_millis());

/// The flags of both sides.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The other host, and how checkpoints are sent.
    #[command(flatten)]
    pub replication: ReplicationArgs,
    /// Who decides which side continues.
    #[command(flatten)]
    pub arbiter: ArbiterArgs,
    /// The link, and the process.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Logs and control.
    #[command(flatten)]
    pub operation: OperationArgs,
}

/// The other host, and how checkpoints are sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Replication")]
pub struct ReplicationArgs {
    /// Address of the standby: HOST:PORT or unix:PATH. On a standby: the standby to use after a
    /// takeover.
    #[arg(long, value_name = "ADDR")]
    pub standby: Option<LinkAddr>,
    /// Longest time between two checkpoints of a busy guest.
    #[arg(long, value_name = "MS", default_value_t = 25, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=60_000, Unit::Milliseconds))]
    pub epoch_interval: u64,
    /// Maximum number of checkpoints in flight.
    #[arg(long, value_name = "N", default_value_t = MAX_IN_FLIGHT as u32, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=64, Unit::Count("a number of checkpoints")))]
    pub max_in_flight: u32,
    /// Cache of sent pages: only changed 64-byte lines are sent again; 0 disables.
    #[arg(long, value_name = "MIB", default_value_t = 64, allow_negative_numbers = true, value_parser = numbers::<u64>(0..=1_048_576, Unit::Mebibytes))]
    pub delta_cache: u64,
    /// Time between two heartbeats.
    #[arg(long, value_name = "MS", default_value_t = 50, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=60_000, Unit::Milliseconds))]
    pub heartbeat_interval: u64,
    /// Suspect the peer after this long without a heartbeat.
    #[arg(long, value_name = "MS", default_value_t = 500, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=600_000, Unit::Milliseconds))]
    pub heartbeat_timeout: u64,
    /// Detach a live standby after this long without an acknowledgement. Output waits meanwhile.
    #[arg(long, value_name = "MS", default_value_t = 30_000, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=3_600_000, Unit::Milliseconds))]
    pub ack_timeout: u64,
    /// Hand the guest to the standby after its devices or vCPUs have been stuck for this long.
    ///
    /// The minimum is 5000: a disk that does not answer may delay a device reset by 2000.
    #[arg(long, value_name = "MS", default_value_t = 10_000, allow_negative_numbers = true, value_parser = numbers::<u64>(LEAST_STALL_TIMEOUT..=3_600_000, Unit::Milliseconds))]
    pub stall_timeout: u64,
    /// Compare hashes of memory and state of both sides at each checkpoint. Slow; for tests.
    #[arg(long)]
    pub verify: bool,
}

/// Who decides which side continues.
#[derive(Debug, Args)]
#[command(next_help_heading = "Arbiter")]
pub struct ArbiterArgs {
    /// Arbiter that decides which side continues: `etcd:HOST:PORT,...`, `file:DIR` (a directory on
    /// storage that both hosts mount) or `none` (the operator decides).
    #[arg(id = "arbiter", long = "arbiter", value_name = "SPEC", default_value = "none")]
    pub spec: ArbiterSpec,
    /// etcd: certificate authority (PEM). Without it the connection is not encrypted.
    #[arg(id = "arbiter_ca", long = "arbiter-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// etcd: client certificate (PEM).
    #[arg(id = "arbiter_cert", long = "arbiter-cert", value_name = "FILE", requires_all = ["arbiter_key", "arbiter_ca"])]
    pub cert: Option<PathBuf>,
    /// etcd: private key of --arbiter-cert (PEM).
    #[arg(
        id = "arbiter_key",
        long = "arbiter-key",
        value_name = "FILE",
        requires = "arbiter_cert"
    )]
    pub key: Option<PathBuf>,
    /// etcd: user name. The password comes from --arbiter-password-file or KEMARI_ARBITER_PASSWORD.
    #[arg(id = "arbiter_user", long = "arbiter-user", value_name = "NAME")]
    pub user: Option<String>,
    /// etcd: file with the password of --arbiter-user.
    #[arg(
        id = "arbiter_password_file",
        long = "arbiter-password-file",
        value_name = "FILE",
        requires = "arbiter_user"
    )]
    pub password_file: Option<PathBuf>,
    /// etcd: lease duration.
    ///
    /// A side performs effects for this long without asking etcd again. A takeover waits until the
    /// lease of the other side has expired. Output pauses while etcd takes longer than this to
    /// answer.
    #[arg(id = "arbiter_lease", long = "arbiter-lease", value_name = "MS", default_value_t = 1000, allow_negative_numbers = true, value_parser = numbers::<u64>(100..=600_000, Unit::Milliseconds))]
    pub lease: u64,
}

/// The link, and the process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Encrypt and authenticate the link with `ca.pem`, `cert.pem` and `key.pem` of this directory.
    /// On both sides.
    #[arg(long, value_name = "DIR", conflicts_with = "insecure_plain_tcp")]
    pub tls: Option<PathBuf>,
    /// Name that the certificate of the other side must carry [default: the host of --standby].
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub tls_peer: Option<String>,
    /// Allow a network connection without encryption and authentication.
    #[arg(long)]
    pub insecure_plain_tcp: bool,
    /// Handling of a system call that the role of its thread does not allow.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::On)]
    pub seccomp: Mode,
}

/// Logs and control.
#[derive(Debug, Args)]
#[command(next_help_heading = "Operation")]
pub struct OperationArgs {
    /// Control socket: where `kemari ctl` reaches this process.
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Log each effect for `kemari audit`: `FILE[,size=64MiB][,keep=4]`.
    ///
    /// Each run writes FILE.<run>.<number>: at most `keep` files of `size` each.
    #[arg(long, value_name = "SPEC")]
    pub audit: Option<AuditSpec>,
    /// Write the process id to this file; removed on exit.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
}
