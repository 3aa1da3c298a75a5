//! Creates the planned devices and gives each its place: a virtio-mmio window, ports, or a function
//! on the PCI bus.

use std::sync::{Arc, Mutex};

use devices::{
    Block, BlockConfig, Console, E1000, Entropy, Net, NetConfig as NetDevice, PowerControl,
};
use io_gate::{Device, RegisterDevice};
use io_gate_host::adapter::{I8042, Rtc, Serial};
use io_gate_host::backend::disk::{Disk, DiskOptions};
use io_gate_host::{GateHost, RegisterSlot, VirtioSlot};
use kemari_hypervisor::kvm::Vm;
use kemari_hypervisor::layout::{self, MmioWindow};

use super::DeviceSet;
use crate::catalog::{self, Kind};
use crate::config::slots::{POWER_SLOT, Planned, RESET_SLOT, RTC_SLOT, SERIAL_SLOT};
use crate::config::{
    DeviceConfig, DiskConfig, FenceRecord, MachineConfig, NetBackend, NetConfig, NetModel,
};
use crate::device_error::DeviceSetupError;
use crate::device_thread::LoopHandle;
use crate::events::Events;
use crate::gated::{self, Make, NotGated};
use crate::interrupt::IrqLine;
use crate::pci::{Description, PciBus};
use crate::register_port::{Place, RegisterPort};
use crate::virtio_mmio::VirtioMmio;

/// The e1000's identification on the PCI bus.
const E1000_CARD: Description = Description {
    vendor: E1000::VENDOR_ID,
    device: E1000::DEVICE_ID,
    revision: 2,
    // Class: network controller, Ethernet.
    class: 0x02_0000,
    memory: E1000::WINDOW as u32,
    io: E1000::IO_WINDOW as u32,
    interrupt: true,
};
impl DeviceSet {
    /// Creates the devices of `config`, without their backends. P5: creating a device runs its
    /// code, so this happens on `device_thread`, which has given up its rights.
    pub(crate) fn new(
        config: &MachineConfig,
        vm: &Vm,
        gate: Arc<GateHost>,
        events: Arc<Events>,
        device_thread: &LoopHandle,
    ) -> Result<Self, DeviceSetupError> {
        let maker = Maker { gate: &gate, device_thread };
        let mut set = Self {
            gate: gate.clone(),
            events,
            virtio: Vec::new(),
            windows: 0,
            pci: None,
            registers: Vec::new(),
            details: Vec::new(),
            attached: Mutex::new(false),
            reserved: Mutex::default(),
            opened: Mutex::default(),
        };
        let mut cards = Vec::new();
        for slot in config.slots() {
            let Some((device, detail)) = described(slot.device)? else { continue };
            match device {
                Made::Virtio(device) => {
                    set.add_virtio(vm, maker.virtio(slot.number, device)?)?;
                    set.details.push((slot.number, detail));
                }
                Made::Registers(device) => {
                    let window = set.next_window()?;
                    let place = Place::window(window.base, window.size);
                    let irq = IrqLine::new(vm.pins(), window.gsi);
                    set.add_register(maker.registers(slot.number, device)?, &[place], Some(irq));
                    set.details.push((slot.number, detail));
                }
                Made::Pci(description, device) => {
                    let place = layout::pci_places().nth(cards.len());
                    let place =
                        place.ok_or(DeviceSetupError::TooManyPci { wanted: cards.len() + 1 })?;
                    let irq = IrqLine::new(vm.pins(), place.gsi);
                    let port =
                        set.add_register(maker.registers(slot.number, device)?, &[], Some(irq));
                    let detail = format!("{detail}, PCI 00:{:02x}.0", place.device);
                    set.details.push((slot.number, detail));
                    cards.push((description, port));
                }
            }
        }
        if !cards.is_empty() {
            set.pci = Some(Arc::new(PciBus::new(cards)));
        }
        set.add_board(config, vm, &maker)?;
        Ok(set)
    }

