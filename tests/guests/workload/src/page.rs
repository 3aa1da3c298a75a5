//! The pattern of a page that the guest dirties in the background. Each word depends on the page's
//! index and generation, so a torn, stale or misplaced page is detected (P4, P8).
//!
//! The upper 32 bits of a generation count the writes of the whole page. The lower 32 bits count
//! the later writes of its ends only: the first words, and the last 64 bytes. The words between
//! them depend on the upper bits only.

/// Number of 64-bit words in a page.
pub const PAGE_WORDS: usize = 512;

/// A page of memory.
pub type Page = [u64; PAGE_WORDS];

const INDEX: usize = 0;
const GENERATION: usize = 1;
const CHECKSUM: usize = 2;
const FILLER: usize = 3;
/// Index of the first word of the last 64 bytes.
const TAIL: usize = PAGE_WORDS - 8;

/// The next generation of a page that is written as a whole.
pub const fn next_whole(generation: u64) -> u64 {
    ((generation >> 32) + 1) << 32
}

/// The next generation of a page whose ends are written. A page that was never written is written
/// as a whole.
pub const fn next_ends(generation: u64) -> u64 {
    if generation == 0 { next_whole(0) } else { generation + 1 }
}

/// Writes the pattern of page `index` in `generation`. If only the ends differ from the previous
/// generation, writes only the ends; the page must then hold the previous pattern.
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

/// Whether each word of the page is as in the pattern of page `index` in `generation`.
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

/// The index and generation of the page, if it holds a complete pattern.
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
        // One bit for each line of 64 bytes that differs.
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
            // Start at 2: the first word, the index, is equal in both generations.
            for cut in 2..PAGE_WORDS {
                let mut torn = old;
                torn[..cut].copy_from_slice(&new[..cut]);
                assert!(identify(&torn).is_none(), "cut {cut}");
            }
        }
    }
}
