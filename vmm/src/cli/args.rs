//! The flags of every command, and how they become configurations.

use std::path::PathBuf;

use clap::{Args, Parser};
use io_gate_host::RESET_PATIENCE;

use crate::arbiter::ArbiterSpec;
use crate::audit::AuditSpec;
use crate::config::{
    BootSource, ConsoleConfig, DeviceConfig, DiskConfig, MachineConfig, MemoryConfig, NetConfig,
    parse_name,
};
use crate::link::LinkAddr;
use crate::seccomp::Mode;
use crate::ungated::{Asked, Found, Refusal, Ungated};
use crate::values::{Unit, numbers};

/// The least `--stall-timeout`, in milliseconds.
const LEAST_STALL_TIMEOUT: u64 = 5000;
// P7: one disk that does not answer is no stall. A device's reset waits for it twice (docs/threads.md), and is then counted as
// progress.
const _: () = assert!(LEAST_STALL_TIMEOUT as u128 > 2 * 2 * RESET_PATIENCE.as_millis());

/// A KVM virtual machine monitor whose guests survive the death of their host.
#[derive(Debug, Parser)]
#[command(name = "kemari", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Subcommand,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Run a virtual machine; protected if there is a standby.
    Run(Box<RunArgs>),
    /// Wait for a primary, hold its last checkpoint, and take over when it dies.
    Standby(Box<StandbyArgs>),
    /// Ask or tell a running `kemari` something through its control socket.
    Ctl(CtlArgs),
    /// Prove from audit logs that no promise was broken, or show what is in one.
    Audit(AuditArgs),
    /// Tell what this host's KVM can run.
    Probe(ProbeArgs),
}

/// The kernel. A standby is sent the primary's, and is given one only to spare that: then the same.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// Kernel: a bzImage or a 64-bit ELF image (PVH).
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    pub cmdline: String,
}

impl BootArgs {
    fn source(&self) -> Option<BootSource> {
        self.kernel.as_ref().map(|kernel| BootSource {
            kernel: kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
        })
    }
}

/// The devices; to be given alike on both sides.
#[derive(Debug, Args)]
pub struct GuestDevices {
    /// A disk: `path=FILE[,format=raw][,readonly=on][,serial=TEXT][,cache=writethrough|writeback][,direct=on][,queues=N][,fence=FILE|off]`. May be
    /// given several times. `direct=on` reads and writes past the page cache (O_DIRECT).
    /// `format=raw` takes it as raw whatever it looks like. A comma in a path is written twice.
    /// `fence` is where the record is of the term that may write; beside the image, unless given.
    #[arg(long = "disk", value_name = "SPEC")]
    pub disks: Vec<Asked<DiskConfig>>,
    /// A network interface: `tap=IFNAME` (an existing one, or `,create=on` makes it, down and attached to nothing), `stream=SOCKET` or `dgram=LOCAL:PEER`, then perhaps `,mac=XX:..` and
    /// `,queues=N` pairs of queues, or `,model=e1000` (default: `virtio`). Several times.
    #[arg(long = "net", value_name = "SPEC")]
    pub nets: Vec<Asked<NetConfig>>,
    /// A source of random bytes (virtio-rng).
    #[arg(long)]
    pub rng: bool,
    /// A real-time clock (PL031) at address 0xd0100000.
    #[arg(long)]
    pub rtc: bool,
    /// A virtio console: `stdio`, `file=PATH`, or `none` for one that nobody listens to.
    #[arg(long, value_name = "SPEC")]
    pub virtio_console: Option<ConsoleConfig>,
    /// A device by its name, and what is behind it: `NAME[,console=SPEC]`. Several times.
    #[arg(long = "device", value_name = "SPEC")]
    pub devices: Vec<Asked<DeviceConfig>>,
    /// What is behind the serial line: `stdio` (Ctrl-A x quits; on a terminal `2>>FILE` keeps the log out of it), `file=PATH` (a new file, or one of before, which is begun anew;
    /// to another text is added) or `none`.
    #[arg(long, value_name = "SPEC", default_value = "stdio")]
    pub serial: ConsoleConfig,
    /// What this program does not have.
    #[command(flatten)]
    pub ungated: UngatedDevices,
}

