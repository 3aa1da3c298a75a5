//! Records the device that each thread is serving, for the message of a panic.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use io_gate::Identity;

thread_local! {
    static SERVED: Cell<Option<Served>> = const { Cell::new(None) };
}

/// A device, as a message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The kind of the device.
    pub kind: &'static str,
    /// The slot of the device.
    pub slot: u16,
}

/// The device that the calling thread is serving.
#[must_use]
pub fn served() -> Option<Served> {
    SERVED.get()
}

/// A locked device that a thread serves. A thread serves at most one.
pub(crate) struct Serving<'s, T>(MutexGuard<'s, T>);

impl<'s, T> Serving<'s, T> {
    pub(crate) fn begin(device: MutexGuard<'s, T>, identity: &Identity, slot: u16) -> Self {
        SERVED.set(Some(Served { kind: identity.kind, slot }));
        Self(device)
    }
}

impl<T> Deref for Serving<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Serving<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for Serving<'_, T> {
    fn drop(&mut self) {
        SERVED.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[test]
    fn a_device_is_served_for_as_long_as_it_is_locked() {
        let device = Mutex::new(());
        let identity = Identity { kind: "pager", virtio_id: 0xff00, state_version: 1 };
        let locked = device.lock().unwrap_or_else(PoisonError::into_inner);
        let serving = Serving::begin(locked, &identity, 7);
        assert_eq!(served(), Some(Served { kind: "pager", slot: 7 }));
        drop(serving);
        assert_eq!(served(), None);
    }
}
