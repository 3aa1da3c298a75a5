//! The devices' part of a checkpoint: saved and restored slot by slot.

use io_gate_host::{RegisterState, SlotError};
use serde::{Deserialize, Serialize};

use super::DeviceSet;
use crate::config::slots::PCI_SLOT;
use crate::pci::{self, PciError, PciState};
use crate::virtio_mmio::{TransportError, TransportState};

/// The state of one device in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// The device's slot.
    pub slot: u16,
    /// The device's state.
    pub state: DeviceState,
}

/// The state of a device, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A virtio device with its transport.
    Virtio(TransportState),
    /// A register device.
    Registers(RegisterState),
    /// The PCI bus.
    Pci(PciState),
}

/// Why the devices refuse a saved state. After this error the guest must not run on them.
#[derive(Debug, thiserror::Error)]
pub enum DevicesRestoreError {
    /// The slots of the two sides differ.
    #[error(
        "saved devices: expected slots {expected:?}, found {found:?}; give both sides the same --disk, --net, --rng, \
        --rtc, --virtio-console and --device"
    )]
    Slots {
        /// The slots of this machine.
        expected: Vec<u16>,
        /// The slots of the saved state.
        found: Vec<u16>,
    },
    /// A slot has a register device on one side and a virtio device on the other.
    #[error(
        "slot {slot}: expected the state of {expected}, found another device's; give both sides the same devices in the same order"
    )]
    Kind {
        /// The slot.
        slot: u16,
        /// The kind of device in this machine's slot.
        expected: &'static str,
    },
    /// A virtio device refuses its state.
    #[error(transparent)]
    Virtio(#[from] TransportError),
    /// A register device refuses its state.
    #[error(transparent)]
    Register(#[from] SlotError),
    /// The PCI bus refuses its state.
    #[error(transparent)]
    Pci(#[from] PciError),
}

impl DeviceSet {
    /// Saves everything that a guest can see. Call it on the device thread with the vCPUs paused.
    #[must_use]
    pub(crate) fn save(&self) -> Vec<DeviceRecord> {
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

    pub(crate) fn restore(&self, records: &[DeviceRecord]) -> Result<(), DevicesRestoreError> {
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
        // Restore the bus after the devices: it grants them access to guest memory.
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
