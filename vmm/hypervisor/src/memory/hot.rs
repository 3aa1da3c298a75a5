//! Finds hot pages, which the guest writes in nearly every epoch: KVM does not watch them, and each
//! look reports them.
//!
//! A watched page costs the guest a fault at its first write in an epoch, several times the cost of
//! copying the page. So a page that was written in two consecutive epochs is not watched in the
//! next one. Each time that it is written right after it is watched again, it stays unwatched for
//! longer.
//!
//! P8: a wrong guess loses nothing. KVM keeps the bit of a page that it does not watch, so each
//! look reports the page: it is sent too often, never too rarely.

/// The history of each page; see [`Memory`].
pub(super) struct HotPages {
    /// One entry per page of the region, packed. The system allocates memory only for entries that
    /// are used.
    pages: Vec<u32>,
    look: u16,
}

/// The history of one page.
#[derive(Clone, Copy)]
struct Memory {
    /// The last look that reported the page.
    reported: u16,
    /// How often the page was written right after it was watched again, at most [`HOTTEST`].
    level: u8,
    /// Number of further looks for which the page stays unwatched.
    left: u8,
}

/// Maximum level: a page stays unwatched for up to 2^4 - 1 looks. This saves 15 of 16 faults, and
/// sends a page 15 times without need once it is cold.
const HOTTEST: u8 = 4;

impl HotPages {
    /// An empty history for a region of `pages` pages.
    pub(super) fn new(pages: u64) -> Self {
        HotPages { pages: vec![0; pages as usize], look: 1 }
    }

    /// Call this at the start of each look at the log.
    pub(super) fn begin_look(&mut self) {
        self.look = self.look.wrapping_add(1);
    }

    /// Selects the pages to leave unwatched, of those that KVM has reported in this group of 64.
    pub(super) fn choose(&mut self, group: usize, reported: u64) -> u64 {
        super::dirty_set::Ones(reported)
            .filter(|bit| self.leave(group * 64 + bit))
            .fold(0, |left, bit| left | 1 << bit)
    }

    fn leave(&mut self, page: usize) -> bool {
        let Memory { reported, level, left } = Memory::unpack(self.pages[page]);
        let before = reported == self.look.wrapping_sub(1);
        let (level, left) = match (before, left) {
            // The page was watched, and the guest has written it since.
            (true, 0) => {
                let level = (level + 1).min(HOTTEST);
                (level, (1 << level) - 1)
            }
            // The page was not watched: the guest may or may not have written it.
            (true, left) => (level, left - 1),
            (false, _) => (0, 0),
        };
        self.pages[page] = Memory { reported: self.look, level, left }.pack();
        left > 0
    }
}

impl Memory {
    fn unpack(packed: u32) -> Self {
        let [low, high, level, left] = packed.to_le_bytes();
        Memory { reported: u16::from_le_bytes([low, high]), level, left }
    }

    fn pack(self) -> u32 {
        let [low, high] = self.reported.to_le_bytes();
        u32::from_le_bytes([low, high, self.level, self.left])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the faults and the reports of one page that the guest writes in the epochs selected
    /// by `writes`.
    fn faults(epochs: u32, writes: impl Fn(u32) -> bool) -> (u32, u32) {
        let mut hot = HotPages::new(130);
        let (mut watched, mut faults, mut reported) = (true, 0, 0);
        for epoch in 0..epochs {
            faults += u32::from(watched && writes(epoch));
            hot.begin_look();
            if writes(epoch) || !watched {
                reported += 1;
                let left = hot.choose(2, 1 << 1);
                assert!(left == 0 || left == 1 << 1);
                watched = left == 0;
            }
        }
        (faults, reported)
    }

    #[test]
    fn a_page_that_is_always_written_is_hardly_watched() {
        let (faults, reported) = faults(200_000, |_| true);
        assert_eq!(reported, 200_000);
        assert!((200_000 / 16..200_000 / 16 + 100).contains(&faults), "{faults}");
    }

    #[test]
    fn a_page_that_is_written_now_and_then_is_always_watched() {
        assert_eq!(faults(3000, |epoch| epoch % 2 == 0), (1500, 1500));
        assert_eq!(faults(3000, |epoch| epoch == 7), (1, 1));
    }

    #[test]
    fn a_page_that_cools_down_is_soon_watched_again() {
        let (_, reported) = faults(3000, |epoch| epoch < 1000);
        assert!((1000..1016).contains(&reported), "{reported}");
    }

    #[test]
    fn what_is_not_told_is_not_chosen() {
        let mut hot = HotPages::new(64);
        for _ in 0..5 {
            hot.begin_look();
            hot.choose(0, 0b101);
        }
        hot.begin_look();
        assert_eq!(hot.choose(0, 0b110) & !0b110, 0);
    }
}
