//! Notifications between KVM and user space without an exit: interrupt pins, which KVM sets, and
//! counters of our own, which KVM signals. A foreign descriptor cannot be bound (P5).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Vm;

/// A counter that KVM increments when the guest writes to a register (KVM API, KVM_IOEVENTFD).
///
/// Only this type creates one, so the guest's write wakes a thread of this process, which reads the
/// queue and stages the effects it finds. A descriptor of another owner cannot be bound, since
/// through it the guest could act past the gate:
///
/// ```compile_fail,E0308
/// use kemari_hypervisor::kvm::Vm;
/// use kvm_ioctls::IoEventAddress;
/// use vmm_sys_util::eventfd::EventFd;
///
/// fn bind(vm: &Vm, foreign: &EventFd) -> std::io::Result<()> {
///     vm.bind_kick(foreign, &IoEventAddress::Mmio(0xd000_0050), 0)
/// }
/// ```
///
/// A counter of our own can be bound:
///
/// ```
/// use kemari_hypervisor::kvm::{Kick, Vm};
/// use kvm_ioctls::IoEventAddress;
///
/// fn bind(vm: &Vm, own: &Kick) -> std::io::Result<()> {
///     vm.bind_kick(own, &IoEventAddress::Mmio(0xd000_0050), 0)
/// }
/// ```
///
/// KVM's own descriptor, which could bind others, is not accessible:
///
/// ```compile_fail,E0624
/// use kemari_hypervisor::kvm::Vm;
/// use vmm_sys_util::eventfd::EventFd;
///
/// fn bind(vm: &Vm, foreign: &EventFd) {
///     vm.fd().register_irqfd(foreign, 5).unwrap();
/// }
/// ```
#[derive(Debug)]
pub struct Kick(EventFd);

impl Kick {
    /// Creates a counter at zero.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Resets the counter, so that the next notification signals again.
    pub fn take(&self) {
        // Fails only if nothing was signalled.
        let _ = self.0.read();
    }
}

/// For a poll that waits for the signal.
impl AsRawFd for Kick {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Vm {
    /// Makes KVM signal `kick`, without an exit, when the guest writes `value` to `address`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn bind_kick(&self, kick: &Kick, address: &IoEventAddress, value: u32) -> io::Result<()> {
        self.fd()
            .register_ioevent(&kick.0, address, value)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    /// The pins of its interrupt controllers.
    #[must_use]
    pub fn pins(&self) -> Pins {
        Pins(self.fd().clone())
    }
}

/// The interrupt controllers' pins, without access to the rest of the machine.
#[derive(Clone)]
pub struct Pins(Arc<VmFd>);

impl Pins {
    /// Sets the level of the pin `gsi` (KVM API, KVM_IRQ_LINE).
    ///
    /// # Errors
    /// When there is no such pin.
    pub fn set(&self, gsi: u32, level: bool) -> io::Result<()> {
        self.0.set_irq_line(gsi, level).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}
