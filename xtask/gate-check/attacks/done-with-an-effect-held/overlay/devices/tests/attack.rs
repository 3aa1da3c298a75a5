//! A session with a staged effect and the answer that it is done. The test passes if the far side
//! accepts it.

use io_gate::host::{Origin, new_gate};
use kemari_devices::attack::process;

#[test]
fn a_flush_is_done_before_it_is_performed() {
    let (mut ledger, _authority) = new_gate();
    let origin = Origin::Chain { slot: 0, queue: 0, head: 0 };
    assert!(ledger.chain_session(origin, |gate| process(gate)).is_ok());
    ledger.seal();
}
