//! The configuration space of a virtio device (virtio 1.2, 2.5): named fields with widths, little
//! endian.
//!
//! A device declares the fields within [`config_space!`](crate::config_space). The driver may read
//! any number of bytes at any offset. Its writes reach the device as changes of [`Writable`]
//! fields. The far side drops all other bytes.

use alloc::vec::Vec;

use crate::number::Number;

/// Declares a struct that is a device's configuration space: its fields in the order of the
/// specification, from offset 0, without gaps.
///
/// A field is a `u8`, `u16`, `u32`, `u64`, `bool` (one byte, 0 or 1), or an array of numbers. A
/// field that the driver may write is [`Writable`]. Where the specification has unused bytes,
/// declare a field for them. A field of 2 bytes must lie at a multiple of 2, and one of 4 or 8
/// bytes at a multiple of 4 (virtio 1.2, 4.2.2.2); the compiler checks this.
///
/// ```
/// use io_gate::{ConfigSpace, Writable, config_space};
///
/// config_space! {
///     struct Space {
///         /// Number of beeps so far.
///         count: u64,
///         muted: Writable<bool>,
///     }
/// }
///
/// let space = ConfigSpace::of(&Space { count: 0x0201, muted: Writable::new(true) });
/// let mut bytes = [0xff; 4];
/// space.read(1, &mut bytes);
/// assert_eq!(bytes, [2, 0, 0, 0]);
/// ```
///
/// ```compile_fail,E0080
/// io_gate::config_space! {
///     struct Space { muted: bool, pitch: u16 } // at offset 1
/// }
/// ```
#[macro_export]
macro_rules! config_space {
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

        impl $crate::ConfigFields for $name {
            const ALIGNED: () =
                $crate::fields::check_alignment(&[$($crate::fields::shape::<$type>()),*]);

            fn list_fields(&self, to: &mut $crate::fields::Listing) {
                $(to.add(stringify!($field), &self.$field);)*
            }

            fn change_fields(&mut self, changes: &mut $crate::fields::Changes<'_>) {
                $(changes.make(&mut self.$field);)*
            }
        }

        const _: () = <$name as $crate::ConfigFields>::ALIGNED;
    };
}

/// A struct that is a configuration space. Declare it within
/// [`config_space!`](crate::config_space).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a configuration space",
    note = "declare the struct within `io_gate::config_space! {{ .. }}`"
)]
pub trait ConfigFields {
    /// Does not compile unless each field is aligned.
    #[doc(hidden)]
    const ALIGNED: ();

    /// Lists each field with its value.
    #[doc(hidden)]
    fn list_fields(&self, to: &mut Listing);

    /// Makes the driver's changes, field by field.
    #[doc(hidden)]
    fn change_fields(&mut self, changes: &mut Changes<'_>);
}

/// A type that a field of a configuration space can have. Only this module implements it, so that
/// all conversions are here.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type of a field in a configuration space",
    note = "a field is a `u8`, `u16`, `u32`, `u64`, `bool`, an array of numbers, or `io_gate::Writable` of one of these"
)]
pub trait ConfigField: Sized {
    /// Its width in bytes.
    const WIDTH: usize;
    /// Its alignment: its offset must be a multiple of this.
    const ALIGN: usize;
    /// Whether the driver may write it.
    const WRITABLE: bool = false;

    /// Writes the field into `into`, which has [`WIDTH`](Self::WIDTH) bytes.
    fn put(&self, into: &mut [u8]);

    /// Reads the field from its bytes; `None` if they are out of range.
    fn get(from: &[u8]) -> Option<Self>;

    /// Takes the bytes that the driver has written over the field. Does nothing for a field that
    /// the driver may not write.
    fn change(&mut self, from: &[u8]) {
        let _ = from;
    }
}

/// Implements [`ConfigField`] for numbers.
macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl ConfigField for $number {
            const WIDTH: usize = <Self as Number>::WIDTH;
            const ALIGN: usize = aligned(<Self as Number>::WIDTH);

            fn put(&self, into: &mut [u8]) {
                Number::put(*self, into);
            }

            fn get(from: &[u8]) -> Option<Self> {
                Some(Number::get(from))
            }
        }
    )+};
}

numbers!(u8, u16, u32, u64);

/// The alignment of a number. For 8 bytes it is 4, since a driver reads such a field in two halves
/// (virtio 1.2, 4.2.2.2).
const fn aligned(width: usize) -> usize {
    if width < 4 { width } else { 4 }
}

impl ConfigField for bool {
    const WIDTH: usize = 1;
    const ALIGN: usize = 1;

    fn put(&self, into: &mut [u8]) {
        into.fill((*self).into());
    }

