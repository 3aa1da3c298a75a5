//! What a checkpoint has of the devices: saved and taken on, slot by slot.

use io_gate_host::{RegisterState, SlotError};
use serde::{Deserialize, Serialize};

use super::DeviceSet;
use crate::config::slots::PCI_SLOT;
use crate::machine::pci::{self, PciError, PciState};
use crate::machine::virtio_mmio::{TransportError, TransportState};

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

impl DeviceSet {
    /// Everything that a guest could tell the difference by. Device thread, vCPUs paused.
    #[must_use]
    pub(in crate::machine) fn save(&self) -> Vec<DeviceRecord> {
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

    pub(in crate::machine) fn restore(
        &self,
        records: &[DeviceRecord],
    ) -> Result<(), DevicesRestoreError> {
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
                return Err(other_kind(record, pci::KIND));
            };
            bus.restore(state)?;
        }
        Ok(())
    }
}

fn other_kind(record: &DeviceRecord, expected: &'static str) -> DevicesRestoreError {
    DevicesRestoreError::Kind { slot: record.slot, expected }
}
