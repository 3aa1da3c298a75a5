//! The types of a saved field, and their conversion to values and back.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::number::Number;

/// The value of one field, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// A number or a set of bits.
    Number(u64),
    /// Raw bytes.
    Bytes(Vec<u8>),
}

/// Why a value does not fit the type of its field.
pub enum Misfit {
    /// It has another shape or length: the expected one, and the one found.
    Shape(&'static str, &'static str),
    /// It is a number out of range: the expected range, and the number.
    Range(&'static str, u64),
}

/// A type that a saved field can have. Only this module implements it, so that all conversions are
/// here.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type of a saved field",
    note = "a saved field is a `u8`, `u16`, `u32`, `u64`, `bool`, an array of numbers, or `io_gate::Bytes<MAX>`"
)]
pub trait StateField: Sized {
    /// The value that is saved.
    fn save(&self) -> Value;

    /// Restores the field from a saved value, if the value fits.
    fn restore(value: &Value) -> Result<Self, Misfit>;
}

/// At most `MAX` bytes. A state with more is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes<const MAX: usize>(pub Vec<u8>);

fn number(value: &Value) -> Result<u64, Misfit> {
    match value {
        Value::Number(number) => Ok(*number),
        Value::Bytes(_) => Err(Misfit::Shape("a number", "bytes")),
    }
}

fn bytes(value: &Value) -> Result<&[u8], Misfit> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Number(_) => Err(Misfit::Shape("bytes", "a number")),
    }
}

/// Implements [`StateField`] for numbers.
macro_rules! numbers {
    ($($number:ty: $expected:literal),+ $(,)?) => {$(
        impl StateField for $number {
            fn save(&self) -> Value {
                Value::Number((*self).into())
            }

            fn restore(value: &Value) -> Result<Self, Misfit> {
                let number = number(value)?;
                Self::try_from(number).map_err(|_| Misfit::Range($expected, number))
            }
        }
    )+};
}

numbers! {
    u8: "a number of 8 bits",
    u16: "a number of 16 bits",
    u32: "a number of 32 bits",
    u64: "a number of 64 bits",
}

impl StateField for bool {
    fn save(&self) -> Value {
        Value::Number((*self).into())
    }

    fn restore(value: &Value) -> Result<Self, Misfit> {
        match number(value)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Misfit::Range("0 or 1", other)),
        }
    }
}

/// An array is saved as the little-endian bytes of its numbers.
impl<N: Number, const LEN: usize> StateField for [N; LEN] {
    fn save(&self) -> Value {
        let mut bytes = alloc::vec![0; LEN * N::WIDTH];
        for (number, into) in self.iter().zip(bytes.chunks_exact_mut(N::WIDTH)) {
            number.put(into);
        }
        Value::Bytes(bytes)
    }

    fn restore(value: &Value) -> Result<Self, Misfit> {
        let bytes = bytes(value)?;
        if bytes.len() != LEN * N::WIDTH {
            return Err(Misfit::Shape("as many bytes as the field has", "another number of them"));
        }
        Ok(core::array::from_fn(|at| N::get(&bytes[at * N::WIDTH..(at + 1) * N::WIDTH])))
    }
}

impl<const MAX: usize> StateField for Bytes<MAX> {
    fn save(&self) -> Value {
        Value::Bytes(self.0.clone())
    }

    fn restore(value: &Value) -> Result<Self, Misfit> {
        let bytes = bytes(value)?;
        if bytes.len() > MAX {
            return Err(Misfit::Shape("no more bytes than the field can have", "more"));
        }
        Ok(Self(bytes.to_vec()))
    }
}