/// Flags of other monitors for what no gate can stand before: known so that who gives them is told why not.
#[derive(Debug, Args)]
pub struct UngatedDevices {
    /// A device of the host's.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub vfio: Vec<String>,
    /// Hardware that works virtqueues.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub vdpa: Vec<String>,
    /// A file in guest memory.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub pmem: Vec<String>,
    /// A descriptor that the guest signals.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub ioeventfd: Vec<String>,
    /// A descriptor that interrupts the guest.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub irqfd: Vec<String>,
}

impl GuestDevices {
    /// The first thing that was asked for and cannot be gated.
    fn ungated(&self) -> Option<Found> {
        let flags = &self.ungated;
        let of_flags = [
            (&flags.vfio, "vfio", Ungated::Vfio),
            (&flags.vdpa, "vdpa", Ungated::Vdpa),
            (&flags.pmem, "pmem", Ungated::Pmem),
            (&flags.ioeventfd, "ioeventfd", Ungated::ForeignEvents),
            (&flags.irqfd, "irqfd", Ungated::ForeignEvents),
        ];
        let of_flags = of_flags.into_iter().find_map(|(values, flag, kind)| {
            let spelled = format!("--{flag} {}", values.first()?);
            Some(Found { kind, spelled })
        });
        let spelled = |flag: &'static str| {
            move |found: &Found| Found {
                spelled: format!("{flag} {}", found.spelled),
                ..found.clone()
            }
        };
        of_flags
            .or_else(|| self.nets.iter().find_map(Asked::ungated).map(spelled("--net")))
            .or_else(|| self.devices.iter().find_map(Asked::ungated).map(spelled("--device")))
            .or_else(|| self.disks.iter().find_map(Asked::ungated).map(spelled("--disk")))
    }
}

