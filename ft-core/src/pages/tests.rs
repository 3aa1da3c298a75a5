//! Encoding and decoding, and invalid bodies of pages.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::wire::HEADER_LEN;

const MEMORY: [MemoryRegion; 2] =
    [MemoryRegion { start: 0x1000, len: 0x10000 }, MemoryRegion { start: 0x10_0000, len: 0x2000 }];

type Pages = Vec<(u64, Box<Page>)>;

fn build(pages: &[(u64, Box<Page>)], compression: Compression) -> Vec<u8> {
    let mut out = vec![0xee; 3];
    let mut frame = PageFrame::begin(&mut out, Kind::Pages, Epoch(1), Term(1), compression);
    for (address, page) in pages {
        frame
            .push(*address, |to| {
                to.copy_from_slice(page.as_slice());
                Ok::<_, Infallible>(())
            })
            .unwrap();
    }
    assert_eq!(frame.pages(), pages.len() as u64);
    let header = frame.finish().unwrap();
    header.verify(&out[3 + HEADER_LEN..]).unwrap();
    out.split_off(3 + HEADER_LEN)
}

fn read(body: &[u8]) -> Result<Pages, PagesError> {
    let batch = PageBatch::parse(body, &MEMORY)?;
    let pages = whole_pages(&batch);
    assert_eq!((batch.pages(), batch.changes()), (pages.len() as u64, 0));
    Ok(pages)
}

fn whole_pages(batch: &PageBatch<'_>) -> Pages {
    let mut pages = Vec::new();
    batch
        .for_each_piece(|address, page| {
            pages.push((address, Box::new(page.try_into().unwrap())));
            Ok::<_, Infallible>(())
        })
        .unwrap();
    pages
}

fn page(of: impl Fn(usize) -> u8) -> Box<Page> {
    let mut page = Box::new([0; PAGE_SIZE]);
    page.iter_mut().enumerate().for_each(|(at, byte)| *byte = of(at));
    page
}

/// Incompressible bytes.
fn noise(seed: u64) -> Box<Page> {
    page(|at| xxhash_rust::xxh3::xxh3_64_with_seed(&at.to_le_bytes(), seed) as u8)
}

#[test]
fn every_encoding_comes_back_as_it_was() {
    let pages: Pages = vec![
        (0x1000, noise(1)),
        (0x2000, page(|_| 0)),
        (0x3000, page(|at| (at / 64) as u8)),
        (0x10000, page(|_| 0xff)),
        (0x10_1000, noise(2)),
    ];
    let plain = build(&pages, Compression::None);
    assert_eq!(plain.len(), 5 * 8 + 4 * PAGE_SIZE);
    assert_eq!(read(&plain).unwrap(), pages);
    let packed = build(&pages, Compression::Lz4);
    assert!(packed.len() < 5 * 8 + 2 * PAGE_SIZE + 1000, "{}", packed.len());
    assert_eq!(read(&packed).unwrap(), pages);
}

#[test]
fn a_page_with_one_bit_is_not_zero() {
    assert!(is_zero(&[0; PAGE_SIZE]));
    for at in 0..PAGE_SIZE {
        let mut page = [0; PAGE_SIZE];
        page[at] = 0x80;
        assert!(!is_zero(&page), "byte {at}");
    }
}

#[test]
fn a_frame_says_when_it_is_full_and_a_failed_page_leaves_no_trace() {
    let mut out = Vec::new();
    let mut frame = PageFrame::begin(&mut out, Kind::Bulk, Epoch(0), Term(0), Compression::None);
    let mut address = 0;
    while !frame.is_full() {
        assert_eq!(frame.push(address, |_| Err("bad memory")), Err("bad memory"));
        frame
            .push(address, |to| {
                to[0] = 1;
                Ok::<_, ()>(())
            })
            .unwrap();
        address += 4096;
    }
    assert_eq!(frame.pages(), 1022);
    let header = frame.finish().unwrap();
    assert!(header.body_len <= Kind::Bulk.max_body());
    let memory = [MemoryRegion { start: 0, len: 1 << 30 }];
    assert_eq!(PageBatch::parse(&out[HEADER_LEN..], &memory).unwrap().pages(), 1022);
}

