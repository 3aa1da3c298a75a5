//! A pool of buffers for the bodies of frames: allocating memory for every frame would cost more
//! than processing it.

use std::sync::{Arc, Mutex, PoisonError};

/// Smaller buffers are not kept: allocating them is cheap.
const LARGE: usize = 32 << 10;
/// Upper bound for the bytes that are kept.
const KEEP: usize = 64 << 20;

/// Shared by the reader, which takes buffers, and the thread that has processed a frame and returns
/// its buffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Spare>>);

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    /// A buffer of `len` bytes. The caller must overwrite it: it holds zeros or bytes of an earlier
    /// frame.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let spare = if len < LARGE { None } else { self.pop() };
        match spare {
            Some(mut buffer) if buffer.capacity() >= len => {
                buffer.resize(len, 0);
                buffer
            }
            _ => vec![0; len],
        }
    }

    /// Returns a buffer that is no longer needed.
    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() >= LARGE && spare.bytes + buffer.capacity() <= KEEP {
            spare.bytes += buffer.capacity();
            spare.buffers.push(buffer);
        }
    }

    fn pop(&self) -> Option<Vec<u8>> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = spare.buffers.pop()?;
        spare.bytes -= buffer.capacity();
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_again_and_not_more_is_kept_than_allowed() {
        let buffers = Buffers::default();
        let first = buffers.take(100_000);
        assert!(first.iter().all(|byte| *byte == 0));
        let at = first.as_ptr();
        buffers.give(first);
        assert_eq!(buffers.take(10).len(), 10);
        let again = buffers.take(50_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 50_000));
        buffers.give(again);
        assert_eq!(buffers.take(200_000).len(), 200_000, "one that is too small is of no use");
        for _ in 0..3 {
            buffers.give(vec![0; KEEP / 2]);
        }
        let spare = buffers.0.lock().expect("nobody has panicked");
        assert_eq!((spare.buffers.len(), spare.bytes), (2, KEEP));
    }
}
