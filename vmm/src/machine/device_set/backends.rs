//! What is behind the devices: opened, checked, kept for a takeover, attached, and shared with a standby.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use io_gate::Port;
use io_gate_host::Backend;
use io_gate_host::backend::console::{Console as ConsoleBackend, ConsoleError};
use io_gate_host::backend::disk::Disk;
use io_gate_host::backend::net::Net as NetBackendOpen;

use super::DeviceSet;
use crate::config::slots::Network;
use crate::config::{ConsoleConfig, DiskConfig, MachineConfig, NetBackend};
use crate::machine::device_error::{DeviceSetupError, ShareDiskError};
use crate::machine::disks::{self, Opens};
use crate::machine::interface;

/// The backend of a device with one.
const PORT: Port = Port(0);

/// What is behind a device's port.
pub(super) type Opened = (u16, Port, Backend);

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

impl DeviceSet {
    /// Opens what can be opened twice, and closes it again: the right to write a disk or a console, the way to a tap.
    /// Sockets are not tried: whoever listens may take one connection only.
    pub(in crate::machine) fn check_backends(
        &self,
        config: &MachineConfig,
    ) -> Result<(), DeviceSetupError> {
        for (slot, disk) in config.disks() {
            let disk = disks::open(disk, Opens::Standby, self.machine(config))?;
            // It stays open, with its lock: nobody else begins on a disk whose machine this side may go on with.
            self.reserved().insert(slot, disk);
        }
        for (_, network) in config.networks() {
            // One that is to be made would go again with this look.
            if matches!(network.backend, NetBackend::Tap(_)) && !network.create {
                open_net(network)?;
            }
        }
        for (_, console) in config.consoles() {
            if matches!(console, ConsoleConfig::File(_)) {
                open_console(console, true)?;
            }
        }
        Ok(())
    }

    /// Opens and locks the disks of a machine that is to begin, before it takes anything that another may have.
    pub(in crate::machine) fn reserve_disks(
        &self,
        config: &MachineConfig,
        seize: bool,
    ) -> Result<(), DeviceSetupError> {
        for (slot, disk) in config.disks() {
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
    pub(in crate::machine) fn prepare(
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
    pub(in crate::machine) fn is_prepared(&self) -> bool {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.is_some() || *self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has devices have behind them what was [prepared](Self::prepare), or is opened now: all of it or nothing.
    pub(in crate::machine) fn attach(
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
        // Disks first: one that another process holds is found before anything else is taken.
        for (slot, disk) in config.disks() {
            opened.push((slot, Backend::Disk(self.open_disk(slot, disk, opens, config)?)));
        }
        for (slot, network) in config.networks() {
            opened.push((slot, Backend::Net(open_net(network)?)));
        }
        for (slot, console) in config.consoles() {
            opened.push((slot, Backend::Console(open_console(console, options.append)?)));
        }
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
    pub(in crate::machine) fn share_disks(
        &self,
        config: &MachineConfig,
    ) -> Result<(), ShareDiskError> {
        for (slot, disk) in config.disks() {
            let durably = disk.cache.write_through(true);
            let shared = self.gate.share_disk(slot, PORT, durably);
            shared.map_err(|error| ShareDiskError { path: disk.path.clone(), error })?;
        }
        Ok(())
    }
}

fn open_net(network: Network<'_>) -> Result<NetBackendOpen, DeviceSetupError> {
    let Network { backend, create, mac } = network;
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

fn open_console(config: &ConsoleConfig, append: bool) -> Result<ConsoleBackend, ConsoleError> {
    match config {
        ConsoleConfig::Stdio => Ok(ConsoleBackend::stdio()),
        ConsoleConfig::File(path) => ConsoleBackend::file(path, append),
        ConsoleConfig::None => Ok(ConsoleBackend::none()),
    }
}
