//! Tests that @NAME@ keeps the contract of a device. Add every kind of access that its driver
//! makes.

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

/// If a guest's request makes the device panic, the guest ends on every host, because it makes the
/// same request again where it continues.
#[test]
fn it_bears_any_guest() {
    contract().fuzz();
}
