//! @NAME@: say here what the device is, and which specification it follows.

use io_gate::{
    Chain, ConfigSpace, ConsoleTx, Device, DeviceError, Gate, Identity, Outcome, Port, SavedState,
    StateError, Verdict, config_space, saved_state,
};

/// Virtio assigns 0xff00 to no device (virtio 1.2, 5). Replace it by the number in your device's
/// specification.
const IDENTITY: Identity = Identity { kind: "@NAME@", virtio_id: 0xff00, state_version: 1 };

const QUEUE_SIZE: u16 = 64;
/// The port of the printed text.
const OUTPUT: Port = Port(0);
/// The longest text in one request, in bytes.
const MAX_TEXT: usize = 4096;

/// The answer to the driver: the text was printed, or it was lost.
const PRINTED: u8 = 0;
const LOST: u8 = 1;

saved_state! {
    /// A request is text to read, and one byte of room for the answer.
    #[derive(Debug, Default)]
    pub struct @TYPE@ {
        /// Number of requests so far.
        count: u64,
    }
}

config_space! {
    /// What the driver reads without a request.
    struct Space {
        count: u64,
    }
}

impl @TYPE@ {
    /// The device after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for @TYPE@ {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&Space { count: self.count })
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let len = chain.readable();
        if len == 0 || len > MAX_TEXT {
            let (most, found) = (MAX_TEXT as u64, len as u64);
            return Err(DeviceError::Amount { of: "bytes of text", least: 1, most, found });
        }
        let text = chain.take_payload(len)?;
        self.count = self.count.wrapping_add(1);
        Ok(gate.token::<ConsoleTx>().stage(OUTPUT, text))
    }

    fn complete(&mut self, _queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let answer = if matches!(outcome, Outcome::Success(_)) { PRINTED } else { LOST };
        // A driver that gave no room wants no answer.
        chain.write(&[answer]).map_or(0, |()| 1)
    }

    fn save(&self) -> SavedState {
        SavedState::of(&IDENTITY, self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        *self = state.open(&IDENTITY)?;
        Ok(())
    }
}
