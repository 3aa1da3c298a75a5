//! Splits the data on the link into frames, by their headers alone.

use ft_core::wire::{HEADER_LEN, Header};

/// One direction of a connection.
#[derive(Default)]
pub(crate) struct Frames {
    header: Vec<u8>,
    /// Number of bytes of the current body that are still to come.
    body: usize,
    /// Data arrived that is not a frame; the rest is ignored.
    garbled: bool,
}

impl Frames {
    /// Adds data and calls `each` with the header of each frame that is now complete.
    pub(crate) fn add(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Header)) {
        while !bytes.is_empty() && !self.garbled {
            if self.body == 0 {
                let (first, rest) = bytes.split_at(bytes.len().min(HEADER_LEN - self.header.len()));
                self.header.extend(first);
                bytes = rest;
                let Some(header) = self.header.first_chunk() else { return };
                match Header::parse(header) {
                    Ok(header) => self.body = header.body_len as usize,
                    Err(_) => self.garbled = true,
                }
            }
            let skipped = bytes.len().min(self.body);
            (self.body, bytes) = (self.body - skipped, &bytes[skipped..]);
            if self.body == 0
                && let Some(Ok(header)) = self.header.first_chunk().map(Header::parse)
            {
                self.header.clear();
                each(&header);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ft_core::wire::{Data, Kind, Message, Outgoing};
    use ft_core::{Epoch, Term};

    use super::*;

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let mut bytes = Vec::new();
        for message in [Message::Ack, Message::State(Data(vec![1; 100])), Message::Ack] {
            let frame = Outgoing { epoch: Epoch(5), term: Term(1), message };
            frame.encode(&mut bytes).expect("a short frame");
        }
        for piece in [1, 7, HEADER_LEN, bytes.len()] {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                frames.add(piece, |header| seen.push((header.kind, header.epoch.0)));
            }
            assert_eq!(seen, [(Kind::Ack, 5), (Kind::State, 5), (Kind::Ack, 5)]);
        }
    }
}
