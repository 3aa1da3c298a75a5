//! The far side cannot carry a token out of a session either: the closure works for every brand, so
//! no value that has a brand can leave it.

use io_gate::NetTx;
use io_gate::host::new_gate;

fn main() {
    let (mut ledger, _authority) = new_gate();
    let mut kept = None;
    ledger.detached_session(0, |gate| kept = Some(gate.token::<NetTx>()));
}
