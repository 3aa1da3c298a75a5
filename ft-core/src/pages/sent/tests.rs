//! The other side reconstructs from the changes what was to be sent.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::convert::Infallible;

use io_gate::host::{Epoch, Term};
use proptest::prelude::*;

use super::*;
use crate::handshake::MemoryRegion;
use crate::pages::{FRAME_PAGES, PageBatch, PageFrames};
use crate::wire::HEADER_LEN;

const GUEST_PAGES: usize = 12;
const MEMORY: [MemoryRegion; 1] = [MemoryRegion { start: 0, len: 1 << 30 }];

/// The primary's memory, the record of sent pages, and the standby's memory.
struct Two {
    here: Vec<Page>,
    sent: SentPages,
    frames: PageFrames,
    there: Vec<Page>,
    /// Bytes of the last checkpoint.
    bytes: usize,
}

impl Two {
    fn new(pages: usize, room: usize) -> Self {
        let memory = || (0..pages).map(|at| [at as u8; PAGE_SIZE]).collect();
        Self {
            here: memory(),
            sent: SentPages::new(room),
            frames: PageFrames::default(),
            there: memory(),
            bytes: 0,
        }
    }

    /// Sends a checkpoint of these pages. Returns how many were sent as changed lines; `None` if
    /// that was not tried.
    fn send(&mut self, pages: impl IntoIterator<Item = usize>) -> Option<u64> {
        let pages: Vec<usize> = pages.into_iter().collect();
        self.frames.begin(pages.len());
        for page in &pages {
            let fill = |to: &mut Page| {
                *to = self.here[*page];
                Ok::<_, Infallible>(())
            };
            self.frames.push((page * PAGE_SIZE) as u64, fill).unwrap();
        }
        let about = (Epoch(1), Term(1));
        let mut bytes = Vec::new();
        let mut bodies = Vec::new();
        let compared = self.sent.begin_checkpoint();
        if compared {
            let each = |_: &_, pages, out: &mut Vec<u8>| {
                bodies.push((pages, out.split_off(HEADER_LEN)));
                out.clear();
                Ok::<_, Infallible>(())
            };
            self.frames.finish_changes(&mut self.sent, about, &mut bytes, each).unwrap();
        } else {
            let each = |_: &_, pages, frame: &[u8]| {
                bodies.push((pages, frame[HEADER_LEN..].to_vec()));
                Ok::<_, Infallible>(())
            };
            self.frames.finish_each(about.0, about.1, each).unwrap();
        }
        assert_eq!(bodies.len(), pages.len().div_ceil(FRAME_PAGES as usize));
        let mut changes = 0;
        self.bytes = 0;
        for (count, body) in &bodies {
            let batch = PageBatch::parse(body, &MEMORY).unwrap();
            assert_eq!(batch.pages(), *count);
            changes += batch.changes();
            self.bytes += body.len();
            let write = |address: u64, piece: &[u8]| {
                let (page, at) = (address as usize / PAGE_SIZE, address as usize % PAGE_SIZE);
                self.there[page][at..at + piece.len()].copy_from_slice(piece);
                Ok::<_, Infallible>(())
            };
            batch.for_each_piece(write).unwrap();
        }
        compared.then_some(changes)
    }
}

#[test]
fn only_what_has_changed_is_sent() {
    let mut two = Two::new(4, 4);
    assert_eq!(two.send([1, 2, 3]), Some(0), "nothing is known yet");
    two.here[1][5] = 0xee;
    two.here[2][64 * 7 + 63] = 0xee;
    two.here[2][64 * 8] = 0xee;
    two.here[2][64 * 63] = 0xee;
    assert_eq!(two.send([1, 2, 3]), Some(3));
    assert_eq!(two.bytes, 3 * (8 + 8) + 4 * 64);
    assert!(two.here == two.there);
    two.here[3].fill(0xaa);
    assert_eq!(two.send([3]), Some(0), "a page that changed altogether is sent whole");
    two.here[3][0] = 0;
    assert_eq!(two.send([3]), Some(1), "and is known then");
    assert!(two.here == two.there);
}

#[test]
fn p4_a_page_that_was_zero_has_no_lines_of_before() {
    let mut two = Two::new(2, 2);
    two.here[1].fill(7);
    two.send([1]);
    two.here[1].fill(0);
    two.send([1]);
    two.here[1].fill(7);
    assert_eq!(two.send([1]), Some(0));
    assert!(two.here == two.there);
}

#[test]
fn what_saves_nothing_is_given_up_and_tried_again() {
    let mut two = Two::new(GUEST_PAGES, GUEST_PAGES);
    let mut tried = Vec::new();
    for round in 0..2000u32 {
        two.here.iter_mut().for_each(|page| page.fill((round % 251 + 1) as u8));
        tried.push(two.send(0..GUEST_PAGES).is_some());
    }
    assert!(two.here == two.there);
    let tries = tried.iter().filter(|tried| **tried).count();
    assert!((18..100).contains(&tries), "{tries} of 2000");
    // Now comparing is worthwhile.
    let mut compared = 0;
    for round in 0..3000u32 {
        two.here.iter_mut().for_each(|page| page[9..13].copy_from_slice(&round.to_le_bytes()));
        compared += u32::from(two.send(0..GUEST_PAGES).is_some());
        assert!(two.here == two.there, "round {round}");
    }
    assert!(compared > 1900, "{compared} of 3000");
}

#[test]
fn without_room_every_page_is_sent_whole() {
    let mut two = Two::new(3, 0);
    for _ in 0..20 {
        assert_eq!(two.send([0, 1]), None);
    }
    assert!(two.here == two.there);
}

/// A guest's change to a page.
#[derive(Clone, Debug)]
enum Change {
    Lines(Vec<(usize, u8)>),
    Fill(u8),
}

fn any_change() -> impl Strategy<Value = Change> {
    // Few values, so that a line often returns to an earlier content.
    prop_oneof![
        3 => prop::collection::vec((0..PAGE_SIZE, 0..3u8), 0..70).prop_map(Change::Lines),
        1 => (0..3u8).prop_map(Change::Fill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p4_whatever_the_guest_does_both_sides_are_alike(
        room in 0..GUEST_PAGES + 1,
        checkpoints in prop::collection::vec(
            prop::collection::btree_map(0..GUEST_PAGES, any_change(), 0..GUEST_PAGES), 0..40),
    ) {
        let mut two = Two::new(GUEST_PAGES, room);
        for changes in checkpoints {
            let changes: BTreeMap<usize, Change> = changes;
            for (page, change) in &changes {
                match change {
                    Change::Lines(bytes) => bytes.iter().for_each(|(at, to)| two.here[*page][*at] = *to),
                    Change::Fill(byte) => two.here[*page].fill(*byte),
                }
            }
            two.send(changes.keys().copied());
            prop_assert!(two.here == two.there);
        }
    }
}
