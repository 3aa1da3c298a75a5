//! Devices in the style of rust-vmm: those that implement `vm_device::MutDevicePio` or
//! `MutDeviceMmio`.
//!
//! The device is used unchanged. An implementation of [`Keep`] provides what its traits do not, in
//! particular its saved state:
//!
//! ```
//! use io_gate::{Identity, StateError, saved_state};
//! use io_gate_host::adapter::{Adapter, Keep, PioDevice, Wires};
//! use std::io::Write;
//! use vm_device::MutDevicePio;
//! use vm_device::bus::{PioAddress, PioAddressOffset};
//!
//! // A device of another author: port 0 takes letters for a printer, port 1 counts them.
//! struct Printer<W> { paper: W, count: u8 }
//! # impl<W: Write> MutDevicePio for Printer<W> {
//! #     fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
//! #         data[0] = self.count
//! #     }
//! #     fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
//! #         self.paper.write_all(data).unwrap();
//! #         self.count += 1;
//! #     }
//! # }
//!
//! saved_state! {
//!     pub struct PrinterState { count: u8 }
//! }
//!
//! /// What the adapter needs to know of it.
//! struct KeepPrinter;
//! impl Keep for KeepPrinter {
//!     type Device = Printer<io_gate_host::adapter::StagingWriter>;
//!     const IDENTITY: Identity = Identity { kind: "printer", virtio_id: 0, state_version: 1 };
//!     type State = PrinterState;
//!     fn power_on(wires: &Wires) -> Self::Device {
//!         Printer { paper: wires.output.clone(), count: 0 }
//!     }
//!     fn save(device: &Self::Device) -> PrinterState {
//!         PrinterState { count: device.count }
//!     }
//!     fn restore(state: PrinterState, wires: &Wires) -> Result<Self::Device, StateError> {
//!         Ok(Printer { paper: wires.output.clone(), count: state.count })
//!     }
//! }
//!
//! // What it prints is held until it is committed.
//! let printer: Adapter<PioDevice<KeepPrinter>> = Adapter::new();
//! ```

use io_gate::{Identity, StateError, StateFields};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{MutDeviceMmio, MutDevicePio};

use super::{Foreign, Wires};

/// The parts of a device that its own traits do not provide.
pub trait Keep: Send {
    /// The device.
    type Device: Send;

    /// The device's identity.
    const IDENTITY: Identity;

    /// As [`Foreign::State`].
    type State: StateFields;

    /// As [`Foreign::power_on`].
    fn power_on(wires: &Wires) -> Self::Device;

    /// As [`Foreign::save`].
    fn save(device: &Self::Device) -> Self::State;

    /// As [`Foreign::restore`].
    ///
    /// # Errors
    /// As [`Foreign::restore`].
    fn restore(state: Self::State, wires: &Wires) -> Result<Self::Device, StateError>;
}

/// A device behind I/O ports, whose base is 0.
pub struct PioDevice<K: Keep>(K::Device);

/// A device behind an address window, whose base is 0.
pub struct MmioDevice<K: Keep>(K::Device);

impl<K: Keep> Foreign for PioDevice<K>
where
    K::Device: MutDevicePio,
{
    const IDENTITY: Identity = K::IDENTITY;

    type State = K::State;

    fn power_on(wires: &Wires) -> Self {
        Self(K::power_on(wires))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if let Ok(offset) = u16::try_from(offset) {
            self.0.pio_read(PioAddress(0), offset, into);
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        if let Ok(offset) = u16::try_from(offset) {
            self.0.pio_write(PioAddress(0), offset, from);
        }
    }

    fn intake(&mut self, data: &[u8]) -> usize {
        // The traits of vm-device have no input.
        data.len()
    }

    fn save(&self) -> K::State {
        K::save(&self.0)
    }

    fn restore(state: K::State, wires: &Wires) -> Result<Self, StateError> {
        K::restore(state, wires).map(Self)
    }
}

impl<K: Keep> Foreign for MmioDevice<K>
where
    K::Device: MutDeviceMmio,
{
    const IDENTITY: Identity = K::IDENTITY;

    type State = K::State;

    fn power_on(wires: &Wires) -> Self {
        Self(K::power_on(wires))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        self.0.mmio_read(MmioAddress(0), offset, into);
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        self.0.mmio_write(MmioAddress(0), offset, from);
    }

    fn intake(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn save(&self) -> K::State {
        K::save(&self.0)
    }

    fn restore(state: K::State, wires: &Wires) -> Result<Self, StateError> {
        K::restore(state, wires).map(Self)
    }
}
