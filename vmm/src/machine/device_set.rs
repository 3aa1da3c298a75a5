//! The machine's devices: which there are, in which slots, what is behind them, and their saved state.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::{Block, BlockConfig, Button, Console, E1000, Entropy, Net, NetConfig, PowerControl};
use ft_core::handshake::DeviceLayout;
use io_gate::{Device, Port, RegisterDevice};
use io_gate_host::adapter::{I8042, Rtc, Serial};
use io_gate_host::backend::ShareError;
use io_gate_host::backend::console::{Console as ConsoleBackend, ConsoleError};
use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions};
use io_gate_host::backend::net::{Net as NetBackendOpen, NetError};
use io_gate_host::{
    Backend, Completion, GateHost, RegisterSlot, RegisterState, SlotError, VirtioSlot,
};
use serde::{Deserialize, Serialize};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

use super::bus::QuietPort;
use super::catalog::{self, Kind};
use super::device_thread::LoopHandle;
use super::disks::{self, Opens};
use super::events::Events;
use super::gated::{self, Make, NotGated};
use super::interface;
use super::interrupt::IrqLine;
use super::pci::{Description, PciBus, PciError, PciState};
use super::register_port::{Place, RegisterPort};
use super::virtio_mmio::{TransportError, TransportState, VirtioMmio};
use crate::config::{
    ConsoleConfig, DeviceBackend, DiskConfig, FenceRecord, MachineConfig, NetBackend, NetModel,
};
use crate::kvm::Vm;
use crate::layout::{self, MmioWindow};

/// Slots of the register devices.
const SERIAL_SLOT: u16 = 0;
const POWER_SLOT: u16 = 1;
const RESET_SLOT: u16 = 2;
const RTC_SLOT: u16 = 3;
/// The slot of the PCI bus.
const PCI_SLOT: u16 = 8;
/// The kind of its saved state, and of what the handshake shows of it.
pub(super) const PCI_KIND: &str = "pci";
/// What the e1000 says of itself on the bus.
const E1000_CARD: Description = Description {
    vendor: E1000::VENDOR_ID,
    device: E1000::DEVICE_ID,
    revision: 2,
    // A network card, Ethernet.
    class: 0x02_0000,
    memory: E1000::WINDOW as u32,
    io: E1000::IO_WINDOW as u32,
    interrupt: true,
};
/// The slot of the first disk, network, random bytes or console; the others follow.
pub const FIRST_VIRTIO_SLOT: u16 = 16;
/// The clock chip's ports: the FADT says that there is none, but kernels knock.
const CMOS_PORT: u16 = 0x70;
const CMOS_PORTS: u16 = 2;

/// The backend of a device with one.
const PORT: Port = Port(0);

/// Why the devices or what is behind them could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetupError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk image that is cut off.
    #[error(
        "disk {path}: expected a multiple of 512 bytes, found {bytes}: round it up with `truncate -s %512 {path}`"
    )]
    DiskSize {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A disk without write permission.
    #[error(
        "disk {path}: it cannot be written: {error}; make it writable, or add `,readonly=on` to its --disk"
    )]
    DiskReadOnly {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A network interface that is none.
    #[error("{0}")]
    Interface(String),
    /// A console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// More PCI devices than interrupts for them.
    #[error(
        "{wanted} PCI devices: the machine has room for {}: leave out some --net with model=e1000",
        layout::PCI_MAX
    )]
    TooManyPci {
        /// How many.
        wanted: usize,
    },
    /// A device of a crate that nobody has looked at.
    #[error(transparent)]
    NotGated(#[from] NotGated),
    /// A device that is in no catalogue.
    #[error("--device: expected one of {}, found `{name}`", catalog::names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// More devices than windows.
    #[error(
        "{wanted} devices: the machine has {} windows: leave out some --disk, --net or --device",
        layout::VIRTIO_MMIO_MAX
    )]
    TooMany {
        /// How many.
        wanted: usize,
    },
    /// Two devices at one address: a mistake in the layout.
    #[error("devices overlap: {0}")]
    Overlap(String),
    /// The process is out of something.
    #[error("cannot set up devices: {0}")]
    System(#[from] std::io::Error),
}

/// The state of one device, as a checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Its slot.
    pub slot: u16,
    /// Its state.
    pub state: DeviceState,
}

/// What a device's state consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A virtio device with its transport.
    Virtio(TransportState),
    /// A device that is driven by registers.
    Registers(RegisterState),
    /// The PCI bus.
    Pci(PciState),
}

