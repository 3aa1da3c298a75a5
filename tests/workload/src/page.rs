//! The pattern of a page that the guest dirties in the background: every word depends on page and generation, so a
//! page that is torn, stale or misplaced tells on itself (P4, P8).

/// The 64-bit words of a page.
pub const PAGE_WORDS: usize = 512;

/// A page of memory.
pub type Page = [u64; PAGE_WORDS];

const INDEX: usize = 0;
const GENERATION: usize = 1;
const CHECKSUM: usize = 2;
const FILLER: usize = 3;

/// Writes the pattern of page `index` in `generation`.
pub fn fill(page: &mut Page, index: u64, generation: u64) {
    page[INDEX] = index;
    page[GENERATION] = generation;
    page[CHECKSUM] = checksum(index, generation);
    let seed = page[CHECKSUM];
    for (place, word) in page.iter_mut().enumerate().skip(FILLER) {
        *word = filler(seed, place);
    }
}

/// Whether the page holds the pattern of page `index` in `generation`, in every word.
pub fn check(page: &Page, index: u64, generation: u64) -> bool {
    let seed = checksum(index, generation);
    page[INDEX] == index
        && page[GENERATION] == generation
        && page[CHECKSUM] == seed
        && page.iter().enumerate().skip(FILLER).all(|(place, &word)| word == filler(seed, place))
}

/// The index and generation of a page that holds a whole pattern, whichever it is.
pub fn identify(page: &Page) -> Option<(u64, u64)> {
    let (index, generation) = (page[INDEX], page[GENERATION]);
    check(page, index, generation).then_some((index, generation))
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

    #[test]
    fn a_page_knows_itself() {
        let mut page = [0; PAGE_WORDS];
        fill(&mut page, 3, 4);
        assert!(check(&page, 3, 4));
        assert!(!check(&page, 4, 4));
        assert!(!check(&page, 3, 3));
        assert_eq!(identify(&page), Some((3, 4)));
    }

    #[test]
    fn every_changed_word_is_found() {
        let mut page = [0; PAGE_WORDS];
        fill(&mut page, 3, 4);
        for place in 0..PAGE_WORDS {
            page[place] ^= 1 << (place % 64);
            assert!(!check(&page, 3, 4), "word {place}");
            assert!(identify(&page).is_none(), "word {place}");
            page[place] ^= 1 << (place % 64);
        }
    }

    #[test]
    fn a_mix_of_two_generations_is_found() {
        let (mut old, mut new) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        fill(&mut old, 3, 4);
        fill(&mut new, 3, 5);
        // The first word, the index, is the same in both.
        for cut in 2..PAGE_WORDS {
            let mut torn = old;
            torn[..cut].copy_from_slice(&new[..cut]);
            assert!(identify(&torn).is_none(), "cut {cut}");
        }
    }
}
