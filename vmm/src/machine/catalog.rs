//! The devices that are asked for by name: `--device NAME`. One line each; `cargo xtask new-device` adds them.

use io_gate::{Device, RegisterDevice};

/// How a device is made, as it is after power-on.
#[derive(Clone, Copy)]
pub enum Make {
    /// A virtio device, which gets a virtio-mmio window.
    Virtio(fn() -> Box<dyn Device>),
    /// A device that is driven by registers, which gets the window of a virtio device for them.
    Registers(fn() -> Box<dyn RegisterDevice>),
}

/// A device and its name.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What follows `--device`.
    pub name: &'static str,
    /// How it is made.
    pub make: Make,
}

/// All of them.
#[rustfmt::skip]
pub const CATALOG: &[Entry] = &[
    Entry { name: "beeper", make: Make::Virtio(|| Box::new(devices::Beeper::new())) },
    // New devices go above this line.
];

/// The device of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

/// All names, for messages.
#[must_use]
pub fn names() -> String {
    let quoted: Vec<String> = CATALOG.iter().map(|entry| format!("`{}`", entry.name)).collect();
    quoted.join(", ")
}
