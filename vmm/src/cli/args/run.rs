//! `kemari run`.

use clap::Args;
use kemari_arbiter::ArbiterSpec;
use kemari_machine::config::{MachineConfig, MemoryConfig, parse_name};
use kemari_machine::ungated::{Found, Refusal, Ungated};
use kemari_support::values::{Unit, numbers};

use super::PairArgs;
use super::machine::{BootArgs, GuestDevices, machine, refuse};

const EXAMPLES: &str = "\
Examples:
  A guest on this terminal, without a standby:
    kemari run --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0 --disk path=web.raw
  A guest that host-b protects:
    kemari run --kernel vmlinuz --disk path=web.raw --net tap=tap0 --standby host-b:7000 --tls /etc/kemari/tls --arbiter file:/mnt/arbiter";

/// `kemari run`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Name of the machine: the same on both sides, and unique at the arbiter.
    #[arg(long, default_value = "default", value_parser = parse_name, help_heading = "Machine")]
    pub name: String,
    /// What to boot.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Guest memory.
    ///
    /// `MIB,file=PATH,share=on` places it in a file that other processes can map; not possible with
    /// fault tolerance.
    #[arg(
        long,
        value_name = "MIB",
        default_value = "512",
        allow_negative_numbers = true,
        help_heading = "Machine"
    )]
    pub memory: MemoryConfig,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=254, Unit::Count("a number of vCPUs")), help_heading = "Machine")]
    pub cpus: u32,
    /// The devices.
    #[command(flatten)]
    pub devices: GuestDevices,
    /// What both sides have.
    #[command(flatten)]
    pub pair: PairArgs,
    /// Exit with code 5 if the standby refuses this machine, or if the machine is not protected
    /// this long after its start.
    #[arg(long, value_name = "MS", requires = "standby", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=3_600_000, Unit::Milliseconds), help_heading = "Replication")]
    pub require_protected: Option<u64>,
    /// Take the term over from its recorded holder, at the arbiter or beside a disk. Use only if
    /// that host is known to be dead.
    #[arg(long, help_heading = "Arbiter")]
    pub seize: bool,
}

impl RunArgs {
    /// The machine of these flags.
    #[must_use]
    pub fn machine(&self) -> MachineConfig {
        let mut machine =
            machine(&self.name, self.memory.size, self.cpus, &self.boot, &self.devices);
        machine.memory_file.clone_from(&self.memory.file);
        machine
    }

    /// Checks, before anything is opened, that every device and guest memory can be gated.
    ///
    /// # Errors
    /// The refusal of the first one that cannot, with what to use instead.
    pub fn check_gated(&self) -> Result<(), Refusal> {
        let fault_tolerance =
            self.pair.replication.standby.is_some() || self.pair.arbiter.spec != ArbiterSpec::None;
        self.devices.check_gated(fault_tolerance)?;
        refuse(Ungated::of(&self.machine()).map(in_memory), fault_tolerance)
    }
}

/// Adds the flag to the error's text.
fn in_memory(found: Found) -> Found {
    Found { spelled: format!("--memory {}", found.spelled), ..found }
}