/// Protection of a running guest by a standby.
#[derive(Debug, Args)]
pub struct ProtectionArgs {
    /// Where the standby listens: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    pub standby: Option<LinkAddr>,
    /// Who decides which side may go on alone: `etcd:HOST:PORT,...`, `file:DIR` (a directory that both hosts see) or
    /// `none` (the operator).
    #[arg(long, value_name = "SPEC", default_value = "none")]
    pub arbiter: ArbiterSpec,
    /// How to reach an arbiter on the network.
    #[command(flatten)]
    pub arbiter_access: ArbiterAccess,
    /// Begin even though the arbiter, or the record beside a disk, says that somebody runs this machine, who is known to be dead.
    #[arg(long)]
    pub seize: bool,
    /// The longest time between two checkpoints of a busy guest, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 25, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=60_000, Unit::Milliseconds))]
    pub epoch_interval: u64,
    /// How often to show the other side that this one lives, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 50, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=60_000, Unit::Milliseconds))]
    pub heartbeat_interval: u64,
    /// After how long a silence to suspect that the other side is dead, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 500, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=600_000, Unit::Milliseconds))]
    pub heartbeat_timeout: u64,
    /// After how long without an acknowledgement to give up a standby that lives, in milliseconds: output waits for it.
    #[arg(long, value_name = "MS", default_value_t = 30_000, allow_negative_numbers = true, value_parser = numbers::<u64>(1..=3_600_000, Unit::Milliseconds))]
    pub ack_timeout: u64,
    /// Have the standby go on with the guest after its devices or vCPUs here have been stuck for this long, in milliseconds. Less
    /// than 5000 is refused: a disk that does not answer may hold up a reset for 2000.
    #[arg(long, value_name = "MS", default_value_t = 10_000, allow_negative_numbers = true, value_parser = numbers::<u64>(LEAST_STALL_TIMEOUT..=3_600_000, Unit::Milliseconds))]
    pub stall_timeout: u64,
    /// How many checkpoints may be under way at once.
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=64, Unit::Count("a number of checkpoints")))]
    pub max_in_flight: u32,
    /// Memory for what was last sent of the guest's pages, in MiB, so that of a page only the lines go to the standby that have
    /// changed since; 0: always whole pages.
    #[arg(long, value_name = "MIB", default_value_t = 64, allow_negative_numbers = true, value_parser = numbers::<u64>(0..=1_048_576, Unit::Mebibytes))]
    pub delta_cache: u64,
    /// Hash all memory and state on both sides at every checkpoint and compare (slow; for tests).
    #[arg(long)]
    pub verify: bool,
    /// Encrypt and authenticate the link: a directory with `ca.pem`, `cert.pem` and `key.pem`. On both sides.
    #[arg(long, value_name = "DIR", conflicts_with = "insecure_plain_tcp")]
    pub tls: Option<PathBuf>,
    /// The name that the other side's certificate has to carry [default: of a standby, the host it is called by].
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub tls_peer: Option<String>,
    /// Allow a connection over the network that is neither encrypted nor authenticated.
    #[arg(long)]
    pub insecure_plain_tcp: bool,
    /// What to do about a thread that makes a system call which is not of its role: end the process, have the kernel
    /// note it, or have no filters.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::On)]
    pub seccomp: Mode,
    /// Record what becomes of every effect, for `kemari audit`: `FILE[,size=64MiB][,keep=4]`. The files are FILE.<run>.<number>,
    /// of this size each, so many of them for each run of this command.
    #[arg(long, value_name = "SPEC")]
    pub audit: Option<AuditSpec>,
    /// Listen here for `kemari ctl`.
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Write this process's id here; removed at the end.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
}

/// How to reach an arbiter on the network.
#[derive(Debug, Args)]
pub struct ArbiterAccess {
    /// etcd: the certificate authority that vouches for it (PEM). Without, the connection is plain.
    #[arg(long, value_name = "FILE")]
    pub arbiter_ca: Option<PathBuf>,
    /// etcd: this side's certificate (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["arbiter_key", "arbiter_ca"])]
    pub arbiter_cert: Option<PathBuf>,
    /// etcd: the private key of --arbiter-cert (PEM).
    #[arg(long, value_name = "FILE", requires = "arbiter_cert")]
    pub arbiter_key: Option<PathBuf>,
    /// etcd: the user; the password is read from --arbiter-password-file or from KEMARI_ARBITER_PASSWORD.
    #[arg(long, value_name = "NAME")]
    pub arbiter_user: Option<String>,
    /// etcd: the file with the user's password.
    #[arg(long, value_name = "FILE", requires = "arbiter_user")]
    pub arbiter_password_file: Option<PathBuf>,
    /// etcd: so long a side may perform effects without asking again, in milliseconds. A takeover waits for the other
    /// side's to end; output pauses when etcd is slower.
    #[arg(long, value_name = "MS", default_value_t = 1000, allow_negative_numbers = true, value_parser = numbers::<u64>(100..=600_000, Unit::Milliseconds))]
    pub arbiter_lease: u64,
}

/// `kemari run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The machine's name; both sides and the arbiter know it by it.
    #[arg(long, default_value = "default", value_parser = parse_name)]
    pub name: String,
    /// What to boot.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Guest memory in MiB; `MIB,file=PATH,share=on` has it in a file that other processes can map (not with fault tolerance).
    #[arg(long, value_name = "MIB", default_value = "512", allow_negative_numbers = true)]
    pub memory: MemoryConfig,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=254, Unit::Count("a number of vCPUs")))]
    pub cpus: u32,
    /// The devices.
    #[command(flatten)]
    pub devices: GuestDevices,
    /// Protection.
    #[command(flatten)]
    pub protection: ProtectionArgs,
    /// End the machine, with exit code 5, if it is not protected within this time after its start, in milliseconds, or if
    /// the standby refuses it.
    #[arg(long, value_name = "MS", requires = "standby", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=3_600_000, Unit::Milliseconds))]
    pub require_protected: Option<u64>,
}