/// Why a saved state of the devices was refused. Nothing of the guest may run on what is left then.
#[derive(Debug, thiserror::Error)]
pub enum DevicesRestoreError {
    /// The devices are not the same.
    #[error(
        "saved devices: expected slots {expected:?}, found {found:?}; give --disk, --net, --rng, --rtc, --virtio-console and --device alike on both sides"
    )]
    Slots {
        /// What this machine has.
        expected: Vec<u16>,
        /// What was saved.
        found: Vec<u16>,
    },
    /// A slot holds a register device on one side and a virtio device on the other.
    #[error(
        "slot {slot}: expected the state of {expected}, found another device's; give both sides the same devices in the same order"
    )]
    Kind {
        /// Which.
        slot: u16,
        /// What is in the slot here.
        expected: &'static str,
    },
    /// A virtio device refuses.
    #[error(transparent)]
    Virtio(#[from] TransportError),
    /// A register device refuses.
    #[error(transparent)]
    Register(#[from] SlotError),
    /// The PCI bus refuses.
    #[error(transparent)]
    Pci(#[from] PciError),
}

/// A disk cannot be shared with a standby.
#[derive(Debug, thiserror::Error)]
#[error("disk {path}: it cannot be shared with a standby: {error}")]
pub struct ShareDiskError {
    path: PathBuf,
    error: ShareError,
}

/// How backends are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// Another machine may go on from the same disks: they are not locked against it, and a write
    /// that the guest has seen complete must be where that machine finds it (P3).
    pub shared_disks: bool,
    /// The machine goes on that ran elsewhere: console files are added to instead of begun anew, and no lock on a disk holds it
    /// up.
    pub append: bool,
}

impl AttachOptions {
    /// For a machine that ran elsewhere.
    pub const TAKEOVER: Self = Self { shared_disks: true, append: true };
}

/// The devices.
pub struct DeviceSet {
    gate: Arc<GateHost>,
    events: Arc<Events>,
    virtio: Vec<Arc<VirtioMmio>>,
    /// Windows given to devices so far.
    windows: usize,
    pci: Option<Arc<PciBus>>,
    registers: Vec<Arc<RegisterPort>>,
    details: Vec<(u16, String)>,
    attached: Mutex<bool>,
    /// Disks that are open and locked, from before they are attached: nobody else begins on one meanwhile (P2), also where what
    /// is behind the devices has to be opened more than once. By slot.
    reserved: Mutex<BTreeMap<u16, Disk>>,
    /// What was opened, and not attached yet.
    opened: Mutex<Option<Vec<Opened>>>,
}

/// What is behind a device's port.
type Opened = (u16, Port, Backend);

impl DeviceSet {
    /// Makes the devices that `config` asks for, without what is behind them. P5: on `device_thread`, which has given up its
    /// rights: what a device does when it is made it does there.
    pub(super) fn new(
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
        for (slot, (device, detail)) in (FIRST_VIRTIO_SLOT..).zip(planned_devices(config)?) {
            match device {
                Planned::Virtio(device) => {
                    set.add_virtio(vm, maker.virtio(slot, device)?)?;
                    set.details.push((slot, detail));
                }
                Planned::Registers(device) => {
                    let window = set.next_window()?;
                    let place = Place::window(window.base, window.size);
                    let irq = IrqLine::new(vm.pins(), window.gsi);
                    set.add_register(maker.registers(slot, device)?, &[place], Some(irq));
                    set.details.push((slot, detail));
                }
                Planned::Pci(description, device) => {
                    let place = layout::pci_places().nth(cards.len());
                    let place =
                        place.ok_or(DeviceSetupError::TooManyPci { wanted: cards.len() + 1 })?;
                    let irq = IrqLine::new(vm.pins(), place.gsi);
                    let port = set.add_register(maker.registers(slot, device)?, &[], Some(irq));
                    set.details.push((slot, format!("{detail}, PCI 00:{:02x}.0", place.device)));
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

    /// The devices that every machine has.
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
        // Between its two ports lie those of others.
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

    /// Puts the devices on the buses.
    pub(super) fn io_manager(&self) -> Result<IoManager, DeviceSetupError> {
        let overlap = |e: vm_device::bus::Error| DeviceSetupError::Overlap(e.to_string());
        let mut io = IoManager::new();
        for device in &self.registers {
            device.put_on(&mut io).map_err(overlap)?;
        }
        if let Some(pci) = &self.pci {
            pci.put_on(&mut io).map_err(overlap)?;
        }
        let cmos = PioRange::new(PioAddress(CMOS_PORT), CMOS_PORTS).map_err(overlap)?;
        io.register_pio(cmos, Arc::new(QuietPort)).map_err(overlap)?;
        for device in &self.virtio {
            let window = device.window();
            let range = MmioRange::new(MmioAddress(window.base), window.size).map_err(overlap)?;
            io.register_mmio(range, device.clone()).map_err(overlap)?;
        }
        Ok(io)
    }

    /// Opens what can be opened twice, and closes it again: the right to write a disk or a console, the way to a tap.
    /// Sockets are not tried: whoever listens may take one connection only.
    pub(super) fn check_backends(&self, config: &MachineConfig) -> Result<(), DeviceSetupError> {
        for (slot, disk) in disks::all(config) {
            let disk = disks::open(disk, Opens::Standby, self.machine(config))?;
            // It stays open, with its lock: nobody else begins on a disk whose machine this side may go on with.
            self.reserved().insert(slot, disk);
        }
        for (index, (net, create)) in config.networks().enumerate() {
            // One that is to be made would go again with this look.
            if matches!(net, NetBackend::Tap(_)) && !create {
                open_net(net, false, config.mac(index))?;
            }
        }
        for console in config.consoles() {
            if matches!(console, ConsoleConfig::File(_)) {
                open_console(console, true)?;
            }
        }
        Ok(())
    }

    /// Opens and locks the disks of a machine that is to begin, before it takes anything that another may have.
    pub(super) fn reserve_disks(
        &self,
        config: &MachineConfig,
        seize: bool,
    ) -> Result<(), DeviceSetupError> {
        for (slot, disk) in disks::all(config) {
            let disk = disks::reserve(disk, seize)?;
            self.reserved().insert(slot, disk);
        }
        Ok(())
    }

    /// Guards the map only.
    fn reserved(&self) -> MutexGuard<'_, BTreeMap<u16, Disk>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what [`attach`](Self::attach) puts behind the devices, and keeps it for that.
    pub(super) fn prepare(
        &self,
        config: &MachineConfig,
        options: AttachOptions,
    ) -> Result<(), DeviceSetupError> {
        if self.is_prepared() {
            return Ok(());
        }
        let opened = self.open_all(config, options)?;
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }

    /// Whether what is behind the devices is open.
    pub(super) fn is_prepared(&self) -> bool {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.is_some() || *self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has devices have behind them what was [prepared](Self::prepare), or is opened now: all of it or nothing.
    pub(super) fn attach(
        &self,
        config: &MachineConfig,
        options: AttachOptions,
    ) -> Result<(), DeviceSetupError> {
        let prepared = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if !*attached {
            let opened = match prepared {
                Some(opened) => {
                    forget_cached(&opened);
                    opened
                }
                None => self.open_all(config, options)?,
            };
            self.gate.attach_all(opened)?;
            *attached = true;
            // The devices' disks are the same open files, with the same locks.
            self.reserved().clear();
        }
        if !options.append {
            // P2: from now on others find the disks held. A successor does this with its first effect, as fast as it can.
            self.gate.claim_disks()?;
        }
        self.virtio.iter().for_each(|device| device.negotiate());
        Ok(())
    }

    /// Opens what is behind the devices: files, sockets, interfaces.
    fn open_all(
        &self,
        config: &MachineConfig,
        options: AttachOptions,
    ) -> Result<Vec<Opened>, DeviceSetupError> {
        let mut opened = Vec::new();
        let opens = match options {
            AttachOptions { shared_disks: false, .. } => Opens::Alone,
            AttachOptions { append: true, .. } => Opens::Successor,
            AttachOptions { append: false, .. } => Opens::Active,
        };
        for (slot, disk) in disks::all(config) {
            opened.push((slot, Backend::Disk(self.open_disk(slot, disk, opens, config)?)));
        }
        let mut slot = FIRST_VIRTIO_SLOT + config.disks.len() as u16;
        for (index, net) in config.nets.iter().enumerate() {
            opened
                .push((slot, Backend::Net(open_net(&net.backend, net.create, config.mac(index))?)));
            slot += 1;
        }
        slot += u16::from(config.rng);
        if let Some(console) = &config.virtio_console {
            opened.push((slot, Backend::Console(open_console(console, options.append)?)));
            slot += 1;
        }
        for (slot, device) in (slot..).zip(&config.devices) {
            let mac = config.mac(config.nets.len());
            let backend = device.backend.as_ref();
            if let Some(backend) =
                backend.map(|backend| open_named(backend, mac, options)).transpose()?
            {
                opened.extend(backend.map(|backend| (slot, backend)));
            }
        }
        opened.push((SERIAL_SLOT, Backend::Console(open_console(&config.serial, options.append)?)));
        Ok(opened.into_iter().map(|(slot, backend)| (slot, PORT, backend)).collect())
    }

    /// Opens a disk, or takes the one that is reserved: its lock has no gap then.
    fn open_disk(
        &self,
        slot: u16,
        disk: &DiskConfig,
        opens: Opens,
        config: &MachineConfig,
    ) -> Result<Disk, DeviceSetupError> {
        let reserved = self.reserved().get(&slot).map(Disk::again).transpose()?;
        match reserved {
            Some(reserved) => disks::reopen(reserved, disk, opens, self.machine(config)),
            None => disks::open(disk, opens, self.machine(config)),
        }
    }

    /// Where terms decide who may write to a disk: whose they are.
    fn machine<'c>(&self, config: &'c MachineConfig) -> Option<&'c str> {
        self.gate.has_term().then_some(config.name.as_str())
    }

    /// Protection begins: another host is to have the disks as well, and what the guest saw written is to be there (P3).
    pub(super) fn share_disks(&self, config: &MachineConfig) -> Result<(), ShareDiskError> {
        for (slot, disk) in disks::all(config) {
            let durably = disk.cache.write_through(true);
            let shared = self.gate.share_disk(slot, PORT, durably);
            shared.map_err(|error| ShareDiskError { path: disk.path.clone(), error })?;
        }
        Ok(())
    }

    pub(super) fn gate(&self) -> &Arc<GateHost> {
        &self.gate
    }

    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The virtio devices, by window.
    #[must_use]
    pub fn virtio(&self) -> &[Arc<VirtioMmio>] {
        &self.virtio
    }

    /// The slots of all devices that may have something behind them.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        let virtio = self.virtio.iter().map(|device| device.slot());
        virtio.chain(self.registers.iter().map(|device| device.slot()))
    }

    fn power(&self) -> Option<&Arc<RegisterPort>> {
        self.registers.iter().find(|device| device.slot() == POWER_SLOT)
    }

    /// Presses the power button. Device thread.
    pub(super) fn press_power_button(&self) {
        if let Some(power) = self.power() {
            power.give(&[1]);
        }
    }

    /// What the guest does about its power button; none also while a thread has the device.
    pub(super) fn power_button(&self) -> Option<Button> {
        PowerControl::button(&self.power()?.try_save()?.device).ok()
    }

    /// The PCI bus, if there is one.
    #[must_use]
    pub fn pci(&self) -> Option<&Arc<PciBus>> {
        self.pci.as_ref()
    }

    /// The register devices.
    #[must_use]
    pub fn registers(&self) -> &[Arc<RegisterPort>] {
        &self.registers
    }

    /// What the handshake shows of a virtio device besides its kind: size, address.
    #[must_use]
    pub fn detail(&self, slot: u16) -> &str {
        self.details.iter().find(|(of, _)| *of == slot).map_or("", |(_, detail)| detail)
    }

    /// Gives finished requests to their devices, each device all of its own at once. Device thread.
    pub fn take_completions(&self) {
        let mut completions = self.gate.take_completions();
        // Those of one slot stay in their order.
        completions.sort_by_key(Completion::slot);
        let mut rest = completions.into_iter().peekable();
        while let Some(slot) = rest.peek().map(Completion::slot) {
            let own = std::iter::from_fn(|| rest.next_if(|next| next.slot() == slot));
            if let Some(device) = self.virtio_of(slot) {
                device.complete(own);
            } else if let Some(device) = self.registers.iter().find(|device| device.slot() == slot)
            {
                own.for_each(|completion| device.complete(completion));
            } else {
                own.for_each(|completion| self.gate.discard(completion));
            }
        }
    }

    /// Gives waiting input to the devices. Device thread.
    pub(super) fn take_inputs(&self) {
        for (slot, port) in self.gate.ready_inputs() {
            if let Some(device) = self.virtio_of(slot) {
                device.intake(port);
            } else if let Some(device) = self.registers.iter().find(|device| device.slot() == slot)
            {
                device.intake(port);
            }
        }
    }

    /// The driver has notified a queue. Device thread.
    pub(super) fn kick(&self, device: usize, queue: u16) {
        let Some(device) = self.virtio.get(device) else { return };
        if let Some(kick) = device.kicks().get(usize::from(queue)) {
            // Before the queue is looked at, so that a later notification signals again.
            kick.take();
        }
        device.kick(queue);
    }

    fn virtio_of(&self, slot: u16) -> Option<&Arc<VirtioMmio>> {
        self.virtio.iter().find(|device| device.slot() == slot)
    }

    /// What the handshake shows of the PCI bus, if there is one.
    pub(super) fn pci_layout(&self) -> Option<DeviceLayout> {
        self.pci.as_ref().map(|pci| pci.layout(PCI_SLOT))
    }

    /// Power-on state of every device. `progress` is told of each: one whose backend does not answer takes its time, and
    /// several may.
    ///
    /// # Errors
    /// The slot of a device that cannot be reset now.
    pub(super) fn reset(&self, progress: impl Fn()) -> Result<(), u16> {
        let stuck = self.virtio.iter().filter(|device| {
            progress();
            !device.reset()
        });
        // Every device all the same.
        let stuck: Vec<u16> = stuck.map(|device| device.slot()).collect();
        self.registers.iter().for_each(|device| device.reset());
        self.pci.iter().for_each(|pci| pci.reset());
        stuck.first().map_or(Ok(()), |slot| Err(*slot))
    }

    /// Everything that a guest could tell the difference by. Device thread, vCPUs paused.
    #[must_use]
    pub(super) fn save(&self) -> Vec<DeviceRecord> {
        let virtio = self.virtio.iter().map(|device| DeviceRecord {
            slot: device.slot(),
            state: DeviceState::Virtio(device.save()),
        });
        let registers = self.registers.iter().map(|device| DeviceRecord {
            slot: device.slot(),
            state: DeviceState::Registers(device.save()),
        });
        let pci = self
            .pci
            .iter()
            .map(|pci| DeviceRecord { slot: PCI_SLOT, state: DeviceState::Pci(pci.save()) });
        virtio.chain(registers).chain(pci).collect()
    }

    pub(super) fn restore(&self, records: &[DeviceRecord]) -> Result<(), DevicesRestoreError> {
        let virtio = self.virtio.iter().map(|device| device.slot());
        let registers = self.registers.iter().map(|device| device.slot());
        let pci = self.pci.iter().map(|_| PCI_SLOT);
        let expected: Vec<u16> = virtio.chain(registers).chain(pci).collect();
        let found: Vec<u16> = records.iter().map(|record| record.slot).collect();
        if expected != found {
            return Err(DevicesRestoreError::Slots { expected, found });
        }
        let (virtio, registers) = records.split_at(self.virtio.len());
        for (device, record) in self.virtio.iter().zip(virtio) {
            let DeviceState::Virtio(state) = &record.state else {
                return Err(other_kind(record, device.identity().kind));
            };
            device.restore(state)?;
        }
        let (registers, pci) = registers.split_at(self.registers.len());
        for (device, record) in self.registers.iter().zip(registers) {
            let DeviceState::Registers(state) = &record.state else {
                return Err(other_kind(record, device.identity().kind));
            };
            device.restore(state)?;
        }
        // After the devices: it gives them their right to guest memory.
        for (bus, record) in self.pci.iter().zip(pci) {
            let DeviceState::Pci(state) = &record.state else {
                return Err(other_kind(record, PCI_KIND));
            };
            bus.restore(state)?;
        }
        Ok(())
    }

    /// Looks at every queue, and interrupts every driver. Device thread, after a restore.
    pub(super) fn retry(&self) {
        self.registers.iter().for_each(|device| device.retry());
        self.virtio.iter().for_each(|device| device.retry());
    }
}

fn other_kind(record: &DeviceRecord, expected: &'static str) -> DevicesRestoreError {
    DevicesRestoreError::Kind { slot: record.slot, expected }
}

/// Has devices made, and put into their slots, on the device thread.
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

/// A device before it has a place.
enum Planned {
    Virtio(Make<dyn Device>),
    Registers(Make<dyn RegisterDevice>),
    Pci(Description, Make<dyn RegisterDevice>),
}

/// A device, and what the handshake shows of it besides its kind.
type Described = (Planned, String);

/// The devices in the order of their slots: disks, networks, random bytes, console, those asked for by name. A network has the same slot whatever
/// its model, so that the handshake tells both models where they differ.
fn planned_devices(config: &MachineConfig) -> Result<Vec<Described>, DeviceSetupError> {
    let mut devices: Vec<Described> = Vec::new();
    for disk in &config.disks {
        // Opened for its size only: the lock and the right to write are asked for when it is attached.
        let (sectors, block) = disk_size(disk)?;
        let block_config = BlockConfig {
            sectors,
            read_only: disk.read_only,
            serial: disk.serial.clone().into_bytes(),
            queues: disk.queues,
        };
        let access = if disk.read_only { "read-only" } else { "writable" };
        // Whoever takes over writes in the same blocks, or says now that he cannot.
        let blocks = block.map(|block| format!(", directly in blocks of {block} bytes"));
        devices.push((
            Planned::Virtio(gated::virtio(move || Block::new(block_config))),
            format!(
                "{sectors} sectors, {access}, serial `{}`{}{}{}",
                disk.serial,
                several(disk.queues, "request queues"),
                blocks.unwrap_or_default(),
                guards(disk)
            ),
        ));
    }
    for (index, net) in config.nets.iter().enumerate() {
        let mac = config.mac(index);
        let offloads = matches!(net.backend, NetBackend::Tap(_));
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let device = match net.model {
            NetModel::Virtio => {
                let net_config = NetConfig { mac, offloads, pairs: net.queues };
                Planned::Virtio(gated::virtio(move || Net::new(net_config)))
            }
            NetModel::E1000 => Planned::Pci(E1000_CARD, gated::registers(move || E1000::new(mac))),
        };
        devices.push((device, format!("mac {text}{}", several(net.queues, "pairs of queues"))));
    }
    if config.rng {
        devices.push((Planned::Virtio(gated::virtio(Entropy::new)), String::new()));
    }
    if config.virtio_console.is_some() {
        devices.push((Planned::Virtio(gated::virtio(Console::new)), String::new()));
    }
    for named in &config.devices {
        let device = match catalog::find(&named.name).map(|entry| entry.kind) {
            Some(Kind::Virtio(make)) => Planned::Virtio(make()),
            Some(Kind::Registers(make)) => Planned::Registers(make()),
            None => return Err(DeviceSetupError::Unknown { name: named.name.clone() }),
        };
        devices.push((device, named.name.clone()));
    }
    let in_windows =
        devices.iter().filter(|(device, _)| !matches!(device, Planned::Pci(..))).count();
    if in_windows > layout::VIRTIO_MMIO_MAX {
        return Err(DeviceSetupError::TooMany { wanted: in_windows });
    }
    Ok(devices)
}

/// What the handshake compares of a device with more than one queue.
fn several(queues: u16, what: &str) -> String {
    if queues > 1 { format!(", {queues} {what}") } else { String::new() }
}

/// P2, P3: what guards its content has to be alike on both sides: a takeover neither weakens a write that was told complete,
/// nor leaves the former side with a record that nobody raises.
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

/// Its sectors, and the blocks of its storage if it is written directly.
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

fn open_net(
    backend: &NetBackend,
    create: bool,
    mac: [u8; 6],
) -> Result<NetBackendOpen, DeviceSetupError> {
    Ok(match backend {
        NetBackend::Tap(name) => {
            interface::check_tap(name, create).map_err(DeviceSetupError::Interface)?;
            NetBackendOpen::tap(name, mac)?
        }
        NetBackend::Stream(path) => NetBackendOpen::stream(path, mac)?,
        NetBackend::Dgram(local, peer) => NetBackendOpen::dgram(local, peer, mac)?,
    })
}

/// P3: what this host has read of the disks since they were opened may be older than what the former primary has written since.
fn forget_cached(opened: &[Opened]) {
    for (_, _, backend) in opened {
        if let Backend::Disk(disk) = backend {
            disk.forget_cached();
        }
    }
}

fn open_named(
    backend: &DeviceBackend,
    mac: [u8; 6],
    options: AttachOptions,
) -> Result<Option<Backend>, DeviceSetupError> {
    Ok(match backend {
        DeviceBackend::Console(console) => {
            Some(Backend::Console(open_console(console, options.append)?))
        }
        // With all disks.
        DeviceBackend::Disk(_) => None,
        DeviceBackend::Net(net) => Some(Backend::Net(open_net(net, false, mac)?)),
    })
}

fn open_console(config: &ConsoleConfig, append: bool) -> Result<ConsoleBackend, ConsoleError> {
    match config {
        ConsoleConfig::Stdio => Ok(ConsoleBackend::stdio()),
        ConsoleConfig::File(path) => ConsoleBackend::file(path, append),
        ConsoleConfig::None => Ok(ConsoleBackend::none()),
    }
}
