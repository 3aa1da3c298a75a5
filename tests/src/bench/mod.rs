//! The benchmark: real pairs with the micro-guest, measured side by side with the limits of the machine.

pub mod data;
