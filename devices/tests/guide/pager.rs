//! A pager: it prints the driver's text, unless the driver has muted it. The guide builds it step
//! by step.

// ANCHOR: uses
use io_gate::{
    Chain, ConfigSpace, ConfigWrite, ConsoleTx, Device, DeviceError, Gate, Identity, Outcome, Port,
    SavedState, StateError, Verdict, Writable, config_space, saved_state,
};
// ANCHOR_END: uses

/// Virtio assigns 0xff00 to no device (virtio 1.2, 5). Replace it by the number in your device's
/// specification.
// ANCHOR: identity
const IDENTITY: Identity = Identity { kind: "pager", virtio_id: 0xff00, state_version: 2 };
// ANCHOR_END: identity

const QUEUE_SIZE: u16 = 64;
/// The port of the printed text.
const OUTPUT: Port = Port(0);
/// The longest text in one request, in bytes.
const MAX_TEXT: usize = 4096;

// ANCHOR: constants
/// The driver's answer when its text was printed, when it was not, and when the pager was muted.
const PRINTED: u8 = 0;
const LOST: u8 = 1;
const MUTED: u8 = 2;
// ANCHOR_END: constants

// ANCHOR: fields
saved_state! {
    /// A request is text to read and a byte of room for the answer.
    #[derive(Debug, Default)]
    pub struct Pager {
        /// Number of requests so far.
        count: u64,
        /// It takes the text and prints nothing.
        muted: bool,
    }
}

config_space! {
    /// What the driver reads without a request.
    struct Space {
        count: u64,
        /// The switch, at offset 8: one byte, 1 is muted and 0 is not.
        muted: Writable<bool>,
    }
}
// ANCHOR_END: fields

impl Pager {
    /// The device after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // ANCHOR: space
    fn space(&self) -> Space {
        Space { count: self.count, muted: Writable::new(self.muted) }
    }
    // ANCHOR_END: space
}

impl Device for Pager {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    // ANCHOR: config
    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&self.space())
    }

    fn write_config(&mut self, write: ConfigWrite<'_>, _gate: &mut Gate<'_>) {
        if let Some(muted) = write.apply(self.space()).muted.change() {
            self.muted = muted;
        }
    }
    // ANCHOR_END: config

    fn reset(&mut self) {
        *self = Self::new();
    }

    // ANCHOR: process
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
        if self.muted {
            // A driver that gave no room wants no answer.
            return Ok(Verdict::Done(chain.write(&[MUTED]).map_or(0, |()| 1)));
        }
        Ok(gate.token::<ConsoleTx>().stage(OUTPUT, text))
    }
    // ANCHOR_END: process

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
