//! @NAME@ keeps the contract of a device. Put every kind of request in here that its driver makes.

use io_gate_contract::VirtioContract;
use kemari_devices::@TYPE@;

fn contract() -> VirtioContract {
    VirtioContract::new(|| Box::new(@TYPE@::new()))
        .request(0, b"a line\n", 1)
        .request(0, b"another, which is longer than the first\n", 1)
        .request(0, b"no answer wanted\n", 0)
        .request(0, b"", 1)
}

#[test]
fn it_keeps_the_contract() {
    contract().check();
}

/// A panic over what a guest does ends the guest on every host: it makes the same request wherever
/// it goes on.
#[test]
fn it_bears_any_guest() {
    contract().fuzz();
}