#[test]
fn p4_a_body_that_keeps_not_its_format_is_refused_whole() {
    let entry = |word: u64| word.to_le_bytes().to_vec();
    let cases: [(Vec<u8>, PagesError); 11] = [
        (vec![1, 2, 3], PagesError::Torn { address: 0, expected: 8, found: 3 }),
        (
            [entry(0x1000), vec![1; 4095]].concat(),
            PagesError::Torn { address: 0x1000, expected: 4096, found: 4095 },
        ),
        (entry(0x1002), PagesError::Torn { address: 0x1000, expected: 2, found: 0 }),
        (
            [entry(0x1002), vec![5, 0, 1]].concat(),
            PagesError::Torn { address: 0x1000, expected: 5, found: 1 },
        ),
        (entry(0x11001), PagesError::Outside { address: 0x11000 }),
        (
            [entry(0x2001), entry(0x1001)].concat(),
            PagesError::Order { address: 0x1000, previous: 0x2000 },
        ),
        (
            [entry(0x2001), entry(0x2001)].concat(),
            PagesError::Order { address: 0x2000, previous: 0x2000 },
        ),
        (entry(0x1004), PagesError::Encoding { address: 0x1000, encoding: 4 }),
        (entry(0x1003), PagesError::Torn { address: 0x1000, expected: 8, found: 0 }),
        (
            [entry(0x1003), entry(1 << 63 | 1), vec![9; 127]].concat(),
            PagesError::Torn { address: 0x1000, expected: 128, found: 127 },
        ),
        ([entry(0x1002), vec![2, 0, 0x10, 7]].concat(), PagesError::Lz4 { address: 0x1000 }),
    ];
    for (body, expected) in cases {
        assert_eq!(read(&body).unwrap_err(), expected);
    }
    for outside in [0, 0x10_2000, 0xffff_ffff_ffff_f000] {
        let error = read(&entry(outside | ZERO)).unwrap_err();
        assert_eq!(error, PagesError::Outside { address: outside });
    }
}

#[test]
fn regions_that_make_no_sense_contain_nothing() {
    let strange = [
        MemoryRegion { start: u64::MAX - 10, len: u64::MAX },
        MemoryRegion { start: 0x5000, len: 10 },
    ];
    for address in [0x5000_u64, 0xffff_ffff_ffff_f000] {
        let body = (address | ZERO).to_le_bytes();
        assert!(PageBatch::parse(&body, &strange).is_err());
    }
}

fn any_pages() -> impl Strategy<Value = Pages> {
    let contents = prop_oneof![
        Just(page(|_| 0)),
        any::<u64>().prop_map(noise),
        (any::<u8>(), 1..512usize)
            .prop_map(|(byte, step)| { page(|at| if at % step == 0 { byte } else { 7 }) }),
    ];
    prop::collection::btree_map(1..=16u64, contents, 0..10)
        .prop_map(|pages| pages.into_iter().map(|(n, page)| (n * 0x1000, page)).collect())
}

/// P4: pages sent whole without a comparison are not recorded here, so after a rest no page counts
/// as known.
#[test]
fn p4_after_a_rest_every_page_is_sent_whole_at_first() {
    let mut sent = SentPages::new(2);
    let (mut compared, mut rested) = (0, 0);
    while rested == 0 || !sent.begin_checkpoint() {
        rested += 1;
        while rested == 1 && sent.begin_checkpoint() {
            sent.exchange(0, &page(|_| compared));
            compared += 1;
        }
    }
    assert!(compared > 1 && rested > 1);
    assert_eq!(sent.exchange(0, &page(|_| 7)), None);
    assert_eq!(sent.exchange(0, &page(|_| 7)), Some(0));
    sent.forget(0);
    assert_eq!(sent.exchange(0, &page(|_| 7)), None);
}

/// P4: a page lies in one memory region to its last byte; and all of its lines may be sent as
/// changed lines.
#[test]
fn p4_a_page_is_in_memory_to_its_last_byte() {
    let region = |start, len| MemoryRegion { start, len };
    let body = build(&[(0x2000, noise(1))], Compression::None);
    for (memory, fits) in [
        (&[region(0x1000, 0x1000), region(0x2000, 0x1000)][..], true),
        (&[region(0x1000, 0x1800)], false),
        (&[region(0x2000, 0x800)], false),
        (&[region(0x2800, 0x1000)], false),
    ] {
        assert_eq!(PageBatch::parse(&body, memory).is_ok(), fits, "{memory:?}");
    }
    let mut lines = Vec::from((0x2000 | LINES).to_le_bytes());
    lines.extend_from_slice(&u64::MAX.to_le_bytes());
    lines.extend_from_slice(noise(2).as_slice());
    let batch = PageBatch::parse(&lines, &MEMORY).unwrap();
    assert_eq!(whole_pages(&batch), [(0x2000, noise(2))]);
}

fn ones(page: &mut Page) -> Result<(), Infallible> {
    page.fill(1);
    Ok(())
}

