//! The event sources of the device thread: the devices, and events of the whole machine.

use std::sync::{Arc, Weak};

use event_manager::{EventOps, EventSet, Events as Ready, MutEventSubscriber};

use super::Machine;
use crate::device_set::DeviceSet;
use crate::device_thread::watch;

/// The guest's notifications, finished requests, and input. Watched only once the guest runs:
/// before that, on a standby, only checkpoints may change guest memory.
pub(super) struct DeviceEvents {
    devices: Arc<DeviceSet>,
}

impl DeviceEvents {
    pub(super) fn new(devices: Arc<DeviceSet>) -> Self {
        Self { devices }
    }
}

const COMPLETIONS: u32 = u32::MAX;
const INPUTS: u32 = u32::MAX - 1;

impl MutEventSubscriber for DeviceEvents {
    fn process(&mut self, events: Ready, _ops: &mut EventOps<'_>) {
        match events.data() {
            COMPLETIONS => self.devices.take_completions(),
            INPUTS => self.devices.take_inputs(),
            kick => self.devices.kick((kick >> 16) as usize, kick as u16),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let gate = self.devices.gate();
        watch(ops, Ready::with_data(gate.completions_event(), COMPLETIONS, EventSet::IN));
        watch(ops, Ready::with_data_raw(gate.inputs_fd(), INPUTS, EventSet::IN));
        for (index, device) in (0_u32..).zip(self.devices.virtio()) {
            for (queue, kick) in (0_u32..).zip(device.kicks()) {
                watch(ops, Ready::with_data(kick, index << 16 | queue, EventSet::IN));
            }
        }
    }
}

/// Power events that the gate has released, events of vCPUs, and the loss of the right to perform.
pub(super) struct PowerEvents {
    devices: Arc<DeviceSet>,
    /// Weak: the machine owns this thread and must be able to end.
    machine: Weak<Machine>,
}

impl PowerEvents {
    pub(super) fn new(machine: &Arc<Machine>) -> Self {
        Self { devices: machine.devices().clone(), machine: Arc::downgrade(machine) }
    }
}

impl MutEventSubscriber for PowerEvents {
    fn process(&mut self, _events: Ready, ops: &mut EventOps<'_>) {
        let Some(machine) = self.machine.upgrade() else { return };
        if self.devices.gate().is_fenced_off() {
            // The event stays signalled: stop watching it.
            let _ = ops.remove(Ready::empty(self.devices.gate().fenced_event()));
            machine.on_fenced_off();
        }
        // Take one event at a time: a reset drops the waiting ones.
        while let Some(event) = self.devices.gate().next_power_event() {
            machine.on_power(event);
        }
        for event in machine.events().take() {
            machine.on_event(event);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let gate = self.devices.gate();
        watch(ops, Ready::new(gate.power_event(), EventSet::IN));
        watch(ops, Ready::new(gate.fenced_event(), EventSet::IN));
        watch(ops, Ready::new(self.devices.events().event(), EventSet::IN));
    }
}
