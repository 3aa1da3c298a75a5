//! Tests that @NAME@ keeps the contract of a device. Add every kind of request that its driver
//! makes.

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

/// If a guest's request makes the device panic, the guest ends on every host, because it makes the
/// same request again where it continues.
#[test]
fn it_bears_any_guest() {
    contract().fuzz();
}
