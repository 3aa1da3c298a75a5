//! Power-off, reset and the power button.

use crate::cpu::{NET_VECTOR, halt_forever, in_word, out_byte, out_word};
use crate::ioapic::IoApic;

/// The PM1a control register of ACPI, on QEMU's q35 and on Kemari.
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_S5: u16 = 5 << 10;
const SLEEP_TYPE_NONE: u16 = 3 << 10;
/// QEMU's isa-debug-exit device, for machines without a PM1a control register.
const DEBUG_EXIT: u16 = 0x501;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const RESET_CONTROL: u16 = 0xcf9;

/// The PM1a status and enable registers of ACPI, and the interrupt for their events.
const PM1A_STATUS: u16 = 0x600;
const PM1A_ENABLE: u16 = 0x602;
const POWER_BUTTON: u16 = 1 << 8;
const SYSTEM_CONTROL_INTERRUPT: u32 = 9;

/// Makes the power button wake this CPU.
pub fn listen_to_button(io_apic: &IoApic) {
    // Edge triggered: the interrupt stub acknowledges no device, so a level would interrupt without
    // end.
    io_apic.route(SYSTEM_CONTROL_INTERRUPT, NET_VECTOR);
    out_word(PM1A_STATUS, POWER_BUTTON);
    out_word(PM1A_ENABLE, POWER_BUTTON);
}

/// Whether the button was pressed. Returns `true` once for each press.
pub fn button_was_pressed() -> bool {
    let pressed = in_word(PM1A_STATUS) & POWER_BUTTON != 0;
    if pressed {
        out_word(PM1A_STATUS, POWER_BUTTON);
    }
    pressed
}

/// Powers the machine off.
pub fn off() -> ! {
    out_word(PM1A_CONTROL, SLEEP_ENABLE | SLEEP_TYPE_S5);
    out_byte(DEBUG_EXIT, 0);
    halt_forever()
}

/// Requests a sleep type that the machine does not have.
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
