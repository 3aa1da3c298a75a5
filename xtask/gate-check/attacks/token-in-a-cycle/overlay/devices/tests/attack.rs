//! The device is driven as by a guest; the gate must not go on.

use io_gate::host::new_gate;
use kemari_devices::attack::keep;

#[test]
fn a_token_is_gone_and_nobody_notices() {
    let (mut ledger, _authority) = new_gate();
    ledger.detached_session(0, |gate| keep(gate));
    ledger.seal();
}
