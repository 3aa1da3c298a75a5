//! Checks that a device comes from a crate that `cargo xtask gate` checks (P5).
//!
//! The compiler's type name shows a type's crate: an alias, a macro or another file of this crate
//! does not change it.

use std::any::type_name;

use io_gate::{Device, RegisterDevice};

/// The crates that may define devices: the crate of devices, and the crate with the adapters for
/// foreign devices. The same as in `gate.toml`.
const CRATES: [&str; 2] = ["kemari_devices", "io_gate_host"];
/// Further crates whose types may be parts of a device: `core`, `alloc`, and the foreign devices in
/// adapters.
const PARTS: [&str; 3] = ["core", "alloc", "vm_superio"];

/// The device is from a crate that the gate does not check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "device `{name}`: expected a type of one of the crates {CRATES:?}, found one of `{found}`, which `cargo xtask \
    gate` does not check: make it a module of the crate `kemari-devices`"
)]
pub struct NotGated {
    name: &'static str,
    found: &'static str,
}

/// Creates a device once, on the device thread, which has no rights to the outside.
pub type Make<D> = Box<dyn FnOnce() -> Result<Box<D>, NotGated> + Send>;

/// Creates a virtio device by `make`.
pub fn virtio<D: Device + 'static>(make: impl FnOnce() -> D + Send + 'static) -> Make<dyn Device> {
    // Check the type before any of the device's code runs.
    Box::new(move || check(type_name::<D>()).map(|()| Box::new(make()) as Box<dyn Device>))
}

/// Creates a register device by `make`.
pub fn registers<D: RegisterDevice + 'static>(
    make: impl FnOnce() -> D + Send + 'static,
) -> Make<dyn RegisterDevice> {
    Box::new(move || check(type_name::<D>()).map(|()| Box::new(make()) as Box<dyn RegisterDevice>))
}

/// P5: checks that the gate checks the crate of the type and of each of its parts.
fn check(name: &'static str) -> Result<(), NotGated> {
    let mut crates = paths(name).map(crate_of);
    let own = crates.next().unwrap_or_default();
    let stranger = crates.find(|of| !CRATES.contains(of) && !PARTS.contains(of));
    match stranger.or((!CRATES.contains(&own)).then_some(own)) {
        Some(found) => Err(NotGated { name, found }),
        None => Ok(()),
    }
}

/// The paths in a type's name: `a::B<c::D>` has two. Text that is not a path (`u8`, `&`) belongs to
/// no crate.
fn paths(name: &'static str) -> impl Iterator<Item = &'static str> {
    name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .filter(|path| path.contains("::") && !path.starts_with("::"))
}

fn crate_of(path: &'static str) -> &'static str {
    path.split("::").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use io_gate_host::adapter::{I8042, Rtc, Serial};

    use super::*;

    struct Stranger;

    #[test]
    fn p5_a_device_of_another_crate_is_refused() {
        let error = check(type_name::<Stranger>()).expect_err("it is of this crate");
        assert_eq!(error.found, "kemari_machine");
        for stranger in [
            "io_gate_host::adapter::Adapter<leaky::Pager>",
            "kemari_devices::Wrapper<leaky::Pager>",
            "kemari_devices_of_mine::Pager",
            "alloc::boxed::Box<kemari_devices::Beeper>",
            "(kemari_devices::Beeper, leaky::Pager)",
            "dyn leaky::Any",
            "Pager",
        ] {
            assert!(check(stranger).is_err(), "{stranger}");
        }
    }

    #[test]
    fn p5_the_machines_own_devices_are_not() {
        for own in [
            type_name::<devices::Beeper>(),
            type_name::<devices::E1000>(),
            type_name::<Serial>(),
            type_name::<Rtc>(),
            type_name::<I8042>(),
        ] {
            assert_eq!(check(own), Ok(()), "{own}");
        }
    }
}
