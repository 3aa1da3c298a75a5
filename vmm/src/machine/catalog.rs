//! The devices that are asked for by name: `--device NAME`. One line each; `cargo xtask new-device` adds them.

use io_gate::{Device, RegisterDevice};

use super::gated::{self, Make};

/// How a device is made, as it is after power-on.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A virtio device, which gets a virtio-mmio window.
    Virtio(fn() -> Make<dyn Device>),
    /// A device that is driven by registers, which gets the window of a virtio device for them.
    Registers(fn() -> Make<dyn RegisterDevice>),
}

/// A device and its name.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What follows `--device`.
    pub name: &'static str,
    /// How it is made.
    pub kind: Kind,
}

impl Entry {
    /// A virtio device. Its `Default` is what it is after power-on.
    #[must_use]
    pub const fn virtio<D: Device + Default + 'static>(name: &'static str) -> Self {
        Self { name, kind: Kind::Virtio(|| gated::virtio(D::default)) }
    }

    /// A device that is driven by registers. Its `Default` is what it is after power-on.
    #[must_use]
    pub const fn registers<D: RegisterDevice + Default + 'static>(name: &'static str) -> Self {
        Self { name, kind: Kind::Registers(|| gated::registers(D::default)) }
    }
}

/// All of them.
#[rustfmt::skip]
pub const CATALOG: &[Entry] = &[
    Entry::virtio::<devices::Beeper>("beeper"),
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
