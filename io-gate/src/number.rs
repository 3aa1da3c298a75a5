//! Unsigned numbers of fixed width, and their conversion to little-endian bytes and back.

/// An unsigned number of fixed width.
pub trait Number: Copy {
    /// Its width in bytes.
    const WIDTH: usize;

    /// Writes the number into `into`, which has [`WIDTH`](Self::WIDTH) bytes.
    fn put(self, into: &mut [u8]);

    /// Reads a number from `from`, which has [`WIDTH`](Self::WIDTH) bytes.
    fn get(from: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            const WIDTH: usize = size_of::<Self>();

            fn put(self, into: &mut [u8]) {
                into.copy_from_slice(&self.to_le_bytes());
            }

            fn get(from: &[u8]) -> Self {
                let mut bytes = [0; size_of::<Self>()];
                bytes.copy_from_slice(from);
                Self::from_le_bytes(bytes)
            }
        }
    )+};
}

numbers!(u8, u16, u32, u64);
