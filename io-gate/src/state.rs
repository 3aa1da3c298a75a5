//! The saved state of a device: its kind, a version, and named fields, all of them required.
//!
//! Field names and error texts are fixed: they are logged, and the log must not contain guest data.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// The value of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// A number or a set of bits.
    Number(u64),
    /// Raw bytes.
    Bytes(Vec<u8>),
}

/// The state of a device when the checkpoint was taken.
///
/// ```
/// use io_gate::{Identity, SavedState};
///
/// const BEEPER: Identity = Identity { kind: "beeper", virtio_id: 0, state_version: 1 };
/// let saved = SavedState::new(&BEEPER).number("pitch", 440);
/// let mut fields = saved.open(&BEEPER)?;
/// assert_eq!(fields.number("pitch")?, 440);
/// fields.close()?; // a field that was not read would be an error
/// # Ok::<(), io_gate::StateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    kind: String,
    version: u16,
    fields: Vec<(String, Value)>,
}

impl SavedState {
    /// An empty state for a device of this identity.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self { kind: identity.kind.to_owned(), version: identity.state_version, fields: Vec::new() }
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Self {
        self.fields.push((name.to_owned(), Value::Number(value)));
        self
    }

    /// Adds raw bytes.
    #[must_use]
    pub fn bytes(mut self, name: &'static str, value: &[u8]) -> Self {
        self.fields.push((name.to_owned(), Value::Bytes(value.to_owned())));
        self
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

    /// Opens the state for a device of this identity.
    ///
    /// # Errors
    /// When the state is of another kind of device, or of another version.
    pub fn open(&self, identity: &Identity) -> Result<Fields, StateError> {
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
        Ok(Fields { kind: self.kind.clone(), left: self.fields.clone() })
    }
}

/// The fields of an opened state, taken out one by one.
#[derive(Debug)]
pub struct Fields {
    kind: String,
    left: Vec<(String, Value)>,
}

impl Fields {
    /// Takes a number.
    ///
    /// # Errors
    /// When the field is not there, or holds bytes.
    pub fn number(&mut self, name: &'static str) -> Result<u64, StateError> {
        match self.take(name)? {
            Value::Number(value) => Ok(value),
            Value::Bytes(_) => Err(self.invalid(name, "a number", "bytes")),
        }
    }

    /// Takes a number as a smaller type.
    ///
    /// # Errors
    /// As [`number`](Self::number), and when the number does not fit.
    pub fn small<T: TryFrom<u64>>(&mut self, name: &'static str) -> Result<T, StateError> {
        let value = self.number(name)?;
        T::try_from(value)
            .map_err(|_| self.invalid(name, core::any::type_name::<T>(), "a larger number"))
    }

    /// Takes a flag: 0 is false, 1 is true.
    ///
    /// # Errors
    /// As [`number`](Self::number), and when the number is neither 0 nor 1.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, StateError> {
        match self.number(name)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.invalid(name, "0 or 1", "a larger number")),
        }
    }

    /// Takes raw bytes.
    ///
    /// # Errors
    /// When the field is not there, or holds a number.
    pub fn bytes(&mut self, name: &'static str) -> Result<Vec<u8>, StateError> {
        match self.take(name)? {
            Value::Bytes(value) => Ok(value),
            Value::Number(_) => Err(self.invalid(name, "bytes", "a number")),
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// When a field was not read: the saved device had state that this one does not know.
    pub fn close(self) -> Result<(), StateError> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some((field, _)) => Err(StateError::LeftOver { kind: self.kind, field }),
        }
    }

    /// Makes an error about the value of a field.
    #[must_use]
    pub fn invalid(
        &self,
        field: &'static str,
        expected: &'static str,
        found: &'static str,
    ) -> StateError {
        StateError::Invalid { kind: self.kind.clone(), field, expected, found }
    }

    /// Makes an error about a number in a field.
    #[must_use]
    pub fn invalid_number(
        &self,
        field: &'static str,
        expected: &'static str,
        found: u64,
    ) -> StateError {
        StateError::Number { kind: self.kind.clone(), field, expected, found }
    }

    fn take(&mut self, name: &'static str) -> Result<Value, StateError> {
        let index = self.left.iter().position(|(field, _)| field == name);
        match index {
            Some(index) => Ok(self.left.swap_remove(index).1),
            None => Err(StateError::Missing { kind: self.kind.clone(), field: name }),
        }
    }
}

/// Why a saved state does not fit a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateError {
    /// The state is of another kind of device.
    Kind {
        /// The kind of the device that restores.
        expected: String,
        /// The kind that was saved.
        found: String,
    },
    /// The state has another version.
    Version {
        /// The kind.
        kind: String,
        /// The version of the device that restores.
        expected: u16,
        /// The version that was saved.
        found: u16,
    },
    /// A field is missing.
    Missing {
        /// The kind.
        kind: String,
        /// The field.
        field: &'static str,
    },
    /// The state has a field that the device does not know.
    LeftOver {
        /// The kind.
        kind: String,
        /// The field.
        field: String,
    },
    /// A field has an impossible value.
    Invalid {
        /// The kind.
        kind: String,
        /// The field.
        field: &'static str,
        /// The expected value.
        expected: &'static str,
        /// The value found.
        found: &'static str,
    },
    /// A field has an impossible number.
    Number {
        /// The kind.
        kind: String,
        /// The field.
        field: &'static str,
        /// The expected value.
        expected: &'static str,
        /// The number found.
        found: u64,
    },
}

impl core::fmt::Display for StateError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Kind { expected, found } => {
                write!(f, "saved state: expected one of {expected}, found one of {found}")
            }
            Self::Version { kind, expected, found } => write!(
                f,
                "saved state of {kind}: expected version {expected}, found {found}; run the same release on both sides"
            ),
            Self::Missing { kind, field } => {
                write!(f, "saved state of {kind}: expected a field `{field}`, found none")
            }
            Self::LeftOver { kind, field } => {
                write!(
                    f,
                    "saved state of {kind}: found a field `{field}` that this release does not know"
                )
            }
            Self::Number { kind, field, expected, found } => {
                write!(
                    f,
                    "saved state of {kind}, field `{field}`: expected {expected}, found {found} ({found:#x})"
                )
            }
            Self::Invalid { kind, field, expected, found } => {
                write!(
                    f,
                    "saved state of {kind}, field `{field}`: expected {expected}, found {found}"
                )
            }
        }
    }
}

impl core::error::Error for StateError {}
