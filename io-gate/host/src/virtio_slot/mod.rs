//! A virtio device in its slot: its virtqueues, its driver's state, and the path of requests
//! between them and the gate.
//!
//! Within this crate, only the slots change guest memory, always through vm-memory (P8).

mod input;
mod requests;

use std::mem::ManuallyDrop;
use std::sync::Arc;

use io_gate::host::{EffectId, write_config};
use io_gate::{Device, Identity, Port};

use crate::chain_walk::Walked;
use crate::completion::{Completion, Interrupt, Kind};
use crate::gate_host::GateHost;
use crate::rate_limit::RateLimit;
use crate::ring::{Part, Ring};
use crate::slot_state::{SlotError, SlotState};

/// `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX`, `VIRTIO_F_VERSION_1` (virtio 1.2, 6).
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Number of ports for which the slot asks its device whether they take input.
const MAX_PORTS: u8 = 16;
/// The maximum number of chains in one turn of a queue is the queue's size times this.
const ROUNDS: u32 = 4;

/// A virtio device in its slot of the machine. Owned by the transport.
pub struct VirtioSlot {
    slot: u16,
    /// P5: not dropped with the slot, since a device's `drop` would run on a thread with more
    /// rights than device code may have. The memory is freed when the process ends, or by the
    /// caller that [takes](Self::into_device) the device.
    device: ManuallyDrop<Box<dyn Device>>,
    identity: Identity,
    offered: u64,
    gate: Arc<GateHost>,
    rings: Vec<Ring>,
    intakes: Vec<InputPort>,
    features: u64,
    active: bool,
    needs_reset: bool,
    config_generation: u32,
    /// Requests with smaller ids are older than the last reset.
    first_id: EffectId,
    warnings: RateLimit,
    // Reused buffers, so that a request needs no allocation.
    scratch: Vec<u8>,
    walked: Walked,
    heads: Vec<(u16, u32)>,
}

/// A port that takes input, its queues, and the input that the driver has not taken yet.
struct InputPort {
    port: Port,
    queues: Vec<u16>,
    pending: Vec<u8>,
}

impl VirtioSlot {
    /// Puts a device into a slot.
    ///
    /// # Panics
    /// When a queue size of the device is not a power of two.
    #[must_use]
    pub fn new(slot: u16, device: Box<dyn Device>, gate: Arc<GateHost>) -> Self {
        let rings = device.queues().iter().map(|size| Ring::new(*size)).collect();
        let intakes = (0..MAX_PORTS)
            .map(Port)
            .filter_map(|port| {
                device.intake_queue(port)?;
                Some(InputPort { port, queues: input_queues(&*device, port), pending: Vec::new() })
            })
            .collect();
        Self {
            slot,
            identity: device.identity(),
            offered: device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC,
            device: ManuallyDrop::new(device),
            gate,
            rings,
            intakes,
            features: 0,
            active: false,
            needs_reset: false,
            config_generation: 0,
            first_id: EffectId(0),
            warnings: RateLimit::default(),
            scratch: Vec::new(),
            walked: Walked::default(),
            heads: Vec::new(),
        }
    }

    /// The slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Takes the device out of its slot.
    #[must_use]
    pub fn into_device(self) -> Box<dyn Device> {
        ManuallyDrop::into_inner(self.device)
    }

    /// The device's identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The offered features: those of the device and those of the rings.
    #[must_use]
    pub fn device_features(&self) -> u64 {
        self.offered
    }

