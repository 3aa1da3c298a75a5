//! Unsigned numbers with a width, and their little-endian bytes.

/// A number whose width is that of its type.
pub trait Number: Copy {
    /// Its width in bytes.
    const WIDTH: usize;

    /// Writes its bytes into as many as its width.
    fn put(self, into: &mut [u8]);

    /// Reads it from as many bytes as its width.
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
