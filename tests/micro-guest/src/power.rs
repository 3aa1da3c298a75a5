//! The end that was asked for: power-off and reset.

use crate::cpu::{halt_forever, out_byte, out_word};

/// ACPI's PM1a control register, where QEMU's q35 and Kemari have it.
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_S5: u16 = 5 << 10;
const SLEEP_TYPE_NONE: u16 = 3 << 10;
/// QEMU's isa-debug-exit, for machines without a PM1a register.
const DEBUG_EXIT: u16 = 0x501;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const RESET_CONTROL: u16 = 0xcf9;

/// Powers the machine off.
pub fn off() -> ! {
    out_word(PM1A_CONTROL, SLEEP_ENABLE | SLEEP_TYPE_S5);
    out_byte(DEBUG_EXIT, 0);
    halt_forever()
}

/// Asks for a sleep that the machine does not have.
pub fn nonsense() {
    out_word(PM1A_CONTROL, SLEEP_ENABLE | SLEEP_TYPE_NONE);
}

/// Resets the machine.
pub fn reset() -> ! {
    out_byte(KEYBOARD_COMMAND, KEYBOARD_RESET);
    out_byte(RESET_CONTROL, 6);
    out_byte(DEBUG_EXIT, 1);
    halt_forever()
}
