//! Tests that the beeper keeps the contract.

use io_gate_contract::VirtioContract;
use kemari_devices::Beeper;

fn contract() -> VirtioContract {
    VirtioContract::new(|| Box::new(Beeper::new()))
        .request(0, b"a line\n", 1)
        .request(0, b"another, which is longer than the first\n", 1)
        .request(0, b"no answer wanted\n", 0)
        .request(0, b"", 1)
}

#[test]
fn it_keeps_the_contract() {
    contract().check();
}

#[test]
fn it_bears_any_guest() {
    contract().fuzz();
}
