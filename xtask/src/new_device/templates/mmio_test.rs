//! @NAME@ keeps the contract of a device. Put every kind of access in here that its driver makes.

use io_gate_contract::RegisterContract;
use kemari_devices::@TYPE@;

#[test]
fn it_keeps_the_contract() {
    RegisterContract::new(|| Box::new(@TYPE@::new()))
        .window(0x10)
        .write(0, b"a")
        .read(8, 8)
        .write(0, b"\n")
        .read(8, 4)
        .write(4, b"not printed")
        .read(0, 1)
        .check();
}
