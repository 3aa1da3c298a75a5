//! A machine's configuration from the command line. All values are checked before any file or
//! device is opened.

mod console;
mod device;
mod disk;
mod memory;
mod net;
mod queues;
pub mod slots;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use self::console::ConsoleConfig;
pub use self::device::{DeviceBackend, DeviceConfig};
pub use self::disk::{DiskCache, DiskConfig, FenceRecord};
pub use self::memory::MemoryConfig;
pub use self::net::{NetBackend, NetConfig, NetModel, socket_path};

use kemari_hypervisor::layout;

/// The configuration of one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// The machine's name, for log lines and the arbiter.
    pub name: String,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The file that holds guest memory, where other processes can map it. Not possible with fault
    /// tolerance. `None`: no other process can map it.
    pub memory_file: Option<PathBuf>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The boot files; a standby needs them only for a reset after a takeover.
    pub boot: Option<BootSource>,
    /// Disks, in the order of their virtio-mmio windows.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, after the disks.
    pub nets: Vec<NetConfig>,
    /// Whether there is a virtio-rng device.
    pub rng: bool,
    /// Whether there is a real-time clock (PL031).
    pub rtc: bool,
    /// The virtio console, if there is one.
    pub virtio_console: Option<ConsoleConfig>,
    /// Devices of the catalogue, after all others.
    pub devices: Vec<DeviceConfig>,
    /// The backend of the serial line.
    pub serial: ConsoleConfig,
}

/// The guest's kernel, initrd and command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSource {
    /// A bzImage or an ELF image.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Why a configuration is not valid, with the flag to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl MachineConfig {
    /// A machine without a kernel and without devices, whose serial line has no backend. `memory`
    /// is in bytes.
    #[must_use]
    pub fn bare(name: &str, memory: u64, cpus: u32) -> Self {
        Self {
            name: name.to_owned(),
            memory,
            memory_file: None,
            cpus,
            boot: None,
            disks: Vec::new(),
            nets: Vec::new(),
            rng: false,
            rtc: false,
            virtio_console: None,
            devices: Vec::new(),
            serial: ConsoleConfig::None,
        }
    }

    /// Checks the flags against each other.
    ///
    /// # Errors
    /// When flags conflict; the error names the first conflict.
    pub fn check(&self) -> Result<(), ConfigError> {
        // Check the number of devices first: with too many, slots and addresses would not be
        // unique.
        let (asked_for, room) =
            (self.asked_for().count(), layout::VIRTIO_MMIO_MAX + layout::PCI_MAX);
        if asked_for > room {
            return Err(ConfigError(format!(
                "{asked_for} devices: the machine has {} windows and room for {} PCI devices; remove some --disk, --net or --device",
                layout::VIRTIO_MMIO_MAX,
                layout::PCI_MAX
            )));
        }
        if self.on_stdio() > 1 {
            return Err(ConfigError(
                "--serial, --virtio-console and --device: expected `stdio` once, as there is one standard input, \
                found it twice (it is the default of --serial): set one of them to `none` or `file=PATH`"
                    .into(),
            ));
        }
        let mut macs = BTreeSet::new();
        for (_, network) in self.networks() {
            if !macs.insert(network.mac) {
                let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
                return Err(ConfigError(format!(
                    "--net mac={mac}: two networks have it, expected an address of its own for each; change one of them"
                )));
            }
        }
        let mut taps = BTreeSet::new();
        for (_, network) in self.networks() {
            if let NetBackend::Tap(name) = network.backend
                && !taps.insert(name)
            {
                return Err(ConfigError(format!(
                    "--net tap={name}: given twice, expected each interface once; use another interface for one of \
                    the networks"
                )));
            }
        }
        let mut disks = BTreeSet::new();
        for (slot, disk) in self.slots().filter_map(|slot| Some((slot, slot.disk()?))) {
            if !disks.insert(&disk.path) {
                return Err(ConfigError(format!(
                    "{} {}: given twice, expected each image once; use another image for one of the disks",
                    slot.flag(),
                    disk.path.display()
                )));
            }
        }
        Ok(())
    }

    /// Whether a console uses standard input and output.
    #[must_use]
    pub fn is_on_stdio(&self) -> bool {
        self.on_stdio() > 0
    }

    fn on_stdio(&self) -> usize {
        self.consoles().filter(|(_, console)| **console == ConsoleConfig::Stdio).count()
    }
}

/// Checks the name of a machine, which becomes part of file names.
///
/// # Errors
/// When the name breaks a rule; the error lists the rules.
pub fn parse_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(fits) {
        return Err(
            "expected 1 to 64 ASCII letters, digits, `-`, `_` or `.`, not beginning with `.`"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        assert!(parse_name("vm-1").is_ok());
        assert!(parse_name("../x").is_err());
    }

    #[test]
    fn what_no_single_flag_can_tell_is_checked() {
        let good = MachineConfig {
            disks: vec!["path=a".parse().unwrap()],
            nets: vec!["tap=a".parse().unwrap(), "stream=/b".parse().unwrap()],
            rng: true,
            serial: ConsoleConfig::Stdio,
            ..MachineConfig::bare("vm", 1 << 28, 1)
        };
        good.check().unwrap();
        let with =
            |device: &str| MachineConfig { devices: vec![device.parse().unwrap()], ..good.clone() };
        with("beeper,disk=path=b").check().unwrap();
        for (device, found) in [
            ("beeper,console=stdio", "--virtio-console"),
            ("beeper,disk=path=a", "--device a: given twice"),
            ("beeper,tap=a", "tap=a: given twice"),
        ] {
            assert!(with(device).check().unwrap_err().0.contains(found), "{device}");
        }
        let mac = MachineConfig {
            nets: ["stream=/a,mac=52:54:00:00:00:01", "stream=/b,mac=52:54:00:00:00:01"]
                .map(|net| net.parse().unwrap())
                .into(),
            ..good.clone()
        };
        assert!(mac.check().unwrap_err().0.contains("mac=52:54:00:00:00:01"));
        let many = MachineConfig { devices: vec!["beeper".parse().unwrap(); 70_000], ..good };
        assert!(many.check().unwrap_err().0.contains("70004 devices"));
    }
}
