//! The pattern of a page that the guest dirties in the background. Every word depends on page and generation, so a torn,
//! stale or misplaced page is detected (P4, P8).
//!
//! The upper half of a generation counts how often the page was written whole; the lower half counts how often only its ends
//! were written since: the first words, and the last 64 bytes. The words between them depend on the upper half only.

/// Number of 64-bit words of a page.
pub const PAGE_WORDS: usize = 512;

/// A page of memory.
pub type Page = [u64; PAGE_WORDS];

const INDEX: usize = 0;
const GENERATION: usize = 1;
const CHECKSUM: usize = 2;
const FILLER: usize = 3;
/// The last 64 bytes.
const TAIL: usize = PAGE_WORDS - 8;

/// The next generation of a page that is written whole.
pub const fn next_whole(generation: u64) -> u64 {
    ((generation >> 32) + 1) << 32
}

/// The next generation of a page of which only the ends are written; a page that was never written is written whole.
pub const fn next_ends(generation: u64) -> u64 {
    if generation == 0 { next_whole(0) } else { generation + 1 }
}

/// Writes the pattern of page `index` in `generation`, if the page holds the pattern of the generation before. If only the
/// ends differ, it writes only the ends.
pub fn fill(page: &mut Page, index: u64, generation: u64) {
    page[INDEX] = index;
    page[GENERATION] = generation;
    page[CHECKSUM] = checksum(index, generation);
    let (body, tail) = seeds(index, generation);
    if generation == whole(generation) {
        for (place, word) in page.iter_mut().enumerate().take(TAIL).skip(FILLER) {
            *word = filler(body, place);
        }
    }
    for (place, word) in page.iter_mut().enumerate().skip(TAIL) {
        *word = filler(tail, place);
    }
}

/// Whether the page holds the pattern of page `index` in `generation`, in every word.
pub fn check(page: &Page, index: u64, generation: u64) -> bool {
    let (body, tail) = seeds(index, generation);
    let filled = |from: usize, words: &[u64], seed| {
        words.iter().enumerate().all(|(place, &word)| word == filler(seed, from + place))
    };
    page[INDEX] == index
        && page[GENERATION] == generation
        && page[CHECKSUM] == tail
        && filled(FILLER, &page[FILLER..TAIL], body)
        && filled(TAIL, &page[TAIL..], tail)
}

/// The index and generation of a page that holds any complete pattern.
pub fn identify(page: &Page) -> Option<(u64, u64)> {
    let (index, generation) = (page[INDEX], page[GENERATION]);
    check(page, index, generation).then_some((index, generation))
}

/// The seed of the words between the ends, and the seed of the words at the ends.
fn seeds(index: u64, generation: u64) -> (u64, u64) {
    (checksum(index, whole(generation)), checksum(index, generation))
}

const fn whole(generation: u64) -> u64 {
    generation >> 32 << 32
}

fn checksum(index: u64, generation: u64) -> u64 {
    crate::chain_after(crate::CHAIN_START, 0, index, 0, generation)
}

const fn filler(seed: u64, place: usize) -> u64 {
    seed.wrapping_add((place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = next_whole(0);
    const SECOND: u64 = next_whole(FIRST);

    fn filled(index: u64, generation: u64) -> Page {
        let mut page = [0; PAGE_WORDS];
        fill(&mut page, index, whole(generation));
        fill(&mut page, index, generation);
        page
    }

    #[test]
    fn a_page_knows_itself() {
        assert_eq!(next_ends(0), FIRST);
        for generation in [FIRST, next_ends(FIRST), next_ends(next_ends(SECOND))] {
            let page = filled(3, generation);
            assert!(check(&page, 3, generation));
            assert!(!check(&page, 4, generation));
            assert!(!check(&page, 3, generation - 1));
            assert!(!check(&page, 3, generation + 1));
            assert_eq!(identify(&page), Some((3, generation)));
        }
    }

    #[test]
    fn the_ends_alone_are_two_lines_of_64_bytes() {
        // One bit for each line that differs.
        let differ = |a: &Page, b: &Page| {
            let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).enumerate();
            pairs.fold(0u64, |lines, (at, (a, b))| lines | u64::from(a != b) << at)
        };
        let before = filled(3, FIRST);
        assert_eq!(differ(&before, &filled(3, next_ends(FIRST))), 1 | 1 << 63);
        assert_eq!(differ(&before, &filled(3, next_whole(FIRST))), u64::MAX);
    }

    #[test]
    fn every_changed_word_is_found() {
        let mut page = filled(3, FIRST);
        for place in 0..PAGE_WORDS {
            page[place] ^= 1 << (place % 64);
            assert!(!check(&page, 3, FIRST), "word {place}");
            assert!(identify(&page).is_none(), "word {place}");
            page[place] ^= 1 << (place % 64);
        }
    }

    #[test]
    fn a_mix_of_two_generations_is_found() {
        for next in [next_ends(FIRST), next_whole(FIRST)] {
            let (old, new) = (filled(3, FIRST), filled(3, next));
            // The first word, the index, is the same in both generations.
            for cut in 2..PAGE_WORDS {
                let mut torn = old;
                torn[..cut].copy_from_slice(&new[..cut]);
                assert!(identify(&torn).is_none(), "cut {cut}");
            }
        }
    }
}