impl RunArgs {
    /// The machine that is asked for.
    #[must_use]
    pub fn machine(&self) -> MachineConfig {
        let mut machine =
            machine(&self.name, self.memory.size, self.cpus, &self.boot, &self.devices);
        machine.memory_file.clone_from(&self.memory.file);
        machine
    }

    /// Why what is asked for cannot be run; before anything is opened.
    ///
    /// # Errors
    /// The first thing that no gate can stand before.
    pub fn check_gated(&self) -> Result<(), Refusal> {
        let protection = &self.protection;
        let fault_tolerance =
            protection.standby.is_some() || protection.arbiter != ArbiterSpec::None;
        refuse(self.devices.ungated(), fault_tolerance)?;
        refuse(Ungated::of(&self.machine()).map(in_memory), fault_tolerance)
    }
}

fn refuse(found: Option<Found>, fault_tolerance: bool) -> Result<(), Refusal> {
    found.and_then(|found| found.refusal(fault_tolerance)).map_or(Ok(()), Err)
}

/// Names the flag as well.
fn in_memory(found: Found) -> Found {
    Found { spelled: format!("--memory {}", found.spelled), ..found }
}

/// `kemari standby`
#[derive(Debug, Args)]
pub struct StandbyArgs {
    /// Where to wait for the primary: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    pub listen: LinkAddr,
    /// The machine's name, as the primary has it.
    #[arg(long, default_value = "default", value_parser = parse_name)]
    pub name: String,
    /// What to boot when the guest resets after a takeover.
    #[command(flatten)]
    pub boot: BootArgs,
    /// The primary's is what counts.
    #[arg(long, value_name = "MIB", hide = true, allow_negative_numbers = true)]
    pub memory: Option<MemoryConfig>,
    /// The devices, as the primary has them.
    #[command(flatten)]
    pub devices: GuestDevices,
    /// Protection; `--standby` is whom to protect the guest with after a takeover.
    #[command(flatten)]
    pub protection: ProtectionArgs,
}

impl StandbyArgs {
    /// A machine of the primary's size with this side's own backends.
    #[must_use]
    pub fn machine(&self, memory: u64, cpus: u32) -> MachineConfig {
        machine(&self.name, memory, cpus, &self.boot, &self.devices)
    }

    /// As [`RunArgs::check_gated`].
    ///
    /// # Errors
    /// As [`RunArgs::check_gated`]; a size of its own is another mistake.
    pub fn check_gated(&self) -> Result<(), String> {
        refuse(self.devices.ungated(), true).map_err(|refusal| refusal.to_string())?;
        let Some(memory) = &self.memory else { return Ok(()) };
        let file = memory.file.as_ref().map(|path| Found {
            kind: Ungated::SharedMemory,
            spelled: format!("--memory file={}", path.display()),
        });
        refuse(file, true).map_err(|refusal| refusal.to_string())?;
        Err("--memory: a standby has as much as its primary: leave it out".to_owned())
    }
}

fn machine(
    name: &str,
    memory: u64,
    cpus: u32,
    boot: &BootArgs,
    devices: &GuestDevices,
) -> MachineConfig {
    MachineConfig {
        boot: boot.source(),
        disks: devices.disks.iter().filter_map(Asked::gated).cloned().collect(),
        nets: devices.nets.iter().filter_map(Asked::gated).cloned().collect(),
        rng: devices.rng,
        rtc: devices.rtc,
        virtio_console: devices.virtio_console.clone(),
        devices: devices.devices.iter().filter_map(Asked::gated).cloned().collect(),
        serial: devices.serial.clone(),
        ..MachineConfig::bare(name, memory, cpus)
    }
}

