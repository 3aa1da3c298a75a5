//! The catalogue of devices for `--device NAME`, one line per device; `cargo xtask new-device` adds
//! lines.

use io_gate::{Device, RegisterDevice};

use crate::gated::{self, Make};

/// Creates a device in its power-on state.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A virtio device. It gets a virtio-mmio window.
    Virtio(fn() -> Make<dyn Device>),
    /// A register device. It gets a virtio device's window for its registers.
    Registers(fn() -> Make<dyn RegisterDevice>),
}

/// The name and kind of a device.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The name after `--device`.
    pub name: &'static str,
    /// How to create the device.
    pub kind: Kind,
}

impl Entry {
    /// A virtio device; its `Default` is the power-on state.
    #[must_use]
    pub const fn virtio<D: Device + Default + 'static>(name: &'static str) -> Self {
        Self { name, kind: Kind::Virtio(|| gated::virtio(D::default)) }
    }

    /// A register device; its `Default` is the power-on state.
    #[must_use]
    pub const fn registers<D: RegisterDevice + Default + 'static>(name: &'static str) -> Self {
        Self { name, kind: Kind::Registers(|| gated::registers(D::default)) }
    }
}

/// All devices of the catalogue.
#[rustfmt::skip]
pub const CATALOG: &[Entry] = &[
    Entry::virtio::<devices::Beeper>("beeper"),
    // New devices go above this line.
];

/// The device of this name.
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
