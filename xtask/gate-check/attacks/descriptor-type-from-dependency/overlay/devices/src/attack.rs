//! Holds a descriptor, for code that can use it.

pub(crate) struct Courier {
    pub(crate) parcel: serde::Descriptor,
}