    /// The features that the driver has accepted.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        self.features
    }

    /// Checks that the driver may accept these features.
    ///
    /// # Errors
    /// When one of them was not offered, `VERSION_1` is missing, or a feature lacks one that it
    /// needs.
    pub fn check_features(&self, features: u64) -> Result<(), SlotError> {
        let offered = self.device_features();
        if features & !offered != 0 || features & VERSION_1 == 0 {
            return Err(SlotError::Features { slot: self.slot, offered, found: features });
        }
        // A driver must not accept a feature without those that it needs (2.2.1).
        for &(feature, one_of) in self.device.feature_needs() {
            if features & feature != 0 && features & one_of == 0 {
                return Err(SlotError::FeatureNeeds { slot: self.slot, feature, one_of });
            }
        }
        Ok(())
    }

    /// Number of virtqueues.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.rings.len()
    }

    /// The maximum size of a virtqueue; 0 if there is no such virtqueue.
    #[must_use]
    pub fn queue_max_size(&self, queue: u16) -> u16 {
        self.rings.get(usize::from(queue)).map_or(0, Ring::max_size)
    }

    /// Whether a virtqueue is enabled.
    #[must_use]
    pub fn queue_ready(&self, queue: u16) -> bool {
        self.rings.get(usize::from(queue)).is_some_and(Ring::is_ready)
    }

    /// Sets the size that the driver chose. An invalid size is refused: see
    /// [`needs_reset`](Self::needs_reset).
    pub fn set_queue_size(&mut self, queue: u16, size: impl Into<u32>) {
        self.set_up(queue, |ring| ring.set_size(size.into()));
    }

    /// Enables or disables a virtqueue for the driver. A virtqueue outside guest memory is not
    /// enabled.
    pub fn set_queue_ready(&mut self, queue: u16, ready: bool) {
        let memory = self.gate.memory();
        let Some(ring) = self.rings.get_mut(usize::from(queue)) else { return };
        if !ready {
            // A queue can be disabled while the driver is active, but not changed.
            ring.set_ready(false);
        } else if !self.needs_reset && !ring.is_ready() {
            match ring.check(memory) {
                Ok(()) => ring.set_ready(true),
                Err(reason) => self.refuse(queue, &reason),
            }
        }
    }

    /// Sets the low half, the high half or both of the descriptor table's address.
    pub fn set_queue_desc(&mut self, queue: u16, low: Option<u32>, high: Option<u32>) {
        self.set_up(queue, |ring| ring.set_address(Part::Descriptors, low, high));
    }

    /// Sets the low half, the high half or both of the available ring's address.
    pub fn set_queue_avail(&mut self, queue: u16, low: Option<u32>, high: Option<u32>) {
        self.set_up(queue, |ring| ring.set_address(Part::Available, low, high));
    }

    /// Sets the low half, the high half or both of the used ring's address.
    pub fn set_queue_used(&mut self, queue: u16, low: Option<u32>, high: Option<u32>) {
        self.set_up(queue, |ring| ring.set_address(Part::Used, low, high));
    }

    /// Changes a virtqueue as the driver asks, or refuses the change. It never replaces an invalid
    /// value by another one.
    fn set_up(&mut self, queue: u16, change: impl FnOnce(&mut Ring) -> Result<(), String>) {
        if self.needs_reset {
            return;
        }
        let changed = match self.rings.get_mut(usize::from(queue)) {
            Some(ring) if !ring.is_ready() => change(ring),
            Some(_) => Err("expected it to be disabled while it is set up".to_owned()),
            None => Err("there is no such virtqueue".to_owned()),
        };
        if let Err(reason) = changed {
            self.refuse(queue, &reason);
        }
    }

    /// Records that the driver has violated the protocol: the device does nothing until it is reset
    /// (2.1.2).
    fn refuse(&mut self, queue: u16, reason: &str) {
        self.needs_reset = true;
        let slot = self.slot;
        self.warnings.warn(|| {
            format!(
                "slot {slot}, virtqueue {queue}: {reason}; the device does nothing until its driver resets it"
            )
        });
    }

    /// Logs a warning about the driver, at most one each second for the slot.
    pub fn warn(&mut self, message: impl FnOnce() -> String) {
        self.warnings.warn(message);
    }

    /// Activates the device: the driver is ready, and accepts these features.
    ///
    /// # Errors
    /// When the features or a virtqueue are invalid. The device then stays inactive and needs a
    /// reset.
    pub fn driver_ok(&mut self, features: u64) -> Result<(), SlotError> {
        if self.needs_reset {
            return Err(SlotError::NeedsReset { slot: self.slot });
        }
        let checked = self.check_features(features).and_then(|()| self.check_rings());
        if checked.is_err() {
            self.needs_reset = true;
            return checked;
        }
        self.features = features;
        self.active = true;
        self.negotiate_rings();
        self.device.activate(features);
        self.find_input_queues();
        self.gate.negotiated(self.slot, features);
        Ok(())
    }

    /// Sets the ring features. Event indexes and indirect tables are used only if the driver has
    /// accepted them.
    fn negotiate_rings(&mut self) {
        let (event_idx, indirect) =
            (self.features & EVENT_IDX != 0, self.features & INDIRECT_DESC != 0);
        self.rings.iter_mut().for_each(|ring| ring.negotiated(event_idx, indirect));
    }

    /// Updates the queues that take input: they may depend on the accepted features.
    fn find_input_queues(&mut self) {
        for input in &mut self.intakes {
            input.queues = input_queues(&**self.device, input.port);
        }
    }

    fn check_rings(&self) -> Result<(), SlotError> {
        for (queue, ring) in self.rings.iter().enumerate().filter(|(_, ring)| ring.is_ready()) {
            ring.check(self.gate.memory()).map_err(|reason| SlotError::Queue {
                slot: self.slot,
                queue,
                reason,
            })?;
        }
        Ok(())
    }

    /// Resets the device for its driver. Afterwards none of its requests is in flight, and no
    /// completion follows. Released effects are performed first, for at most
    /// [`RESET_PATIENCE`](crate::RESET_PATIENCE). Held requests are dropped, and so are released
    /// ones that have not begun by then. If a backend is then still in a system call that reads the
    /// driver's memory, the device [needs a reset](Self::needs_reset) again, and does nothing until
    /// then.
    pub fn reset(&mut self) {
        let lent = !self.gate.forget_chains(self.slot);
        if lent {
            log::warn!(
                "slot {}: cannot be reset: its backend has not finished a request that reads guest memory; look for a \
                 disk that does not answer",
                self.slot
            );
        }
        self.first_id = self.gate.ledger().next_id();
        self.rings.iter_mut().for_each(Ring::reset);
        self.intakes.iter_mut().for_each(|input| input.pending.clear());
        self.features = 0;
        self.active = false;
        self.needs_reset = lent;
        self.device.reset();
        self.find_input_queues();
        self.gate.negotiated(self.slot, 0);
    }

    /// Whether the driver has broken the rings or made an invalid setting: `DEVICE_NEEDS_RESET` in
    /// the device status.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.needs_reset
    }

    /// A number that changes when the configuration space changes.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.config_generation
    }

    /// The driver reads its configuration space.
    pub fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.device.config().read(offset, into);
    }

    /// The driver writes to its configuration space.
    pub fn write_config(&mut self, offset: u64, from: &[u8]) -> Interrupt {
        let gate = self.gate.clone();
        let mut ledger = gate.ledger();
        let device = &mut **self.device;
        ledger.detached_session(self.slot, |gate| write_config(device, offset, from, gate));
        let done = gate.end_staging(ledger, self.slot);
        self.end_all(done)
    }

    /// The driver has notified a virtqueue. Processes the virtqueue's available chains. If the
    /// virtqueue is for input, takes waiting input instead.
    pub fn kick(&mut self, queue: u16) -> Interrupt {
        if !self.usable(queue) {
            return Interrupt::NONE;
        }
        if self.intakes.iter().any(|input| input.queues.contains(&queue)) {
            return self.take_input_of(queue);
        }
        let raised = self.process_queue(queue);
        // The request may have changed the queues for input.
        let waits = |input: &InputPort| input.queues.len() > 1 && !input.pending.is_empty();
        match self.intakes.iter().position(waits) {
            Some(index) if self.usable(queue) => raised.or(self.take_input(index)),
            _ => raised,
        }
    }

    /// Processes the available chains of all queues after a restore: a saved state does not contain
    /// notifications.
    pub fn retry_all(&mut self) -> Interrupt {
        let queues = 0..self.rings.len() as u16;
        queues.fold(Interrupt::NONE, |raised, queue| raised.or(self.kick(queue)))
    }

    /// Completes a request: its chain goes back to the driver. Called on the device thread.
    pub fn complete(&mut self, completion: Completion) -> Interrupt {
        self.complete_all([completion])
    }

    /// Completes requests: their chains go back to the driver, which is interrupted once for all of
    /// them. Called on the device thread.
    pub fn complete_all(&mut self, completions: impl IntoIterator<Item = Completion>) -> Interrupt {
        let mut raised = Interrupt::NONE;
        let mut settled = Vec::new();
        for completion in completions {
            match completion.0 {
                Kind::Again { queue, .. } => raised = raised.or(self.kick(queue)),
                Kind::Performed(done) => settled.push(self.complete_one(done)),
            }
        }
        self.gate.settle_all(settled);
        raised.or(self.interrupts())
    }

    /// Takes a backend's input for a port.
    pub fn intake(&mut self, port: Port) -> Interrupt {
        match self.intakes.iter().position(|input| input.port == port) {
            Some(index) if self.usable_for_input(index) => self.take_input(index),
            // No queue is usable. The input waits at the backend until the driver is active and
            // notifies a queue.
            _ => {
                self.gate.want_input(self.slot, port, false);
                Interrupt::NONE
            }
        }
    }

    /// The state of everything that affects what the guest sees.
    #[must_use]
    pub fn save(&self) -> SlotState {
        SlotState {
            features: self.features,
            active: self.active,
            needs_reset: self.needs_reset,
            config_generation: self.config_generation,
            first_id: self.first_id.0,
            queues: self.rings.iter().map(Ring::save).collect(),
            pending_input: self
                .intakes
                .iter()
                .filter(|input| !input.pending.is_empty())
                .map(|input| (input.port.0, input.pending.clone()))
                .collect(),
            device: self.device.save(),
        }
    }

    /// Restores a saved state. The caller must then call [`retry_all`](Self::retry_all) and raise
    /// an interrupt, in case one was lost.
    ///
    /// # Errors
    /// When the state belongs to another device or is invalid. The slot is then unchanged, except
    /// for the device, which must be discarded.
    pub fn restore(&mut self, state: &SlotState) -> Result<(), SlotError> {
        if state.queues.len() != self.rings.len() {
            return Err(SlotError::QueueCount {
                slot: self.slot,
                expected: self.rings.len(),
                found: state.queues.len(),
            });
        }
        let mut rings = Vec::with_capacity(self.rings.len());
        for (queue, (ring, saved)) in self.rings.iter().zip(&state.queues).enumerate() {
            let fault = |reason| SlotError::Queue { slot: self.slot, queue, reason };
            let ring = ring.restored(saved).map_err(fault)?;
            // Event indexes belong to an active driver that has accepted them.
            let event_idx = state.active && state.features & EVENT_IDX != 0;
            if saved.event_idx != event_idx {
                let found = saved.event_idx;
                return Err(fault(format!("expected event indexes {event_idx}, found {found}")));
            }
            // The settings of an inactive driver are not checked until it becomes active.
            if state.active && ring.is_ready() {
                ring.check(self.gate.memory()).map_err(fault)?;
            }
            rings.push(ring);
        }
        if state.active {
            self.check_features(state.features)?;
        } else if state.features != 0 {
            // Only an active driver has features.
            let (slot, found) = (self.slot, state.features);
            return Err(SlotError::Features { slot, offered: 0, found });
        }
        self.device
            .restore(&state.device)
            .map_err(|error| SlotError::Device { slot: self.slot, error })?;
        self.find_input_queues();
        self.rings = rings;
        self.features = state.features;
        self.active = state.active;
        self.needs_reset = state.needs_reset;
        self.negotiate_rings();
        self.config_generation = state.config_generation;
        self.first_id = EffectId(state.first_id);
        for input in &mut self.intakes {
            let saved = state.pending_input.iter().find(|(port, _)| *port == input.port.0);
            input.pending = saved.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        }
        self.negotiate();
        Ok(())
    }

    /// Passes the accepted features to the backends again. The gate passes them to backends that
    /// are attached later.
    pub fn negotiate(&self) {
        self.gate.negotiated(self.slot, self.features);
    }

    fn usable(&self, queue: u16) -> bool {
        self.active
            && !self.needs_reset
            && self.rings.get(usize::from(queue)).is_some_and(Ring::is_ready)
    }

    fn usable_for_input(&self, index: usize) -> bool {
        self.intakes[index].queues.iter().any(|queue| self.usable(*queue))
    }

    fn interrupt(&mut self, queue: u16) -> Interrupt {
        let memory = self.gate.memory();
        let Some(ring) = self.rings.get_mut(usize::from(queue)) else { return Interrupt::NONE };
        match ring.take_interrupt(memory) {
            Ok(used) => Interrupt { used, config: false },
            Err(error) => self.broken(queue, &error),
        }
    }

    fn interrupts(&mut self) -> Interrupt {
        let queues = 0..self.rings.len() as u16;
        queues.fold(Interrupt::NONE, |raised, queue| raised.or(self.interrupt(queue)))
    }

    /// Handles a ring that the driver has broken: the device does nothing until it is reset, and
    /// the driver is interrupted.
    fn broken(&mut self, queue: u16, error: &virtio_queue::Error) -> Interrupt {
        self.refuse(queue, &error.to_string());
        self.config_generation = self.config_generation.wrapping_add(1);
        Interrupt { used: false, config: true }
    }
}

fn input_queues(device: &dyn Device, port: Port) -> Vec<u16> {
    (0..device.queues().len() as u16).filter(|queue| device.takes_input(port, *queue)).collect()
}

impl std::fmt::Debug for VirtioSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioSlot")
            .field("slot", &self.slot)
            .field("device", &self.identity)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
