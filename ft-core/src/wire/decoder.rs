//! A decoder for bytes that arrive in pieces of any size.

use alloc::vec::Vec;

use super::header::{HEADER_LEN, Header, WireError};
use super::message::Frame;

/// Takes bytes and returns frames. It holds at most one header and one body within its kind's
/// limit, and grows with received bytes, not with announced ones. After an error it returns nothing
/// more, since the start of the next frame is unknown.
#[derive(Debug, Default)]
pub struct Decoder {
    head: Vec<u8>,
    header: Option<Header>,
    body: Vec<u8>,
    failed: Option<WireError>,
}

impl Decoder {
    /// A decoder without data.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `bytes` until a frame is whole or they are used up.
    ///
    /// # Errors
    /// When the bytes are not a frame. All later calls return the same error.
    pub fn decode(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.step(bytes);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Bytes of memory used for data that was not returned yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }

    fn step(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                move_up_to(bytes, &mut self.head, HEADER_LEN);
                let Ok(head) = <&[u8; HEADER_LEN]>::try_from(self.head.as_slice()) else {
                    return Ok(None);
                };
                *self.header.insert(Header::parse(head)?)
            }
        };
        move_up_to(bytes, &mut self.body, header.body_len as usize);
        if self.body.len() < header.body_len as usize {
            return Ok(None);
        }
        self.header = None;
        self.head.clear();
        Frame::verify(header, core::mem::take(&mut self.body)).map(Some)
    }
}

fn move_up_to(from: &mut &[u8], to: &mut Vec<u8>, len: usize) {
    let count = (len - to.len()).min(from.len());
    let (taken, rest) = from.split_at(count);
    to.extend_from_slice(taken);
    *from = rest;
}