/// P4: the other side refuses pages that are out of order, so they are not encoded either, on any
/// path.
#[test]
fn a_page_that_is_not_above_the_last_one_is_not_taken() {
    extern crate std;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    type Push = fn(&mut PageFrame<'_>, u64);
    let ways: [Push; 3] = [
        |frame, address| {
            frame.push(address, ones).unwrap();
        },
        |frame, address| frame.push_changes(address, &[1; PAGE_SIZE], &mut SentPages::new(4)),
        |frame, address| frame.push_zero(address),
    ];
    for first in ways {
        for second in ways {
            for (address, taken) in
                [(0x3000, false), (0x2000, false), (0x3001, false), (0x4000, true)]
            {
                let mut out = Vec::new();
                let mut frame =
                    PageFrame::begin(&mut out, Kind::Pages, Epoch(1), Term(1), Compression::None);
                first(&mut frame, 0x3000);
                let next = AssertUnwindSafe(|| second(&mut frame, address));
                assert_eq!(catch_unwind(next).is_ok(), taken, "{address:#x}");
                assert_eq!(frame.pages(), 1 + u64::from(taken));
            }
        }
    }
    for (address, taken) in [(0x3000, false), (0x4000, true)] {
        let mut frames = PageFrames::default();
        frames.begin(2);
        let mut push = |address| frames.push(address, ones).unwrap();
        push(0x3000);
        assert_eq!(catch_unwind(AssertUnwindSafe(|| push(address))).is_ok(), taken);
    }
}

#[test]
fn a_page_that_compression_makes_longer_is_sent_as_it_is() {
    for (page, len) in [(noise(1), ENTRY + PAGE_SIZE), (page(|_| 0), ENTRY)] {
        assert_eq!(build(&[(0x1000, page.clone())], Compression::Lz4).len(), len);
        let mut frames = PageFrames::default();
        frames.begin(1);
        let fill = |to: &mut Page| {
            to.copy_from_slice(page.as_slice());
            Ok::<_, Infallible>(())
        };
        frames.push(0x1000, fill).unwrap();
        let each = |_: &Header, _, frame: &[u8]| {
            assert_eq!(frame.len(), HEADER_LEN + len);
            Ok::<_, Infallible>(())
        };
        frames.finish_each(Epoch(1), Term(1), each).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pages_come_back(pages in any_pages(), lz4 in any::<bool>()) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        prop_assert_eq!(read(&build(&pages, compression)).unwrap(), pages);
    }

    #[test]
    fn any_bytes_at_all_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn changed_bodies_do_no_harm(
        pages in any_pages(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
    ) {
        let mut body = build(&pages, Compression::Lz4);
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
            let _ = read(&body);
            body.truncate(cut.index(body.len()));
        }
        // Accepted pages lie in memory and ascend, whatever the input.
        if let Ok(batch) = PageBatch::parse(&body, &MEMORY) {
            let mut end = 0;
            batch.for_each_piece(|address, bytes| {
                prop_assert!(address >= end && !bytes.is_empty());
                end = address + bytes.len() as u64;
                prop_assert!(MEMORY.iter().any(|r| r.start <= address && end <= r.start + r.len));
                Ok(())
            })?;
        }
    }
}

/// The result of [`PageFrames`], as one body after the other.
fn frames_of(frames: &mut PageFrames, pages: &[(u64, Box<Page>)]) -> Vec<Vec<u8>> {
    frames.begin(pages.len());
    for (address, page) in pages {
        let fill = |to: &mut Page| {
            to.copy_from_slice(page.as_slice());
            Ok::<_, Infallible>(())
        };
        frames.push(*address, fill).unwrap();
    }
    let mut bodies = Vec::new();
    let mut count = 0;
    let each = |header: &Header, pages: u64, bytes: &[u8]| {
        let parsed = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
        assert_eq!(parsed, *header);
        parsed.verify(&bytes[HEADER_LEN..]).unwrap();
        bodies.push(bytes[HEADER_LEN..].to_vec());
        count += pages;
        Ok::<_, Infallible>(())
    };
    frames.finish_each(Epoch(3), Term(2), each).unwrap();
    assert_eq!((frames.pages(), count), (pages.len() as u64, pages.len() as u64));
    bodies
}

#[test]
fn frames_hold_what_was_put_in_and_nothing_of_before() {
    let layout = [MemoryRegion { start: 0, len: 1 << 30 }];
    let mut frames = PageFrames::default();
    for (round, count) in [1, 64, 65, 200, 0, 63].into_iter().enumerate() {
        // Every third page is zero and takes no room.
        let pages: Pages = (0..count)
            .map(|at| {
                (at * 0x3000, if at % 3 == 2 { page(|_| 0) } else { noise(at + round as u64) })
            })
            .collect();
        let bodies = frames_of(&mut frames, &pages);
        assert_eq!(bodies.len() as u64, count.div_ceil(FRAME_PAGES));
        let mut found = Vec::new();
        for body in &bodies {
            found.extend(whole_pages(&PageBatch::parse(body, &layout).unwrap()));
        }
        assert!(found == pages, "round {round}");
    }
}

#[test]
fn a_page_that_cannot_be_read_is_in_no_frame() {
    let mut frames = PageFrames::default();
    frames.begin(2);
    assert_eq!(frames.push(0, |_| Err(7)), Err(7));
    assert_eq!(frames.pages(), 0);
    frames.push(0, |_| Ok::<_, Infallible>(())).unwrap();
    frames.push(0x1000, |_| Ok::<_, Infallible>(())).unwrap();
    assert_eq!(frames.pages(), 2);
}
