//! The guest's hardware and boot files: the groups Machine, Disks and Network.

use std::path::PathBuf;

use clap::Args;
use kemari_machine::config::{
    BootSource, ConsoleConfig, DeviceConfig, DiskConfig, MachineConfig, NetConfig,
};
use kemari_machine::ungated::{Asked, Found, Refusal, Ungated};

/// The kernel. A standby receives the primary's; a copy of its own saves the transfer and has to be
/// the same.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct BootArgs {
    /// Kernel to boot: a bzImage or a 64-bit ELF image (PVH).
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Command line of the kernel.
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

/// The devices: the same on both hosts, each with its host's own files and interfaces.
#[derive(Debug, Args)]
pub struct GuestDevices {
    /// Serial port (8250): `stdio`, `file=PATH` or `none`.
    ///
    /// `stdio`: Ctrl-A x quits; on a terminal, `2>>FILE` keeps the log apart from the guest's
    /// output.
    ///
    /// `file=PATH`: a new file, or an earlier console file, which starts empty. Text of any other
    /// file is kept, and the output is appended.
    #[arg(long, value_name = "SPEC", default_value = "stdio", help_heading = "Machine")]
    pub serial: ConsoleConfig,
    /// Add a virtio console: `stdio`, `file=PATH` or `none`.
    #[arg(long, value_name = "SPEC", help_heading = "Machine")]
    pub virtio_console: Option<ConsoleConfig>,
    /// Add a source of random bytes (virtio-rng).
    #[arg(long, help_heading = "Machine")]
    pub rng: bool,
    /// Add a real-time clock (PL031) at address 0xd0100000.
    #[arg(long, help_heading = "Machine")]
    pub rtc: bool,
    /// Add a device from the catalogue: `NAME[,console=SPEC]`. Repeatable.
    #[arg(long = "device", value_name = "SPEC", help_heading = "Machine")]
    pub devices: Vec<Asked<DeviceConfig>>,
    /// Add a disk: `path=FILE[,OPTION...]`. Repeatable.
    ///
    /// Options: `readonly=on`; `serial=TEXT`; `cache=writethrough|writeback`; `direct=on` bypasses
    /// the page cache (O_DIRECT); `queues=N`; `format=raw` uses the file as raw even if it looks
    /// like another format; `fence=FILE|off` places the record of the term that may write [default:
    /// beside the image].
    ///
    /// Write a comma in a path twice.
    #[arg(long = "disk", value_name = "SPEC", help_heading = "Disks")]
    pub disks: Vec<Asked<DiskConfig>>,
    /// Add a network interface: `tap=IFNAME`, `stream=SOCKET` or `dgram=LOCAL:PEER`, then
    /// `[,OPTION...]`. Repeatable.
    ///
    /// Options: `create=on` creates the tap (down, not in a bridge); `mac=XX:XX:XX:XX:XX:XX`;
    /// `queues=N` pairs of queues; `model=virtio|e1000` [default: virtio].
    #[arg(long = "net", value_name = "SPEC", help_heading = "Network")]
    pub nets: Vec<Asked<NetConfig>>,
    /// Devices that are refused.
    #[command(flatten)]
    pub ungated: UngatedDevices,
}

/// Flags of other monitors for devices that cannot be gated: known, so that the error says why and
/// what to use instead.
#[derive(Debug, Args)]
pub struct UngatedDevices {
    /// A host device.
    #[arg(long, value_name = "SPEC", hide = true)]
    pub vfio: Vec<String>,
    /// Hardware that serves virtqueues.
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
    /// The first device that cannot be gated.
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

    /// # Errors
    /// The refusal of the first device that cannot be gated, with what to use instead.
    pub(super) fn check_gated(&self, fault_tolerance: bool) -> Result<(), Refusal> {
        refuse(self.ungated(), fault_tolerance)
    }
}

/// # Errors
/// The refusal, if the device cannot be used.
pub(super) fn refuse(found: Option<Found>, fault_tolerance: bool) -> Result<(), Refusal> {
    found.and_then(|found| found.refusal(fault_tolerance)).map_or(Ok(()), Err)
}

/// The configuration of a machine with these devices.
pub(super) fn machine(
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
