//! The plan of device slots: the only list by which devices are created, given backends, checked
//! and compared.
//!
//! Slots below [`FIRST_SLOT`] belong to the board, which every machine has. Then come the disks,
//! the networks, the source of random bytes, the virtio console, and the devices of the catalogue,
//! each group in the order of the command line. A network has the same slot with either model, so
//! that the handshake can name both models if they differ.

use super::{
    ConsoleConfig, DeviceBackend, DeviceConfig, DiskConfig, MachineConfig, NetBackend, NetConfig,
};

/// The slot of the serial port.
pub const SERIAL_SLOT: u16 = 0;
/// The slot of the power button and the power-off registers.
pub const POWER_SLOT: u16 = 1;
/// The slot of the keyboard controller, which resets the machine.
pub const RESET_SLOT: u16 = 2;
/// The slot of the real-time clock.
pub const RTC_SLOT: u16 = 3;
/// The slot of the PCI bus.
pub const PCI_SLOT: u16 = 8;
/// The first slot after those of the board.
pub const FIRST_SLOT: u16 = 16;

/// A slot and its device.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'c> {
    /// The slot's number, by which both sides of a pair identify the device.
    pub number: u16,
    /// The device.
    pub device: Planned<'c>,
}

/// The serial port, or a device that the command line requests.
#[derive(Clone, Copy, Debug)]
pub enum Planned<'c> {
    /// A disk.
    Disk(&'c DiskConfig),
    /// A network interface, with the guest's MAC address.
    Net(&'c NetConfig, [u8; 6]),
    /// A source of random bytes.
    Random,
    /// A virtio console.
    Console(&'c ConsoleConfig),
    /// A device of the catalogue, with the MAC address to announce if it has a network.
    Named(&'c DeviceConfig, [u8; 6]),
    /// The serial port.
    Serial(&'c ConsoleConfig),
}

/// The backend of a network device.
#[derive(Clone, Copy, Debug)]
pub struct Network<'c> {
    /// The tap interface or the sockets.
    pub backend: &'c NetBackend,
    /// Whether to create a tap that does not exist.
    pub create: bool,
    /// The MAC address to announce after a takeover.
    pub mac: [u8; 6],
}

impl<'c> Slot<'c> {
    fn backend(&self) -> Option<&'c DeviceBackend> {
        match self.device {
            Planned::Named(device, _) => device.backend.as_ref(),
            _ => None,
        }
    }

    /// The flag that adds the device.
    #[must_use]
    pub fn flag(&self) -> &'static str {
        match self.device {
            Planned::Disk(_) => "--disk",
            Planned::Net(..) => "--net",
            Planned::Random => "--rng",
            Planned::Console(_) => "--virtio-console",
            Planned::Named(..) => "--device",
            Planned::Serial(_) => "--serial",
        }
    }

    /// Its disk, if it has one.
    #[must_use]
    pub fn disk(&self) -> Option<&'c DiskConfig> {
        match (self.device, self.backend()) {
            (Planned::Disk(disk), _) | (_, Some(DeviceBackend::Disk(disk))) => Some(disk),
            _ => None,
        }
    }

    /// Its network, if it has one.
    #[must_use]
    pub fn network(&self) -> Option<Network<'c>> {
        match (self.device, self.backend()) {
            (Planned::Net(net, mac), _) => {
                Some(Network { backend: &net.backend, create: net.create, mac })
            }
            (Planned::Named(_, mac), Some(DeviceBackend::Net(backend))) => {
                Some(Network { backend, create: false, mac })
            }
            _ => None,
        }
    }

    /// Its console, if it has one.
    #[must_use]
    pub fn console(&self) -> Option<&'c ConsoleConfig> {
        match (self.device, self.backend()) {
            (Planned::Console(console) | Planned::Serial(console), _)
            | (_, Some(DeviceBackend::Console(console))) => Some(console),
            _ => None,
        }
    }
}

