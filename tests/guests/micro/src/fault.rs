//! The end of the guest: a panic or an unexpected exception prints one `PANIC` line and stops all
//! work.

use crate::{cpu, say};
use core::panic::PanicInfo;

/// The record that `boot.s` makes of an exception.
#[repr(C)]
pub struct FaultRecord {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rsp: u64,
    cr2: u64,
}

/// Entry from `boot.s` in ring 3, after an exception.
#[unsafe(no_mangle)]
extern "C" fn fault_main(fault: &FaultRecord) -> ! {
    say!(
        "\nPANIC exception vector={} error={:#x} rip={:#x} cs={:#x} rsp={:#x} cr2={:#x}",
        fault.vector,
        fault.error,
        fault.rip,
        fault.cs,
        fault.rsp,
        fault.cr2
    );
    cpu::halt_forever()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(place) => say!("\nPANIC {} at {}:{}", info.message(), place.file(), place.line()),
        None => say!("\nPANIC {}", info.message()),
    }
    cpu::halt_forever()
}
