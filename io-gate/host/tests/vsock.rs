//! Bytes on a stream of a virtio socket are held like every effect, and answered as unsupported if
//! the port has no backend.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{DATA, Driver, RING, SLOT, STATUS, Switch, VERSION_1, complete, guest_memory};
use io_gate::host::new_gate;
use io_gate::{
    Chain, Device, DeviceError, Gate, Identity, Outcome, Port, Verdict, VsockStream, VsockTx,
};
use io_gate_host::{GateHost, GateOptions, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

const IDENTITY: Identity = Identity { kind: "streams", virtio_id: 19, state_version: 1 };
const STREAM: VsockStream = VsockStream { guest_port: 1024, host_port: 5 };
const UNSUPPORTED: u8 = 2;

/// Sends each chain on one stream, and writes the outcome into a status byte.
struct Streams;

impl Device for Streams {
    fn identity(&self) -> Identity {
        IDENTITY
    }
    fn queues(&self) -> &[u16] {
        &[16]
    }
    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let bytes = chain.take_payload(chain.readable())?;
        Ok(gate.token::<VsockTx>().stage(Port(0), STREAM, bytes))
    }
    fn complete(&mut self, _queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let status = match outcome {
            Outcome::Success(_) => 0,
            Outcome::Failed => 1,
            Outcome::Unsupported => UNSUPPORTED,
        };
        chain.write(&[status]).map_or(0, |()| 1)
    }
}

#[test]
fn a_stream_without_a_backend_is_held_then_answered_as_unsupported() {
    let memory = guest_memory();
    let (ledger, mut authority) = new_gate();
    let fence = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
    let gate = GateHost::new(ledger, memory.clone(), fence, GateOptions::default()).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(Streams), gate.clone());
    let mut driver = Driver::new(&memory, RING);
    driver.install(&mut slot, 0);
    slot.driver_ok(VERSION_1).unwrap();
    memory.write_obj(0xaa_u8, GuestAddress(STATUS)).unwrap();
    driver.add(&[(DATA, 5)], &[(STATUS, 1)]);

    let _ = slot.kick(0);
    assert_eq!(gate.held(), 1);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0xaa);
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    let _ = complete(&gate, &mut slot, 1);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), UNSUPPORTED);
    let _ = gate.seal();
    assert_eq!(gate.counts().performed, 1);
}
