//! The backends of the devices: opened, checked, kept for a takeover, attached, and shared with a
//! standby.

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
use crate::device_error::{DeviceSetupError, ShareDiskError};
use crate::disks::{self, Opens};
use crate::interface;

/// The port of a device with one backend.
const PORT: Port = Port(0);

/// A slot, its port, and the open backend.
pub(super) type Opened = (u16, Port, Backend);

/// How to open backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// Another machine may take over with the same disks. They are then not locked against it, and
    /// a write that the guest saw complete must be where that machine finds it (P3).
    pub shared_disks: bool,
    /// The machine ran elsewhere before: append to console files, and start even if the former side
    /// has a disk locked.
    pub append: bool,
}

impl AttachOptions {
    /// The options for a machine that ran elsewhere before.
    pub const TAKEOVER: Self = Self { shared_disks: true, append: true };
}

impl DeviceSet {
    /// Opens disks, console files and taps as a takeover would, and closes all except the disks.
    /// Does not try sockets: a listener may accept only one connection.
    pub(crate) fn check_backends(&self, config: &MachineConfig) -> Result<(), DeviceSetupError> {
        for (slot, disk) in config.disks() {
            let disk = disks::open(disk, Opens::Standby, self.machine(config))?;
            // Keep the disk open and locked: no other machine may start on a disk from which this
            // side may take over.
            self.reserved().insert(slot, disk);
        }
        for (_, network) in config.networks() {
            // Skip an interface that is to be created: it would vanish again after this check.
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

    /// Opens and locks the disks of a machine that is about to start. Call this first: if another
    /// machine holds a disk, this start has taken nothing yet.
    pub(crate) fn reserve_disks(
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

    /// The lock guards only the map and is never held across a system call.
    fn reserved(&self) -> MutexGuard<'_, BTreeMap<u16, Disk>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the backends for [`attach`](Self::attach), and keeps them.
    pub(crate) fn prepare(
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

    /// Whether the backends are open, attached or not.
    pub(crate) fn is_prepared(&self) -> bool {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.is_some() || *self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the [prepared](Self::prepare) backends, or opens them now: all or none.
    pub(crate) fn attach(
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
            // The devices' disks now share these open files and their locks.
            self.reserved().clear();
        }
        if !options.append {
            // P2: from now on, other machines find the disks held. A successor instead claims them
            // with its first effect, for a faster takeover.
            self.gate.claim_disks()?;
        }
        self.virtio.iter().for_each(|device| device.negotiate());
        Ok(())
    }

    /// Opens the backends of all disks, networks and consoles.
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
        // Open disks first: if another process holds one, nothing else is taken yet.
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

    /// Opens a disk, or reuses the reserved one, so that its lock is never released.
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

    /// The machine's name for the fence records; `None`: terms do not decide who may write to a
    /// disk.
    fn machine<'c>(&self, config: &'c MachineConfig) -> Option<&'c str> {
        self.gate.has_term().then_some(config.name.as_str())
    }

    /// Prepares the disks for a takeover by another host when protection begins: writes that the
    /// guest saw complete must be in the storage (P3).
    pub(crate) fn share_disks(&self, config: &MachineConfig) -> Result<(), ShareDiskError> {
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

/// P3: drops the pages that this host has cached since the disks were opened: the former primary
/// may have written newer data.
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