    fn get(from: &[u8]) -> Option<Self> {
        match from {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

impl<N: Number, const LEN: usize> ConfigField for [N; LEN] {
    const WIDTH: usize = LEN * N::WIDTH;
    const ALIGN: usize = aligned(N::WIDTH);

    fn put(&self, into: &mut [u8]) {
        for (number, into) in self.iter().zip(into.chunks_exact_mut(N::WIDTH)) {
            number.put(into);
        }
    }

    fn get(from: &[u8]) -> Option<Self> {
        Some(core::array::from_fn(|at| N::get(&from[at * N::WIDTH..(at + 1) * N::WIDTH])))
    }
}

/// A field that the driver may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writable<F> {
    value: F,
    change: Option<F>,
}

impl<F> Writable<F> {
    /// The field with the value that the driver reads.
    #[must_use]
    pub const fn new(value: F) -> Self {
        Self { value, change: None }
    }

    /// The value that the driver has written. `None` if it has not written this field, or has
    /// written a value out of range.
    #[must_use]
    pub fn change(self) -> Option<F> {
        self.change
    }
}

impl<F: ConfigField> ConfigField for Writable<F> {
    const WIDTH: usize = F::WIDTH;
    const ALIGN: usize = F::ALIGN;
    const WRITABLE: bool = true;

    fn put(&self, into: &mut [u8]) {
        self.value.put(into);
    }

    fn get(from: &[u8]) -> Option<Self> {
        F::get(from).map(Self::new)
    }

    fn change(&mut self, from: &[u8]) {
        self.change = F::get(from);
    }
}

/// The place of a field in a configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigPlace {
    /// The field's name.
    pub name: &'static str,
    /// Its offset.
    pub offset: usize,
    /// Its width in bytes.
    pub width: usize,
    /// Whether the driver may write it.
    pub writable: bool,
}

/// The configuration space of a device, as its driver reads it. The default is an empty space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace(Listing);

impl ConfigSpace {
    /// The space with these fields.
    #[must_use]
    pub fn of<C: ConfigFields>(fields: &C) -> Self {
        let mut listing = Listing::default();
        fields.list_fields(&mut listing);
        Self(listing)
    }

    /// Reads at any offset. Bytes beyond the end read as zero.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.bytes.get(offset..));
        for (to, from) in into.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Its fields, in their order.
    #[must_use]
    pub fn places(&self) -> &[ConfigPlace] {
        &self.0.places
    }
}

/// A driver's write to the configuration space. It touches at least one writable field.
#[derive(Clone, Copy, Debug)]
pub struct ConfigWrite<'w> {
    offset: usize,
    bytes: &'w [u8],
}

impl<'w> ConfigWrite<'w> {
    /// A driver's write to this space. `None` if it touches no writable field.
    pub(crate) fn of(space: &ConfigSpace, offset: u64, bytes: &'w [u8]) -> Option<Self> {
        let write = Self { offset: usize::try_from(offset).ok()?, bytes };
        let changes = |at: &ConfigPlace| at.writable && write.touches(at.offset, at.width);
        space.places().iter().any(changes).then_some(write)
    }

    /// The fields with the driver's changes: see [`Writable::change`]. A write to a part of a field
    /// leaves the field's other bytes as they are.
    #[must_use]
    pub fn apply<C: ConfigFields>(self, mut fields: C) -> C {
        let ConfigSpace(Listing { bytes, .. }) = ConfigSpace::of(&fields);
        fields.change_fields(&mut Changes { write: self, bytes, next: 0 });
        fields
    }

    fn touches(&self, offset: usize, width: usize) -> bool {
        !self.bytes.is_empty()
            && offset < self.offset.saturating_add(self.bytes.len())
            && self.offset < offset + width
    }
}

/// The bytes and the places of a space's fields. [`config_space!`](crate::config_space) fills it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    bytes: Vec<u8>,
    places: Vec<ConfigPlace>,
}

impl Listing {
    /// Adds a field.
    pub fn add<F: ConfigField>(&mut self, name: &'static str, field: &F) {
        let (offset, width) = (self.bytes.len(), F::WIDTH);
        self.places.push(ConfigPlace { name, offset, width, writable: F::WRITABLE });
        self.bytes.resize(offset + width, 0);
        field.put(&mut self.bytes[offset..]);
    }
}

/// Makes the changes of a write, field by field. [`config_space!`](crate::config_space) uses it.
pub struct Changes<'w> {
    write: ConfigWrite<'w>,
    /// The space before the write.
    bytes: Vec<u8>,
    /// The offset of the next field.
    next: usize,
}

impl Changes<'_> {
    /// Makes the change of the next field.
    pub fn make<F: ConfigField>(&mut self, field: &mut F) {
        let start = self.next;
        self.next += F::WIDTH;
        if F::WRITABLE && self.write.touches(start, F::WIDTH) {
            let field_bytes = &mut self.bytes[start..self.next];
            for (to, at) in field_bytes.iter_mut().zip(start..) {
                let written = at.checked_sub(self.write.offset);
                if let Some(from) = written.and_then(|within| self.write.bytes.get(within)) {
                    *to = *from;
                }
            }
            field.change(field_bytes);
        }
    }
}

/// The width and the alignment of a field's type.
#[must_use]
pub const fn shape<F: ConfigField>() -> (usize, usize) {
    (F::WIDTH, F::ALIGN)
}

/// Checks that each field is aligned, so that a driver can access it.
///
/// # Panics
/// At compile time, when a field is not aligned.
pub const fn check_alignment(fields: &[(usize, usize)]) {
    let (mut at, mut offset) = (0, 0);
    while at < fields.len() {
        let (width, align) = fields[at];
        assert!(
            offset % align == 0,
            "a field of a configuration space is not aligned: declare the unused bytes before it, too"
        );
        offset += width;
        at += 1;
    }
}