/// `kemari ctl`
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The control socket of a running `kemari`.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Wait so long for the outcome of a command, in seconds; one that takes longer goes on all the same. 0: do not wait, the
    /// answer says `"done": false`. Where no answer has come 5 seconds later, it is given up.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, allow_negative_numbers = true, value_parser = numbers::<u64>(0..=86_400, Unit::Seconds))]
    pub timeout: u64,
    /// Print the answer as one line of JSON on a terminal, too; elsewhere it always is.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to ask or tell.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// Checked here, where the mistake was made; relative paths are the other process's.
fn address_of_a_standby(text: &str) -> Result<String, String> {
    text.parse::<LinkAddr>().map(|_| text.to_owned())
}

/// What can be asked or told. The answer is JSON when it has happened (exit code 0): one line, on a terminal a line for each
/// field. What was refused, has failed, or was not done in time is an error (exit code 1).
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum CtlCommand {
    /// Show what goes on.
    Status,
    /// Protect the machine with the standby at this address, in place of one that is being joined. Answers when the machine
    /// is protected, or why not; a standby that is not there is looked for until `run-alone`.
    Protect {
        /// HOST:PORT or unix:PATH
        #[arg(value_parser = address_of_a_standby)]
        addr: String,
    },
    /// Go on without the standby: the operator's decision, where there is no arbiter to ask. Answers when the machine runs
    /// alone.
    RunAlone,
    /// Have the standby take over. Answers when the guest runs there. Without an arbiter only when the primary is out of
    /// reach: the operator makes sure that it is dead.
    TakeOver,
    /// Give up the checkpoint of a standby that waits for an operator: the primary goes on.
    Discard,
    /// Use new keys on the link from here on, without ending it. Certificates are read anew by each new connection.
    RotateKeys,
    /// Begin the distributions of times and sizes in `status` anew.
    ResetStats,
    /// Press the guest's ACPI power button, so that its operating system shuts down. Answers when the machine is off, or that
    /// the guest does not react.
    Shutdown,
    /// Pull the plug: the guest is not told, and loses what it has not written. A standby ends, and gives up what it holds.
    PowerOff,
}

/// `kemari audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// What to do with the logs.
    #[command(subcommand)]
    pub command: AuditCommand,
}

/// What can be done with logs.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Prove P1 (nothing leaves before its checkpoint is acknowledged) and P2 (one performs). Exit codes: 0 proved, 1 broken,
    /// 2 what was named are no logs, 3 incomplete.
    Verify {
        /// What was given to --audit on each host that the virtual machine has had: primary, standby, and every later one.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Judge what rotation has left; that it has taken what came before is no reason for 3.
        #[arg(long)]
        rotated: bool,
    },
    /// One line for each record.
    Show {
        /// What was given to --audit, or one of the files.
        file: PathBuf,
    },
}

/// `kemari probe`
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// One line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Measure how fast checkpoints could be taken and sent here at best, in microseconds: takes seconds.
    #[arg(long)]
    pub limits: bool,
    /// The numbers of dirty pages to measure for.
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_values_t = [16, 128, 1024], requires = "limits", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=1 << 20, Unit::Count("a number of pages")))]
    pub pages: Vec<u64>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_machine_is_read() {
        let line = "kemari run --kernel k --cmdline -x=1 --memory 64 --cpus 2 --disk path=d --net stream=s --rng --serial none";
        let Subcommand::Run(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("it is a run")
        };
        let machine = args.machine();
        assert_eq!((machine.memory, machine.cpus, machine.rng), (64 << 20, 2, true));
        assert_eq!(machine.boot.unwrap().cmdline, "-x=1");
        assert_eq!((machine.disks.len(), machine.nets.len()), (1, 1));
        assert_eq!(args.protection.epoch_interval, 25);
    }
}
