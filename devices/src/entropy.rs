//! Virtio entropy device (virtio 1.2, section 5.4).
//!
//! The driver queues empty buffers. The device requests random bytes from the gate for each. The
//! host writes them through the gate, and so marks the pages dirty (P8).

use io_gate::{Chain, Device, DeviceError, Gate, Identity, Verdict};

const IDENTITY: Identity = Identity { kind: "virtio-rng", virtio_id: 4, state_version: 2 };

const QUEUE_SIZE: u16 = 64;
/// Maximum bytes per request. A driver that asks for more gets this number.
const MAX_BYTES: usize = 64 * 1024;

/// A virtio source of random bytes.
#[derive(Debug, Default)]
pub struct Entropy;

impl Entropy {
    /// A source of random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Device for Entropy {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let len = chain.writable().min(MAX_BYTES);
        if len == 0 {
            return Err(DeviceError::Malformed("expected room for random bytes, found none"));
        }
        let into = chain.take_space(len)?;
        Ok(gate.entropy(into))
    }
}

#[cfg(test)]
mod tests {
    use io_gate::Outcome;
    use io_gate::host::{ChainOutcome, InputOp, Request};

    use super::*;
    use crate::test_support::{Memory, TestGate, chain};

    #[test]
    fn it_asks_for_as_much_as_there_is_room() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Entropy::new());
        for (room, expected) in [(64, 64), (MAX_BYTES as u32 + 1, MAX_BYTES)] {
            let outcome = gate.process(&mut device, 0, chain(&memory, &[], &[(0, room)]));
            assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
            let requests = gate.requests();
            assert!(matches!(
                requests.as_slice(),
                [Request::Input(InputOp::Entropy { into })] if into.len() == expected
            ));
        }
        let mut whole = chain(&memory, &[], &[(0, 64)]);
        assert_eq!(device.complete(0, &mut whole, Outcome::Success(64)), 64);
        assert_eq!(device.complete(0, &mut whole, Outcome::Failed), 0);
    }

    #[test]
    fn a_chain_without_room_is_an_error() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Entropy::new());
        assert!(gate.process(&mut device, 0, chain(&memory, &[(0, 8)], &[])).is_err());
    }
}
