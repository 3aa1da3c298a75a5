//! A type, and nothing else.

/// The device.
#[derive(Debug, Default)]
pub struct Pager {
    pub(crate) seen: u64,
}
