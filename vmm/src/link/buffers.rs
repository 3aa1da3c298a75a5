//! Buffers for the bodies of frames, used again: memory that is fresh for every frame would cost more than what is in it.

use std::sync::{Arc, Mutex, PoisonError};

/// Smaller ones are as well made anew.
const LARGE: usize = 32 << 10;
/// More bytes than these are not kept.
const KEEP: usize = 64 << 20;

/// Shared between a reader, which takes, and whoever is done with a frame, who gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Spare>>);

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    /// A buffer of so many bytes, to be overwritten: they are zero, or of an earlier frame.
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

    /// Takes one back that is no longer needed.
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
