//! Drives the device as a guest does. The test passes if the gate does not stop.

use io_gate::host::new_gate;
use kemari_devices::attack::keep;

#[test]
fn a_token_is_gone_and_nobody_notices() {
    let (mut ledger, _authority) = new_gate();
    ledger.detached_session(0, |gate| keep(gate));
    ledger.seal();
}
