//! @NAME@ keeps the contract of a device. Put every kind of request in here that its driver makes.

use io_gate_contract::VirtioContract;
use kemari_devices::@TYPE@;

#[test]
fn it_keeps_the_contract() {
    VirtioContract::new(|| Box::new(@TYPE@::new()))
        .request(0, b"a line\n", 1)
        .request(0, b"another, which is longer than the first\n", 1)
        .request(0, b"no answer wanted\n", 0)
        .request(0, b"", 1)
        .check();
}
