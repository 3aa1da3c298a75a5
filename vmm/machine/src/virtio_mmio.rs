//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): one window of registers for one
//! device slot.

use std::sync::Mutex;

use io_gate::{Identity, Port};
use io_gate_host::{Completion, Interrupt, SlotError, SlotState, VirtioSlot};
use kemari_hypervisor::kvm::{Kick, Vm};
use kemari_hypervisor::layout::MmioWindow;
use kvm_ioctls::IoEventAddress;
use serde::{Deserialize, Serialize};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::interrupt::IrqLine;
use crate::serving::Serving;

/// `virt` in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// The specification allows any value; drivers only display it.
const VENDOR: u32 = u32::from_le_bytes(*b"KEMA");

/// Offsets of the registers in bytes (virtio 1.2, table 4.1).
mod reg {
    pub(crate) const MAGIC: u64 = 0x00;
    pub(crate) const VERSION: u64 = 0x04;
    pub(crate) const DEVICE_ID: u64 = 0x08;
    pub(crate) const VENDOR_ID: u64 = 0x0c;
    pub(crate) const DEVICE_FEATURES: u64 = 0x10;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(crate) const DRIVER_FEATURES: u64 = 0x20;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(crate) const QUEUE_SEL: u64 = 0x30;
    pub(crate) const QUEUE_SIZE_MAX: u64 = 0x34;
    pub(crate) const QUEUE_SIZE: u64 = 0x38;
    pub(crate) const QUEUE_READY: u64 = 0x44;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
    pub(crate) const INTERRUPT_ACK: u64 = 0x64;
    pub(crate) const STATUS: u64 = 0x70;
    pub(crate) const QUEUE_DESC_LOW: u64 = 0x80;
    pub(crate) const QUEUE_DESC_HIGH: u64 = 0x84;
    pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub(crate) const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub(crate) const SHM_SEL: u64 = 0xac;
    pub(crate) const SHM_FIRST: u64 = 0xb0;
    pub(crate) const SHM_LAST: u64 = 0xbc;
    pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Bits of the device status (virtio 1.2, 2.1).
mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 64;
    pub(crate) const FAILED: u32 = 128;
    /// The steps of a driver (3.1.1), each with the steps that it requires.
    pub(crate) const STEPS: [(u32, u32); 4] =
        [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)];
}

/// Bits of the interrupt status.
const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// Increase it with each change of the layout of [`TransportState`].
const TRANSPORT_STATE_VERSION: u16 = 1;

/// All state of a window and its slot that a guest can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The version of this structure's layout.
    pub version: u16,
    /// The registers.
    pub registers: Registers,
    /// The rings and the device.
    pub slot: SlotState,
}

/// The transport's own registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The device status, as the driver has set it.
    pub status: u32,
    /// The half of the device's features that a read returns.
    pub device_features_sel: u32,
    /// The half of the driver's features that a write sets.
    pub driver_features_sel: u32,
    /// The features that the driver has written.
    pub driver_features: u64,
    /// The selected virtqueue.
    pub queue_sel: u32,
    /// Interrupts that the driver has not acknowledged yet.
    pub interrupt_status: u32,
}

/// Why the window refuses a saved state.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The state has another version.
    #[error(
        "virtio-mmio state: expected version {TRANSPORT_STATE_VERSION}, found {found}; run the same release on both sides"
    )]
    Version {
        /// The saved version.
        found: u16,
    },
    /// The slot refuses its state.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// One window with its device.
///
/// The mutex is the slot's lock in the order of `docs/threads.md`. vCPU threads take it for
/// register accesses, the device thread for all else. No thread holds two.
pub struct VirtioMmio {
    slot: u16,
    window: MmioWindow,
    irq: IrqLine,
    inner: Mutex<Inner>,
    kicks: Vec<Kick>,
}

struct Inner {
    slot: VirtioSlot,
    registers: Registers,
}