impl MachineConfig {
    /// All slots in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let serial = Slot { number: SERIAL_SLOT, device: Planned::Serial(&self.serial) };
        // The numbers suffice: `check` refuses a machine with too many devices.
        let numbered = (FIRST_SLOT..=u16::MAX).zip(self.asked_for());
        std::iter::once(serial).chain(numbered.map(|(number, device)| Slot { number, device }))
    }

    pub(super) fn asked_for(&self) -> impl Iterator<Item = Planned<'_>> {
        let disks = self.disks.iter().map(Planned::Disk);
        let nets = self.nets.iter().enumerate();
        let nets = nets.map(|(at, net)| Planned::Net(net, net.mac.unwrap_or(self.made_mac(at))));
        let random = self.rng.then_some(Planned::Random);
        let console = self.virtio_console.as_ref().map(Planned::Console);
        let named = (self.nets.len()..).zip(&self.devices);
        let named = named.map(|(at, device)| Planned::Named(device, self.made_mac(at)));
        disks.chain(nets).chain(random).chain(console).chain(named)
    }

    /// A MAC address derived from the machine's name: both hosts of a pair then have the same
    /// without configuration.
    fn made_mac(&self, at: usize) -> [u8; 6] {
        let hash = xxhash_rust::xxh3::xxh3_64(self.name.as_bytes()).to_le_bytes();
        // 0x52 sets the bit of a locally administered address and clears the bit of a group
        // address.
        [0x52, 0x54, 0x00, hash[0], hash[1], hash[2].wrapping_add(at as u8)]
    }

    /// Every disk with its slot.
    pub fn disks(&self) -> impl Iterator<Item = (u16, &DiskConfig)> {
        self.slots().filter_map(|slot| Some((slot.number, slot.disk()?)))
    }

    /// Every network with its slot.
    pub fn networks(&self) -> impl Iterator<Item = (u16, Network<'_>)> {
        self.slots().filter_map(|slot| Some((slot.number, slot.network()?)))
    }

    /// Every console with its slot.
    pub fn consoles(&self) -> impl Iterator<Item = (u16, &ConsoleConfig)> {
        self.slots().filter_map(|slot| Some((slot.number, slot.console()?)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn machine() -> MachineConfig {
        MachineConfig {
            disks: vec!["path=/a".parse().unwrap()],
            nets: vec!["stream=/s".parse().unwrap(), "tap=t,model=e1000".parse().unwrap()],
            rng: true,
            virtio_console: Some(ConsoleConfig::None),
            devices: ["beeper", "beeper,disk=path=/b", "beeper,stream=/u", "beeper,console=none"]
                .map(|device| device.parse().unwrap())
                .into(),
            ..MachineConfig::bare("vm", 1 << 28, 1)
        }
    }

    #[test]
    fn each_device_has_a_slot_of_its_own_in_the_order_of_the_command_line() {
        let machine = machine();
        let numbers: Vec<u16> = machine.slots().map(|slot| slot.number).collect();
        assert_eq!(numbers, [0, 16, 17, 18, 19, 20, 21, 22, 23, 24]);
    }

    /// P2, P3. Fails if the plan lacks a device of the catalogue: such a device would have no fence
    /// record, no mark on its disk, and the address of another network.
    #[test]
    fn what_is_behind_a_device_by_name_is_in_the_plan() {
        let machine = machine();
        let disks = machine.disks().map(|(slot, disk)| (slot, disk.path.to_str().unwrap()));
        assert_eq!(disks.collect::<Vec<_>>(), [(16, "/a"), (22, "/b")]);
        let consoles: Vec<u16> = machine.consoles().map(|(slot, _)| slot).collect();
        assert_eq!(consoles, [0, 20, 24]);
        let networks: Vec<_> = machine.networks().collect();
        assert_eq!(networks.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [17, 18, 23]);
        let macs: std::collections::BTreeSet<_> =
            networks.iter().map(|(_, network)| network.mac).collect();
        assert_eq!(macs.len(), 3, "{networks:?}");
    }
}
