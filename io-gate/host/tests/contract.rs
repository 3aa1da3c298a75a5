//! Devices of other crates, behind their adapters, meet the contract too. The clock is not tested
//! here: it shows the host's time, which differs between two runs. It has tests of its own.

use io_gate::Port;
use io_gate_contract::RegisterContract;
use io_gate_host::adapter::{I8042, Serial};

#[test]
fn serial_keeps_it() {
    RegisterContract::new(|| Box::new(Serial::new()))
        .window(8)
        .write(1, &[0x03])
        .write(0, b"b")
        .read(2, 1)
        .read(5, 1)
        .input(Port(0), b"typed")
        .read(0, 1)
        .write(3, &[0x80])
        .write(0, &[0x0c])
        .write(3, &[0x03])
        .read(0, 1)
        .write(7, &[0x55])
        .write(0, b"y")
        .read(7, 1)
        .check();
}

#[test]
fn keyboard_controller_keeps_it() {
    RegisterContract::new(|| Box::new(I8042::new()))
        .window(5)
        .read(4, 1)
        .write(4, &[0x20])
        .read(0, 1)
        .write(4, &[0xfe])
        .read(4, 1)
        .check();
}
