//! Releases a console's bytes by another gate, which has no standby.

mod common;

use std::sync::Arc;

use io_gate::host::{Term, new_gate};
use io_gate::{ConsoleTx, Port};
use io_gate_host::backend::console::Console;
use io_gate_host::{Backend, GateHost, GateOptions, Unfenced};
use vm_memory::GuestAddress;

#[test]
fn another_gates_effect_is_performed() {
    let memory = io_gate_host::GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let (ledger, _authority) = new_gate();
    let gate = GateHost::new(ledger, Arc::new(memory), Arc::new(Unfenced), GateOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    gate.attach(1, Port(0), Backend::Console(Console::file(&path, false).unwrap())).unwrap();

    let (mut own, mut authority) = new_gate();
    let _ = own.run_alone(authority.alone(Term(0)));
    own.detached_session(1, |gate| gate.token::<ConsoleTx>().emit(Port(0), b"leaked".to_vec()));
    gate.push(1, Port(0), own.take_ready());
    // A lane that has panicked performs nothing more.
    gate.drain();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "leaked");
}
