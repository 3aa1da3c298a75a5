//! A virtio source of random bytes (virtio 1.2, 5.4).

use io_gate::{
    Chain, Device, DeviceError, Gate, Identity, Intake, Outcome, Port, SavedState, StateError,
    Verdict,
};

use crate::read_bytes;

const IDENTITY: Identity = Identity { kind: "virtio-rng", virtio_id: 4, state_version: 1 };

const QUEUE_SIZE: u16 = 64;
/// A driver that asks for more gets this much.
const MAX_BYTES: usize = 64 * 1024;

/// A virtio source of random bytes.
#[derive(Debug, Default)]
pub struct Entropy {
    features: u64,
}

impl Entropy {
    /// A source of random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for Entropy {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_bytes(&[], offset, into);
    }

    fn write_config(&mut self, _offset: u64, _from: &[u8], _gate: &mut Gate<'_>) {
        // It has no configuration space.
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn reset(&mut self) {
        self.features = 0;
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

    fn complete(&mut self, _queue: u16, _chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        match outcome {
            Outcome::Success(len) => len,
            Outcome::Failed | Outcome::Unsupported => 0,
        }
    }

    fn intake_queue(&self, _port: Port) -> Option<u16> {
        None
    }

    fn intake(
        &mut self,
        _port: Port,
        data: &[u8],
        _chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        Ok(Intake { used: 0, consumed: data.len() })
    }

    fn save(&self) -> SavedState {
        SavedState::new(&IDENTITY).number("features", self.features)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let features = fields.number("features")?;
        fields.close()?;
        self.features = features;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn its_state_comes_back() {
        let mut device = Entropy::new();
        device.activate(5);
        let mut other = Entropy::new();
        assert_eq!(other.restore(&device.save()), Ok(()));
        assert_eq!(other.save(), device.save());
    }
}
