//! @NAME@ keeps the contract of a device. Put every kind of access in here that its driver makes.

use io_gate_contract::RegisterContract;
use kemari_devices::@TYPE@;

fn contract() -> RegisterContract {
    RegisterContract::new(|| Box::new(@TYPE@::new()))
        .window(0x10)
        .write(0, b"a")
        .read(8, 8)
        .write(0, b"\n")
        .read(8, 4)
        .write(4, b"not printed")
        .read(0, 1)
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