    /// Adds the devices that every machine has.
    fn add_board(
        &mut self,
        config: &MachineConfig,
        vm: &Vm,
        maker: &Maker<'_>,
    ) -> Result<(), DeviceSetupError> {
        let serial = maker.registers(SERIAL_SLOT, gated::registers(Serial::new))?;
        let irq = IrqLine::new(vm.pins(), layout::COM1_GSI);
        self.add_register(
            serial,
            &[Place::ports(layout::COM1_PORT, layout::COM1_PORTS)],
            Some(irq),
        );
        let power = maker.registers(POWER_SLOT, gated::registers(PowerControl::new))?;
        let sci = IrqLine::new(vm.pins(), layout::SCI_GSI);
        let ports = Place::ports(layout::PM1A_EVT_PORT, PowerControl::WINDOW as u16);
        self.add_register(power, &[ports], Some(sci));
        let keyboard = maker.registers(RESET_SLOT, gated::registers(I8042::new))?;
        // Add two ranges: other devices have the ports between these two.
        let ports = [layout::I8042_DATA_PORT, layout::I8042_PORT].map(|port| Place::Ports {
            first: port,
            count: 1,
            offset: (port - layout::I8042_DATA_PORT).into(),
        });
        self.add_register(keyboard, &ports, None);
        if config.rtc {
            let rtc = maker.registers(RTC_SLOT, gated::registers(Rtc::new))?;
            let window = Place::window(layout::RTC_BASE, layout::RTC_SIZE);
            self.add_register(rtc, &[window], None);
        }
        Ok(())
    }

    fn next_window(&mut self) -> Result<MmioWindow, DeviceSetupError> {
        let wanted = self.windows + 1;
        let window = layout::virtio_mmio_window(self.windows);
        self.windows = wanted;
        window.ok_or(DeviceSetupError::TooMany { wanted })
    }

    fn add_virtio(&mut self, vm: &Vm, slot: VirtioSlot) -> Result<(), DeviceSetupError> {
        let window = self.next_window()?;
        let irq = IrqLine::new(vm.pins(), window.gsi);
        let transport = VirtioMmio::new(window, irq, slot)?;
        transport.register_kicks(vm);
        self.virtio.push(Arc::new(transport));
        Ok(())
    }

    fn add_register(
        &mut self,
        slot: RegisterSlot,
        places: &[Place],
        irq: Option<IrqLine>,
    ) -> Arc<RegisterPort> {
        let port = Arc::new(RegisterPort::new(slot, places, irq));
        self.registers.push(port.clone());
        port
    }
}

/// Creates devices on the device thread and puts them into their slots.
struct Maker<'m> {
    gate: &'m Arc<GateHost>,
    device_thread: &'m LoopHandle,
}

impl Maker<'_> {
    fn virtio(&self, slot: u16, make: Make<dyn Device>) -> Result<VirtioSlot, DeviceSetupError> {
        self.call(move |gate| Ok(VirtioSlot::new(slot, make()?, gate)))
    }

    fn registers(
        &self,
        slot: u16,
        make: Make<dyn RegisterDevice>,
    ) -> Result<RegisterSlot, DeviceSetupError> {
        self.call(move |gate| Ok(RegisterSlot::new(slot, make()?, gate)))
    }

    fn call<T: Send + 'static>(
        &self,
        make: impl FnOnce(Arc<GateHost>) -> Result<T, NotGated> + Send + 'static,
    ) -> Result<T, DeviceSetupError> {
        let gate = self.gate.clone();
        let made = self.device_thread.call(move |_| make(gate));
        Ok(made.map_err(|ended| DeviceSetupError::System(std::io::Error::other(ended)))??)
    }
}

/// A device without a place, as a function that creates it.
enum Made {
    Virtio(Make<dyn Device>),
    Registers(Make<dyn RegisterDevice>),
    Pci(Description, Make<dyn RegisterDevice>),
}

