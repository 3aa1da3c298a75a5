//! The beeper keeps the contract.

use io_gate_contract::VirtioContract;
use kemari_devices::Beeper;

#[test]
fn it_keeps_the_contract() {
    VirtioContract::new(|| Box::new(Beeper::new()))
        .request(0, b"a line\n", 1)
        .request(0, b"another, which is longer than the first\n", 1)
        .request(0, b"no answer wanted\n", 0)
        .request(0, b"", 1)
        .check();
}
