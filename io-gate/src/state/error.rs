//! Why a saved state does not fit a device.
//!
//! The errors are logged, and the log must not contain guest data. So they consist of fixed texts,
//! numbers, and the names in the state.

use alloc::borrow::ToOwned;
use alloc::string::String;

use crate::identity::Identity;

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

impl StateError {
    /// A field of a device's state has an impossible value.
    #[must_use]
    pub fn invalid(
        identity: &Identity,
        field: &'static str,
        expected: &'static str,
        found: &'static str,
    ) -> Self {
        Self::Invalid { kind: identity.kind.to_owned(), field, expected, found }
    }

    /// A field of a device's state has an impossible number.
    #[must_use]
    pub fn number(
        identity: &Identity,
        field: &'static str,
        expected: &'static str,
        found: u64,
    ) -> Self {
        Self::Number { kind: identity.kind.to_owned(), field, expected, found }
    }
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
