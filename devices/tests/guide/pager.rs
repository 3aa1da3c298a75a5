//! A pager: it prints what the driver gives it, unless the driver has muted it. The guide builds it
//! step by step.

use io_gate::{
    Chain, ConsoleTx, Device, DeviceError, Gate, Identity, Outcome, Port, SavedState, StateError,
    Verdict,
};

use crate::read_bytes;

/// No number of virtio's own (virtio 1.2, 5): give it its specification's.
// ANCHOR: identity
const IDENTITY: Identity = Identity { kind: "pager", virtio_id: 0xff00, state_version: 2 };
// ANCHOR_END: identity

const QUEUE_SIZE: u16 = 64;
/// What it prints appears here.
const OUTPUT: Port = Port(0);
/// The longest text in one request.
const MAX_TEXT: usize = 4096;

// ANCHOR: constants
/// The driver's answer when its text was printed, when it was not, and when the pager was muted.
const PRINTED: u8 = 0;
const LOST: u8 = 1;
const MUTED: u8 = 2;

/// Where the switch is in the configuration space: a byte, 1 is muted and 0 is not.
const MUTE: u64 = 8;
// ANCHOR_END: constants

// ANCHOR: struct
/// A request is text to read and a byte of room for the answer.
#[derive(Debug, Default)]
pub struct Pager {
    /// Requests taken so far; the driver reads it in the configuration space.
    count: u64,
    muted: bool,
}
// ANCHOR_END: struct

impl Pager {
    /// The device as it is after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for Pager {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    // ANCHOR: config
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let mut space = self.count.to_le_bytes().to_vec();
        space.push(self.muted.into());
        read_bytes(&space, offset, into);
    }

    fn write_config(&mut self, offset: u64, from: &[u8], _gate: &mut Gate<'_>) {
        // What else a driver writes has no effect.
        if let (MUTE, &[switch @ (0 | 1)]) = (offset, from) {
            self.muted = switch == 1;
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

    // ANCHOR: state
    fn save(&self) -> SavedState {
        SavedState::new(&IDENTITY).number("count", self.count).number("muted", self.muted.into())
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let count = fields.number("count")?;
        let muted = fields.flag("muted")?;
        fields.close()?;
        *self = Self { count, muted };
        Ok(())
    }
    // ANCHOR_END: state
}
