//! A session with two effects and one answer. The test passes if the far side accepts it.

use io_gate::host::{Origin, new_gate};
use kemari_devices::attack::process;

#[test]
fn the_second_effect_is_nobodys() {
    let (mut ledger, _authority) = new_gate();
    let origin = Origin::Chain { slot: 0, queue: 0, head: 0 };
    assert!(ledger.chain_session(origin, |gate| process(gate)).is_ok());
    ledger.seal();
}
