//! Carries a descriptor about, for somebody who knows what to do with it.

pub(crate) struct Courier {
    pub(crate) parcel: serde::Descriptor,
}