impl VirtioMmio {
    /// Makes a window over a slot.
    ///
    /// # Errors
    /// When the event counters cannot be created.
    pub fn new(window: MmioWindow, irq: IrqLine, slot: VirtioSlot) -> std::io::Result<Self> {
        let kicks = (0..slot.queue_count()).map(|_| Kick::new()).collect::<Result<_, _>>()?;
        Ok(Self {
            slot: slot.slot(),
            window,
            irq,
            inner: Mutex::new(Inner { slot, registers: Registers::default() }),
            kicks,
        })
    }

    /// Makes KVM signal the device thread without an exit when the driver notifies a queue. If KVM
    /// refuses, each notification stays an exit, which is slower but correct.
    pub fn register_kicks(&self, vm: &Vm) {
        let address = IoEventAddress::Mmio(self.window.base + reg::QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(&self.kicks) {
            if let Err(error) = vm.bind_kick(kick, &address, queue) {
                log::warn!(
                    "virtio-mmio at {:#x}: no ioeventfd for queue {queue}: {error}",
                    self.window.base
                );
            }
        }
    }

    /// The event counters of the queues: the driver's notifications signal them.
    #[must_use]
    pub fn kicks(&self) -> &[Kick] {
        &self.kicks
    }

    /// The device's window.
    #[must_use]
    pub fn window(&self) -> MmioWindow {
        self.window
    }

    /// Its slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The device's kind and version.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lock().slot.identity()
    }

    /// The features that the device offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.lock().slot.device_features()
    }

    /// Serves a queue that the driver has notified. Call it on the device thread.
    pub fn kick(&self, queue: u16) {
        self.with_slot(|slot| slot.kick(queue));
    }

    /// Delivers finished requests to the device. Call it on the device thread.
    pub fn complete(&self, completions: impl IntoIterator<Item = Completion>) {
        self.with_slot(|slot| slot.complete_all(completions));
    }

    /// Delivers a backend's input. Call it on the device thread.
    pub fn intake(&self, port: Port) {
        self.with_slot(|slot| slot.intake(port));
    }

    /// Serves every queue and interrupts the driver after a restore: notifications and interrupts
    /// between the checkpoint and the failure may be lost. A driver must tolerate spurious
    /// interrupts.
    pub fn retry(&self) {
        let mut inner = self.lock();
        if inner.registers.status & status::DRIVER_OK == 0 {
            return;
        }
        let raised = inner.slot.retry_all();
        self.raise(&mut inner, raised.or(Interrupt { used: true, config: false }));
    }

    /// Passes the features that the driver accepted to the backends. Call it once they are attached
    /// to a restored slot.
    pub fn negotiate(&self) {
        self.lock().slot.negotiate();
    }

    /// Resets the device to its power-on state. `false`: the device's backend still reads guest
    /// memory, in a system call that does not end.
    #[must_use]
    pub fn reset(&self) -> bool {
        let mut inner = self.lock();
        inner.reset();
        let done = !inner.slot.needs_reset();
        drop(inner);
        // Drop the former guest's notifications.
        for kick in &self.kicks {
            kick.take();
        }
        done
    }

    /// Saves all state that a guest can see.
    #[must_use]
    pub fn save(&self) -> TransportState {
        let inner = self.lock();
        TransportState {
            version: TRANSPORT_STATE_VERSION,
            registers: inner.registers,
            slot: inner.slot.save(),
        }
    }

    /// Restores a saved state. Call [`retry`](Self::retry) before the guest runs.
    ///
    /// # Errors
    /// When the state belongs to another device or version, or is not possible.
    pub fn restore(&self, state: &TransportState) -> Result<(), TransportError> {
        if state.version != TRANSPORT_STATE_VERSION {
            return Err(TransportError::Version { found: state.version });
        }
        let mut inner = self.lock();
        inner.slot.restore(&state.slot)?;
        inner.registers = state.registers;
        Ok(())
    }

    fn with_slot(&self, call: impl FnOnce(&mut VirtioSlot) -> Interrupt) {
        let mut inner = self.lock();
        let raised = call(&mut inner.slot);
        self.raise(&mut inner, raised);
    }

    /// Interrupts the driver. Sets the status bit before the edge: a driver that reacts at once
    /// must find the reason.
    fn raise(&self, inner: &mut Inner, raised: Interrupt) {
        if raised.any() {
            let used = if raised.used { INTERRUPT_USED } else { 0 };
            let config = if raised.config { INTERRUPT_CONFIG } else { 0 };
            inner.registers.interrupt_status |= used | config;
            self.irq.pulse();
        }
    }

    fn lock(&self) -> Serving<'_, Inner> {
        let inner = self.inner.lock().expect("a panic inside a device ends the machine");
        let (identity, slot) = (inner.slot.identity(), inner.slot.slot());
        Serving::begin(inner, &identity, slot)
    }
}

