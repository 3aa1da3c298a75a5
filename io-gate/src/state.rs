//! The saved state of a device: its kind, a version, and named fields, all of them required.
//!
//! A device declares its fields, with their types, within [`saved_state!`](crate::saved_state).
//! [`SavedState::of`] saves them. [`SavedState::open`] refuses a field that is missing, left over
//! or out of its type's range.

mod error;
mod field;

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
pub use error::StateError;
pub use field::Bytes;
use field::{Misfit, StateField, Value};

/// Declares a struct that a device saves: the device itself, or the part of it that is state.
///
/// A field is a `u8`, `u16`, `u32`, `u64`, `bool`, an array of numbers, or [`Bytes`]. Its name is
/// saved with it. Raise [`Identity::state_version`] when a name, a type or the meaning of a field
/// changes.
///
/// ```
/// use io_gate::{Identity, SavedState, saved_state};
///
/// const BEEPER: Identity = Identity { kind: "beeper", virtio_id: 0, state_version: 1 };
///
/// saved_state! {
///     /// A tone generator.
///     #[derive(Debug, PartialEq)]
///     pub struct Beeper {
///         /// The pitch in Hz.
///         pitch: u16,
///         muted: bool,
///     }
/// }
///
/// let beeper = Beeper { pitch: 440, muted: false };
/// let saved = SavedState::of(&BEEPER, &beeper);
/// assert_eq!(saved.open::<Beeper>(&BEEPER)?, beeper);
/// # Ok::<(), io_gate::StateError>(())
/// ```
///
/// Beside its fields the struct may have comments and derives. The macro refuses every other
/// attribute: it would be in a macro's argument, where `cargo xtask gate` does not check it.
///
/// ```compile_fail
/// io_gate::saved_state! {
///     #[allow(dead_code)]
///     struct Beeper { pitch: u16 }
/// }
/// ```
#[macro_export]
macro_rules! saved_state {
    (
        $(#[doc = $about:literal])*
        $(#[derive($($derived:ident),* $(,)?)])?
        $visible:vis struct $name:ident {
            $($(#[doc = $about_field:literal])* $visible_field:vis $field:ident: $type:ty),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        $(#[derive($($derived),*)])?
        $visible struct $name {
            $($(#[doc = $about_field])* $visible_field $field: $type,)*
        }

        impl $crate::StateFields for $name {
            fn save_fields(&self, to: &mut $crate::fields::Saving) {
                $(to.add(stringify!($field), &self.$field);)*
            }

            fn restore_fields(
                from: &mut $crate::fields::Restoring<'_>,
            ) -> Result<Self, $crate::StateError> {
                Ok(Self { $($field: from.take(stringify!($field))?,)* })
            }
        }
    };
}

/// A struct that can be saved and restored. Declare it within
/// [`saved_state!`](crate::saved_state).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a saved state",
    note = "declare the struct within `io_gate::saved_state! {{ .. }}`"
)]
pub trait StateFields: Sized {
    /// Saves each field.
    #[doc(hidden)]
    fn save_fields(&self, to: &mut Saving);

    /// Restores each field.
    #[doc(hidden)]
    fn restore_fields(from: &mut Restoring<'_>) -> Result<Self, StateError>;
}

/// The saved state of a device without state.
impl StateFields for () {
    fn save_fields(&self, _to: &mut Saving) {}

    fn restore_fields(_from: &mut Restoring<'_>) -> Result<Self, StateError> {
        Ok(())
    }
}

/// The fields of a device, and the fields that an adapter adds.
impl<A: StateFields, B: StateFields> StateFields for (A, B) {
    fn save_fields(&self, to: &mut Saving) {
        self.0.save_fields(to);
        self.1.save_fields(to);
    }

    fn restore_fields(from: &mut Restoring<'_>) -> Result<Self, StateError> {
        Ok((A::restore_fields(from)?, B::restore_fields(from)?))
    }
}

/// The state of a device when the checkpoint was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    kind: String,
    version: u16,
    fields: Vec<(String, Value)>,
}

impl SavedState {
    /// Saves the fields of a device of this identity.
    #[must_use]
    pub fn of<S: StateFields>(identity: &Identity, state: &S) -> Self {
        let mut fields = Saving(Vec::new());
        state.save_fields(&mut fields);
        Self { kind: identity.kind.to_owned(), version: identity.state_version, fields: fields.0 }
    }

    /// The kind of the device that was saved.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The version of the state's layout.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Restores the fields, for a device of this identity.
    ///
    /// # Errors
    /// When the state is of another kind of device or of another version, or when a field is
    /// missing, left over or out of its type's range.
    pub fn open<S: StateFields>(&self, identity: &Identity) -> Result<S, StateError> {
        if self.kind != identity.kind {
            return Err(StateError::Kind {
                expected: identity.kind.to_owned(),
                found: self.kind.clone(),
            });
        }
        if self.version != identity.state_version {
            return Err(StateError::Version {
                kind: self.kind.clone(),
                expected: identity.state_version,
                found: self.version,
            });
        }
        let mut fields = Restoring { kind: &self.kind, left: self.fields.iter().collect() };
        let state = S::restore_fields(&mut fields)?;
        match fields.left.first() {
            None => Ok(state),
            Some((field, _)) => {
                Err(StateError::LeftOver { kind: self.kind.clone(), field: field.clone() })
            }
        }
    }
}

/// Collects the fields of a device that is being saved. [`saved_state!`](crate::saved_state) uses
/// it.
pub struct Saving(Vec<(String, Value)>);

impl Saving {
    /// Adds a field.
    pub fn add<F: StateField>(&mut self, name: &'static str, field: &F) {
        self.0.push((plain(name).to_owned(), field.save()));
    }
}

/// The name of a field without the prefix of a raw identifier: `r#match` is saved as `match`.
fn plain(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// Hands out the fields of a state that is being restored. [`saved_state!`](crate::saved_state)
/// uses it.
pub struct Restoring<'s> {
    kind: &'s str,
    left: Vec<&'s (String, Value)>,
}

impl Restoring<'_> {
    /// Takes a field.
    ///
    /// # Errors
    /// When the field is missing or out of its type's range.
    pub fn take<F: StateField>(&mut self, name: &'static str) -> Result<F, StateError> {
        let (kind, field) = (self.kind.to_owned(), plain(name));
        let Some(at) = self.left.iter().position(|(name, _)| name == field) else {
            return Err(StateError::Missing { kind, field });
        };
        let (_, value) = self.left.swap_remove(at);
        F::restore(value).map_err(|misfit| match misfit {
            Misfit::Shape(expected, found) => StateError::Invalid { kind, field, expected, found },
            Misfit::Range(expected, found) => StateError::Number { kind, field, expected, found },
        })
    }
}
