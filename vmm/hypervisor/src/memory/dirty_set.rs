//! A set of pages of one memory slot.
//!
//! Several sources add pages; the reader takes them in ascending order. A summary bit for each 64
//! pages makes the cost proportional to the number of pages in the set.

use std::ops::Range;

const BITS: usize = u64::BITS as usize;

/// One bit per page, and a summary bit per 64 pages: whether any of them is in the set.
pub(super) struct DirtySet {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl DirtySet {
    /// An empty set of `pages` pages.
    pub(super) fn new(pages: u64) -> Self {
        let words = pages.div_ceil(u64::from(u64::BITS)) as usize;
        DirtySet { words: vec![0; words], summary: vec![0; words.div_ceil(BITS)] }
    }

    /// Lets `fill` overwrite all bits, and computes the summary. An error leaves the set empty.
    pub(super) fn fill<E>(
        &mut self,
        fill: impl FnOnce(&mut [u64]) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Err(error) = fill(&mut self.words) {
            self.words.fill(0);
            self.summary.fill(0);
            return Err(error);
        }
        for (summary, words) in self.summary.iter_mut().zip(self.words.chunks(BITS)) {
            // Most words are zero: first OR all 64 words of a chunk, which the compiler vectorizes.
            let any = words.iter().fold(0, |any, word| any | word);
            *summary = if any == 0 { 0 } else { bit_per_word(words) };
        }
        Ok(())
    }

    /// Adds the pages `bits` of group `group`, which has 64 pages.
    pub(super) fn add(&mut self, group: usize, bits: u64) {
        self.words[group] |= bits;
        self.summary[group / BITS] |= 1 << (group % BITS);
    }

    /// Removes the pages that `choose` selects in each group, and appends them to `taken` as groups
    /// and bits.
    pub(super) fn take_chosen(
        &mut self,
        mut choose: impl FnMut(usize, u64) -> u64,
        taken: &mut Vec<(usize, u64)>,
    ) {
        for (above, summary) in self.summary.iter_mut().enumerate() {
            for bit in Ones(*summary) {
                let group = above * BITS + bit;
                let word = &mut self.words[group];
                let chosen = choose(group, *word) & *word;
                if chosen != 0 {
                    taken.push((group, chosen));
                    *word &= !chosen;
                    *summary &= !(u64::from(*word == 0) << bit);
                }
            }
        }
    }

    /// The groups of 64 pages that have pages in the set, ascending.
    fn groups(&self) -> impl Iterator<Item = usize> {
        self.summary
            .iter()
            .enumerate()
            .flat_map(|(above, &summary)| Ones(summary).map(move |bit| above * BITS + bit))
    }

    /// Ranges of groups that together hold the whole set. Each begins and ends with a group in the
    /// set, and no range contains a gap of more than `gap` empty groups.
    pub(super) fn spans(&self, gap: usize) -> impl Iterator<Item = Range<usize>> {
        let mut groups = self.groups().peekable();
        std::iter::from_fn(move || {
            let first = groups.next()?;
            let mut end = first + 1;
            while let Some(next) = groups.next_if(|&next| next - end <= gap) {
                end = next + 1;
            }
            Some(first..end)
        })
    }

    /// The bits of a range of groups.
    pub(super) fn words(&self, span: Range<usize>) -> &[u64] {
        &self.words[span]
    }

    /// Appends the pages to `page_numbers`, ascending, each as its number plus `first_page`, and
    /// empties the set.
    pub(super) fn drain_into(&mut self, first_page: u64, page_numbers: &mut Vec<u64>) {
        for (above, summary) in self.summary.iter_mut().enumerate() {
            for bit in Ones(std::mem::take(summary)) {
                let group = above * BITS + bit;
                let first = first_page + (group * BITS) as u64;
                let pages = Ones(std::mem::take(&mut self.words[group]));
                page_numbers.extend(pages.map(|page| first + page as u64));
            }
        }
    }
}

/// One bit for each word that is not zero.
fn bit_per_word(words: &[u64]) -> u64 {
    words.iter().rev().fold(0, |bits, &word| bits << 1 | u64::from(word != 0))
}

/// The positions of the bits that are set, ascending.
pub(super) struct Ones(pub(super) u64);

impl Iterator for Ones {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros() as usize)?;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGES: u64 = 2 * 64 * 64 + 70;

    fn set_of(pages: &[u64]) -> DirtySet {
        let mut set = DirtySet::new(PAGES);
        for page in pages {
            set.add((page / 64) as usize, 1 << (page % 64));
        }
        set
    }

    fn drained(set: &mut DirtySet, first_page: u64) -> Vec<u64> {
        let mut page_numbers = Vec::new();
        set.drain_into(first_page, &mut page_numbers);
        page_numbers
    }

    #[test]
    fn pages_come_out_in_order_once() {
        let pages = [0, 63, 64, 4095, 4096, 8191, 8192, PAGES - 1];
        let mut set = set_of(&pages);
        assert_eq!(drained(&mut set, 1000), pages.map(|page| page + 1000));
        assert!(drained(&mut set, 0).is_empty(), "told once");
    }

    #[test]
    fn what_is_filled_in_and_what_is_added_come_out_together() {
        let mut set = set_of(&[7]);
        set.fill(|words| {
            words.fill(0);
            words[1] = 5;
            *words.last_mut().unwrap() = 1;
            Ok::<(), ()>(())
        })
        .unwrap();
        set.add(1, 6);
        set.add(70, 1);
        assert_eq!(drained(&mut set, 0), [64, 65, 66, 70 * 64, 2 * 64 * 64 + 64]);
        let failed = set.fill(|words| {
            words.fill(u64::MAX);
            Err(())
        });
        assert_eq!((failed, drained(&mut set, 0)), (Err(()), vec![]));
    }

    #[test]
    fn what_is_taken_out_is_neither_in_the_set_nor_in_its_spans() {
        let mut set = set_of(&[0, 1, 64, 4096, 4097]);
        let mut taken = vec![(9, 9)];
        let choose = |group, bits| if group == 1 { u64::MAX } else { bits & 1 };
        set.take_chosen(choose, &mut taken);
        assert_eq!(taken, [(9, 9), (0, 1), (1, 1), (64, 1)]);
        assert_eq!(set.spans(0).collect::<Vec<_>>(), [0..1, 64..65]);
        taken[1..].iter().for_each(|&(group, bits)| set.add(group, bits));
        assert_eq!(drained(&mut set, 0), [0, 1, 64, 4096, 4097]);
    }

    #[test]
    fn spans_hold_the_whole_set_and_leave_out_long_gaps() {
        // Pages in groups 0, 1, 4, 10 and 129.
        let set = set_of(&[0, 1, 64, 4 * 64, 10 * 64 + 63, PAGES - 1]);
        let spans = |gap| set.spans(gap).collect::<Vec<_>>();
        assert_eq!(spans(0), [0..2, 4..5, 10..11, 129..130]);
        assert_eq!(spans(2), [0..5, 10..11, 129..130]);
        assert_eq!(spans(5), [0..11, 129..130]);
        assert_eq!(spans(usize::MAX), vec![0..130; 1]);
        assert_eq!(set.words(4..5), [1]);
        assert_eq!(DirtySet::new(PAGES).spans(0).count(), 0);
    }
}
