//! The interrupt line of one device: an edge or a level on a pin of KVM's interrupt controllers.

use kemari_hypervisor::kvm::Pins;

/// One pin.
///
/// `KVM_IRQ_LINE` pulses it, not an irqfd: when the ioctl returns, the edge is in the controllers'
/// state, and a checkpoint taken afterwards contains it. An irqfd injects from a kernel worker at
/// an unknown time.
#[derive(Clone)]
pub struct IrqLine {
    pins: Pins,
    gsi: u32,
}

impl IrqLine {
    /// The pin `gsi` of a machine.
    #[must_use]
    pub fn new(pins: Pins, gsi: u32) -> Self {
        Self { pins, gsi }
    }

    /// Raises and lowers the line.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// Asserts or clears a level-triggered line. Asserted means high: KVM ignores the polarity that
    /// the guest sets for a pin.
    pub fn set(&self, level: bool) {
        if let Err(error) = self.pins.set(self.gsi, level) {
            log::error!("KVM_IRQ_LINE, pin {}: {error}", self.gsi);
        }
    }
}