/// Prepares a device, with the text that the handshake compares besides its kind; `None` for a
/// device of the board.
fn described(planned: Planned<'_>) -> Result<Option<(Made, String)>, DeviceSetupError> {
    Ok(Some(match planned {
        Planned::Disk(disk) => block(disk)?,
        Planned::Net(net, mac) => network(net, mac),
        Planned::Random => (Made::Virtio(gated::virtio(Entropy::new)), String::new()),
        Planned::Console(_) => (Made::Virtio(gated::virtio(Console::new)), String::new()),
        Planned::Named(device, _) => (named(device)?, device.name.clone()),
        Planned::Serial(_) => return Ok(None),
    }))
}

fn block(disk: &DiskConfig) -> Result<(Made, String), DeviceSetupError> {
    // Open the disk only for its size: attaching it needs the lock and the right to write.
    let (sectors, block) = disk_size(disk)?;
    let config = BlockConfig {
        sectors,
        read_only: disk.read_only,
        serial: disk.serial.clone().into_bytes(),
        queues: disk.queues,
    };
    let access = if disk.read_only { "read-only" } else { "writable" };
    // A side that takes over must write in the same blocks, or refuse now.
    let blocks = block.map(|block| format!(", directly in blocks of {block} bytes"));
    let detail = format!(
        "{sectors} sectors, {access}, serial `{}`{}{}{}",
        disk.serial,
        several(disk.queues, "request queues"),
        blocks.unwrap_or_default(),
        guards(disk)
    );
    Ok((Made::Virtio(gated::virtio(move || Block::new(config))), detail))
}

fn network(net: &NetConfig, mac: [u8; 6]) -> (Made, String) {
    let offloads = matches!(net.backend, NetBackend::Tap(_));
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    let device = match net.model {
        NetModel::Virtio => {
            let config = NetDevice { mac, offloads, pairs: net.queues };
            Made::Virtio(gated::virtio(move || Net::new(config)))
        }
        NetModel::E1000 => Made::Pci(E1000_CARD, gated::registers(move || E1000::new(mac))),
    };
    (device, format!("mac {text}{}", several(net.queues, "pairs of queues")))
}

fn named(device: &DeviceConfig) -> Result<Made, DeviceSetupError> {
    match catalog::find(&device.name).map(|entry| entry.kind) {
        Some(Kind::Virtio(make)) => Ok(Made::Virtio(make())),
        Some(Kind::Registers(make)) => Ok(Made::Registers(make())),
        None => Err(DeviceSetupError::Unknown { name: device.name.clone() }),
    }
}

/// The text that the handshake compares for a device with several queues.
fn several(queues: u16, what: &str) -> String {
    if queues > 1 { format!(", {queues} {what}") } else { String::new() }
}

/// P2, P3: both sides must protect the disk's content by the same settings. Otherwise a takeover
/// could weaken a write that was reported complete, or leave the former side with a record whose
/// term never rises.
fn guards(disk: &DiskConfig) -> String {
    let mut guards = String::new();
    if !disk.read_only && !disk.cache.write_through(true) {
        guards.push_str(", cache=writeback");
    }
    if !disk.read_only && disk.fence == FenceRecord::Off {
        guards.push_str(", fence=off");
    }
    guards
}

/// The number of sectors; and the block size of the storage in bytes, if it is written directly.
fn disk_size(config: &DiskConfig) -> Result<(u64, Option<u64>), DeviceSetupError> {
    let options = DiskOptions { read_only: true, direct: config.direct, ..DiskOptions::default() };
    let disk = Disk::open(&config.path, options)?;
    let metadata = std::fs::metadata(&config.path)?;
    if metadata.is_file() && !metadata.len().is_multiple_of(512) {
        return Err(DeviceSetupError::DiskSize {
            path: config.path.clone(),
            bytes: metadata.len(),
        });
    }
    Ok((disk.sectors(), disk.direct_block()))
}
