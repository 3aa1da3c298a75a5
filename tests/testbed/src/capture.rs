//! The packet capture: each frame that reached the switch, with its time of arrival and its port.

use std::collections::HashMap;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the switch did with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Forwarded by the port of its destination, or by all ports.
    Forwarded,
    /// Dropped: its cable was cut.
    Cut,
}

/// A frame that reached the switch.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Time of arrival.
    pub at: Instant,
    /// The port that received the frame.
    pub port: usize,
    /// The number of the port's connection that it came from: a restarted program gets a new
    /// number.
    pub connection: u32,
    /// The source address in its Ethernet header.
    pub source: Mac,
    /// A hash of the whole frame.
    pub hash: u64,
    /// The switch's decision.
    pub fate: Fate,
}

impl Frame {
    /// Describes `bytes`, received by `port`; `None` if they are shorter than an Ethernet header.
    pub fn describe(port: usize, connection: u32, bytes: &[u8], fate: Fate) -> Option<Self> {
        let source = bytes.get(6..12)?.try_into().ok()?;
        let hash = xxh3_64(bytes);
        Some(Self { at: Instant::now(), port, connection, source, hash, fate })
    }
}

/// Number of frames that repeat the bytes of an earlier frame.
pub fn repeated<'a>(frames: impl Iterator<Item = &'a Frame>) -> u64 {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    frames.for_each(|frame| *seen.entry(frame.hash).or_default() += 1);
    seen.values().map(|count| count - 1).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_bytes_repeat() {
        let frame = |last| {
            let mut bytes = [0; 60];
            bytes[59] = last;
            Frame::describe(0, 0, &bytes, Fate::Forwarded).unwrap()
        };
        assert_eq!(repeated([frame(1), frame(2), frame(1), frame(1)].iter()), 2);
    }

    #[test]
    fn a_runt_is_no_frame() {
        assert!(Frame::describe(0, 0, &[0; 11], Fate::Forwarded).is_none());
    }
}
