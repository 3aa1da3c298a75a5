//! Opens a gate of its own, spelled as raw identifiers.

pub(crate) fn transmit() {
    drop(self::io_gate::r#host::new_gate());
}

use io_gate;