impl Inner {
    fn read(&self, offset: u64) -> u32 {
        let queue = self.queue();
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.slot.identity().virtio_id,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => {
                half(self.slot.device_features(), self.registers.device_features_sel)
            }
            reg::QUEUE_SIZE_MAX => queue.map_or(0, |queue| self.slot.queue_max_size(queue)).into(),
            reg::QUEUE_READY => queue.is_some_and(|queue| self.slot.queue_ready(queue)).into(),
            reg::INTERRUPT_STATUS => self.registers.interrupt_status,
            reg::STATUS => {
                let broken = if self.slot.needs_reset() { status::NEEDS_RESET } else { 0 };
                self.registers.status | broken
            }
            // No shared memory: length and base read as all ones (virtio 1.2, 4.2.2).
            reg::SHM_FIRST..=reg::SHM_LAST => u32::MAX,
            reg::CONFIG_GENERATION => self.slot.config_generation(),
            // Write-only and unknown registers.
            _ => 0,
        }
    }

    /// Serves a register write; returns the interrupt to raise.
    fn write(&mut self, offset: u64, value: u32) -> Interrupt {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::QUEUE_SEL => self.registers.queue_sel = value,
            reg::INTERRUPT_ACK => self.registers.interrupt_status &= !value,
            reg::STATUS => return self.set_status(value),
            reg::QUEUE_NOTIFY => {
                return u16::try_from(value).map_or(Interrupt::NONE, |queue| self.slot.kick(queue));
            }
            _ => {
                if let Some(queue) = self.queue() {
                    let before = self.slot.needs_reset();
                    self.set_up_queue(queue, offset, value);
                    if self.slot.needs_reset() && !before {
                        return self.tell_of_reset();
                    }
                }
            }
        }
        Interrupt::NONE
    }

    /// The interrupt for a running driver when the device needs a reset: a configuration change
    /// (2.1.2).
    fn tell_of_reset(&self) -> Interrupt {
        let up = self.registers.status & status::DRIVER_OK != 0;
        Interrupt { used: false, config: up }
    }

    fn queue(&self) -> Option<u16> {
        u16::try_from(self.registers.queue_sel)
            .ok()
            .filter(|queue| usize::from(*queue) < self.slot.queue_count())
    }

    fn set_up_queue(&mut self, queue: u16, offset: u64, value: u32) {
        let slot = &mut self.slot;
        match offset {
            reg::QUEUE_SIZE => slot.set_queue_size(queue, value),
            reg::QUEUE_READY => slot.set_queue_ready(queue, value & 1 != 0),
            reg::QUEUE_DESC_LOW => slot.set_queue_desc(queue, Some(value), None),
            reg::QUEUE_DESC_HIGH => slot.set_queue_desc(queue, None, Some(value)),
            reg::QUEUE_DRIVER_LOW => slot.set_queue_avail(queue, Some(value), None),
            reg::QUEUE_DRIVER_HIGH => slot.set_queue_avail(queue, None, Some(value)),
            reg::QUEUE_DEVICE_LOW => slot.set_queue_used(queue, Some(value), None),
            reg::QUEUE_DEVICE_HIGH => slot.set_queue_used(queue, None, Some(value)),
            reg::SHM_SEL => {}
            _ => log::debug!("slot {}: write of {value:#x} to register {offset:#x}", slot.slot()),
        }
    }

    /// The features are fixed once FEATURES_OK is set (virtio 1.2, 2.2.1).
    fn accept_features(&mut self, value: u32) {
        if self.registers.status & status::FEATURES_OK != 0 {
            return;
        }
        let shift = match self.registers.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let kept = self.registers.driver_features & !(u64::from(u32::MAX) << shift);
        self.registers.driver_features = kept | u64::from(value) << shift;
    }

    /// Zero resets the device. Other values only add bits (virtio 1.2, 2.1.1 and 3.1.1), each after
    /// its predecessors. A driver that has failed, or must reset the device, can set no more bits.
    fn set_status(&mut self, value: u32) -> Interrupt {
        if value == 0 {
            self.reset();
            return Interrupt::NONE;
        }
        let wanted = value & !self.registers.status;
        self.registers.status |= value & status::FAILED;
        let failed = self.registers.status & status::FAILED != 0;
        for (step, needs) in status::STEPS {
            if wanted & step == 0 {
                continue;
            }
            if failed && matches!(step, status::FEATURES_OK | status::DRIVER_OK) {
                return Interrupt::NONE;
            }
            if self.registers.status & needs != needs || self.slot.needs_reset() {
                return self.refuse_step(step);
            }
            if let Err(error) = self.take_step(step) {
                // The driver reads the status back and finds the bit missing.
                self.slot.warn(|| format!("{error}; the driver cannot continue"));
                return if self.slot.needs_reset() { told() } else { Interrupt::NONE };
            }
            self.registers.status |= step;
        }
        if wanted & status::DRIVER_OK != 0 {
            // Serve requests and input from before the driver was ready.
            return self.slot.retry_all();
        }
        Interrupt::NONE
    }

    fn take_step(&mut self, step: u32) -> Result<(), SlotError> {
        let features = self.registers.driver_features;
        match step {
            status::FEATURES_OK => self.slot.check_features(features),
            status::DRIVER_OK => self.slot.driver_ok(features),
            _ => Ok(()),
        }
    }

    fn refuse_step(&mut self, step: u32) -> Interrupt {
        let (slot, status) = (self.slot.slot(), self.registers.status);
        if self.slot.needs_reset() {
            // The driver continues without reading the status: interrupt it again.
            return told();
        }
        self.slot.warn(|| {
            format!("slot {slot}: status bit {step:#x} is not accepted after {status:#x} (virtio 1.2, 3.1.1)")
        });
        Interrupt::NONE
    }

    fn reset(&mut self) {
        self.slot.reset();
        self.registers = Registers::default();
    }
}

/// The interrupt for a configuration change, at which the driver reads the status.
fn told() -> Interrupt {
    Interrupt { used: false, config: true }
}

fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl DeviceMmio for VirtioMmio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let inner = self.lock();
        if offset >= reg::CONFIG {
            data.fill(0);
            inner.slot.read_config(offset - reg::CONFIG, data);
            return;
        }
        // Registers are 32 bits wide and aligned (virtio 1.2, 4.2.2.2). Any other access reads as
        // zero.
        data.fill(0);
        if offset.is_multiple_of(4)
            && let Some(register) = data.first_chunk_mut::<4>()
        {
            *register = inner.read(offset).to_le_bytes();
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let mut inner = self.lock();
        let raised = if offset >= reg::CONFIG {
            inner.slot.write_config(offset - reg::CONFIG, data)
        } else {
            match <[u8; 4]>::try_from(data) {
                Ok(bytes) if offset.is_multiple_of(4) => {
                    inner.write(offset, u32::from_le_bytes(bytes))
                }
                _ => Interrupt::NONE,
            }
        };
        self.raise(&mut inner, raised);
    }
}
