//! `kemari standby`.

use clap::Args;
use kemari_machine::config::{MachineConfig, MemoryConfig, parse_name};
use kemari_machine::ungated::{Found, Ungated};
use kemari_replication::link::LinkAddr;

use super::PairArgs;
use super::machine::{BootArgs, GuestDevices, machine, refuse};

const EXAMPLES: &str = "\
Example:
  kemari standby --listen host-b:7000 --disk path=web.raw --net tap=tap0 --tls /etc/kemari/tls --arbiter file:/mnt/arbiter

The devices are those of the primary, with the files and interfaces of this host. Memory, vCPUs and kernel come from the primary.";

/// `kemari standby`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StandbyArgs {
    /// Name of the machine: the same on both sides, and unique at the arbiter.
    #[arg(long, default_value = "default", value_parser = parse_name, help_heading = "Machine")]
    pub name: String,
    /// The kernel of a guest that resets after a takeover.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Not allowed on a standby: the primary sets the memory size.
    #[arg(long, value_name = "MIB", hide = true, allow_negative_numbers = true)]
    pub memory: Option<MemoryConfig>,
    /// The devices, as the primary has them.
    #[command(flatten)]
    pub devices: GuestDevices,
    /// Address to listen on for the primary: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR", help_heading = "Replication")]
    pub listen: LinkAddr,
    /// What both sides have.
    #[command(flatten)]
    pub pair: PairArgs,
}

impl StandbyArgs {
    /// A machine of the primary's size with the backends of this side.
    #[must_use]
    pub fn machine(&self, memory: u64, cpus: u32) -> MachineConfig {
        machine(&self.name, memory, cpus, &self.boot, &self.devices)
    }

    /// Checks, before anything is opened, that every device can be gated, and that no memory size
    /// is given.
    ///
    /// # Errors
    /// A refusal: of the first device that cannot be gated, with what to use instead, or of a
    /// memory size.
    pub fn check_gated(&self) -> Result<(), String> {
        self.devices.check_gated(true).map_err(|refusal| refusal.to_string())?;
        let Some(memory) = &self.memory else { return Ok(()) };
        let file = memory.file.as_ref().map(|path| Found {
            kind: Ungated::SharedMemory,
            spelled: format!("--memory file={}", path.display()),
        });
        refuse(file, true).map_err(|refusal| refusal.to_string())?;
        Err("--memory: a standby has the memory size of its primary; remove the flag".to_owned())
    }
}
