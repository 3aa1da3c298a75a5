//! The card's statistics registers (8254x manual, 13.7). A read clears the register.

use super::registers::reg;

/// Number of statistics registers.
pub(super) const COUNT: usize = 0x4a;
/// Length of the frame check sequence, which the length counters include.
const CHECK_SEQUENCE: usize = 4;

/// Indexes of the counters.
mod at {
    /// Frames of 64 bytes. The counters of larger sizes follow this one.
    pub(super) const RX_SIZES: usize = 0x5c / 4;
    pub(super) const TX_SIZES: usize = 0xd8 / 4;
    pub(super) const RX_GOOD: usize = 0x74 / 4;
    pub(super) const RX_BROADCAST: usize = 0x78 / 4;
    pub(super) const RX_MULTICAST: usize = 0x7c / 4;
    pub(super) const TX_GOOD: usize = 0x80 / 4;
    pub(super) const RX_GOOD_OCTETS: usize = 0x88 / 4;
    pub(super) const TX_GOOD_OCTETS: usize = 0x90 / 4;
    pub(super) const RX_OCTETS: usize = 0xc0 / 4;
    pub(super) const TX_OCTETS: usize = 0xc8 / 4;
    pub(super) const RX_TOTAL: usize = 0xd0 / 4;
    pub(super) const TX_TOTAL: usize = 0xd4 / 4;
    pub(super) const TX_MULTICAST: usize = 0xf0 / 4;
    pub(super) const TX_BROADCAST: usize = 0xf4 / 4;
    pub(super) const TX_SEGMENTED: usize = 0xf8 / 4;
}

/// Indexes of the counters of one direction.
struct Places {
    sizes: usize,
    good: usize,
    good_octets: usize,
    octets: usize,
    total: usize,
    broadcast: usize,
    multicast: usize,
}

const RECEIVED: Places = Places {
    sizes: at::RX_SIZES,
    good: at::RX_GOOD,
    good_octets: at::RX_GOOD_OCTETS,
    octets: at::RX_OCTETS,
    total: at::RX_TOTAL,
    broadcast: at::RX_BROADCAST,
    multicast: at::RX_MULTICAST,
};

const SENT: Places = Places {
    sizes: at::TX_SIZES,
    good: at::TX_GOOD,
    good_octets: at::TX_GOOD_OCTETS,
    octets: at::TX_OCTETS,
    total: at::TX_TOTAL,
    broadcast: at::TX_BROADCAST,
    multicast: at::TX_MULTICAST,
};

/// The counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statistics(pub(super) [u32; COUNT]);

impl Statistics {
    pub(super) fn new() -> Self {
        Self([0; COUNT])
    }

    /// The index of a statistics register; `None` for other registers.
    pub(super) fn index(offset: u32) -> Option<usize> {
        let index = (offset.checked_sub(reg::STATISTICS)? / 4) as usize;
        (index < COUNT).then_some(index)
    }

    /// Reads and clears a counter.
    pub(super) fn take(&mut self, index: usize) -> u32 {
        core::mem::take(&mut self.0[index])
    }

    /// Counts a frame written to guest memory.
    pub(super) fn received(&mut self, frame: &[u8]) {
        self.count(&RECEIVED, frame);
    }

    /// Counts a frame that was sent.
    pub(super) fn sent(&mut self, frame: &[u8]) {
        self.count(&SENT, frame);
    }

    /// Counts a segmentation context.
    pub(super) fn segmented(&mut self) {
        self.add(at::TX_SEGMENTED, 1);
    }

    fn count(&mut self, places: &Places, frame: &[u8]) {
        let len = frame.len() + CHECK_SEQUENCE;
        let class = match len {
            0..=64 => 0,
            65..=127 => 1,
            128..=255 => 2,
            256..=511 => 3,
            512..=1023 => 4,
            _ => 5,
        };
        self.add(places.sizes + class, 1);
        self.add(places.good, 1);
        self.add(places.total, 1);
        self.add_octets(places.good_octets, len);
        self.add_octets(places.octets, len);
        if frame.starts_with(&[0xff; 6]) {
            self.add(places.broadcast, 1);
        } else if frame.first().is_some_and(|first| first & 1 == 1) {
            self.add(places.multicast, 1);
        }
    }

    /// Adds to a counter, which stops at its maximum.
    fn add(&mut self, place: usize, count: u32) {
        self.0[place] = self.0[place].saturating_add(count);
    }

    /// Adds to a counter of octets, which has 64 bits in two registers.
    fn add_octets(&mut self, place: usize, count: usize) {
        let old = u64::from(self.0[place]) | u64::from(self.0[place + 1]) << 32;
        let new = old.saturating_add(count as u64);
        self.0[place] = new as u32;
        self.0[place + 1] = (new >> 32) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_and_counters_cleared_when_read() {
        let mut statistics = Statistics::new();
        statistics.sent(&[0xff; 60]);
        statistics.sent(&[0; 124]);
        let mut take =
            |offset: u32| statistics.take(Statistics::index(0x4000 + offset).unwrap_or(0));
        assert_eq!([take(0xd8), take(0xe0), take(0x80), take(0xf4)], [1, 1, 2, 1]);
        assert_eq!([take(0xc8), take(0xcc), take(0x80)], [192, 0, 0]);
        assert_eq!(Statistics::index(0x4000 + COUNT as u32 * 4), None);
    }
}
