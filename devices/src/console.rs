//! Virtio console with one port (virtio 1.2, section 5.3).
//!
//! The driver's output is an effect: the device stages it at the gate. The terminal's input goes
//! into the buffers that the driver has queued.

use io_gate::{
    Chain, ConsoleTx, Device, DeviceError, Gate, Identity, Intake, Outcome, Port, Verdict,
};

const IDENTITY: Identity = Identity { kind: "virtio-console", virtio_id: 3, state_version: 2 };

const QUEUE_SIZE: u16 = 64;
const RECEIVE: u16 = 0;
/// The port of the terminal.
const TERMINAL: Port = Port(0);
/// Maximum output in one chain, in bytes. The device refuses more, because the machine would have
/// to buffer it.
const MAX_OUTPUT: usize = 64 * 1024;

/// A virtio console. It offers no size, no further ports and no emergency output.
#[derive(Debug, Default)]
pub struct Console;

impl Console {
    /// A console on the terminal behind port 0.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Device for Console {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn process<'e>(
        &mut self,
        queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        if queue == RECEIVE {
            return Err(DeviceError::Malformed("expected no request on the receive queue"));
        }
        let len = chain.readable();
        if len > MAX_OUTPUT {
            return Err(DeviceError::Amount {
                of: "bytes of output in a chain",
                least: 0,
                most: MAX_OUTPUT as u64,
                found: len as u64,
            });
        }
        if len == 0 {
            return Ok(Verdict::Done(0));
        }
        let bytes = chain.take_payload(len)?;
        Ok(gate.token::<ConsoleTx>().stage(TERMINAL, bytes))
    }

    fn complete(&mut self, _queue: u16, _chain: &mut Chain<'_>, _outcome: Outcome) -> u32 {
        0
    }

    fn intake_queue(&self, port: Port) -> Option<u16> {
        (port == TERMINAL).then_some(RECEIVE)
    }

    fn intake(
        &mut self,
        _port: Port,
        data: &[u8],
        chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        let len = data.len().min(chain.writable());
        chain.write(&data[..len])?;
        Ok(Intake { used: len as u32, consumed: len })
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{ChainOutcome, EffectOp, Request};

    use super::*;
    use crate::test_support::{Memory, TestGate, chain};

    #[test]
    fn output_is_staged_and_input_fills_chains() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Console::new());
        let outcome = gate.process(&mut device, 1, chain(&memory, &[(0, 5)], &[]));
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let requests = gate.requests();
        assert!(matches!(
            requests.as_slice(),
            [Request::Effect(EffectOp::ConsoleTx { bytes, .. })] if bytes.len() == 5
        ));
        let empty = gate.process(&mut device, 1, chain(&memory, &[], &[]));
        assert_eq!(empty, Ok(ChainOutcome::Done(0)));
        let mut room = chain(&memory, &[], &[(0x10, 3)]);
        assert_eq!(
            device.intake(TERMINAL, b"hello", &mut room),
            Ok(Intake { used: 3, consumed: 3 })
        );
        assert_eq!(memory.get(0x10, 3), b"hel");
    }

    #[test]
    fn chains_of_no_shape_are_errors() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Console::new());
        let long = chain(&memory, &[(0, MAX_OUTPUT as u32 + 1)], &[]);
        assert!(gate.process(&mut device, 1, long).is_err());
        assert!(gate.process(&mut device, 0, chain(&memory, &[(0, 1)], &[])).is_err());
    }
}
