//! A driver that takes an operation of an own disk and drops it: the standby's image misses it.

use io_gate::host::{Origin, OwnGate, OwnPorts, new_gate_with_own_disks};
use io_gate::{BlockFlush, Port};

#[test]
fn an_operation_that_is_dropped_is_not_missed() {
    let OwnGate { mut ledger, .. } = new_gate_with_own_disks(OwnPorts::new(vec![(0, Port(0))]));
    let origin = Origin::Chain { slot: 0, queue: 0, head: 0 };
    let staged = ledger.chain_session(origin, |gate| Ok(gate.token::<BlockFlush>().stage(Port(0))));
    assert!(staged.is_ok());
    drop(ledger.take_own(|_| None));
    ledger.seal();
}
