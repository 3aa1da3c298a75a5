//! The mark area (R3, R11).

use alloc::collections::BTreeSet;

use super::*;

/// More fine marks than one block has bits, and an end within an extent.
const SIZE: u64 = 16 * 40_000 + 5;

fn layout() -> AreaLayout {
    AreaLayout::new(GEOMETRY, SIZE)
}

fn area(cleared: u64, coarse: &[u64], fine: &[u64]) -> Area {
    let set = |marks: &[u64]| marks.iter().copied().collect::<BTreeSet<u64>>();
    let (coarse, fine) = (set(coarse), set(fine));
    Area { peer: Some(B), point: 7, cleared: Seq(cleared), coarse, fine }
}

/// Writes some blocks of `to` over the blocks of `bytes`.
fn write(bytes: &mut [u8], to: &Area, blocks: impl IntoIterator<Item = u64>) {
    for block in blocks {
        let at = block as usize * MARK_BLOCK;
        bytes[at..at + MARK_BLOCK].copy_from_slice(&layout().encode(to, block));
    }
}

const LAST_COARSE: u64 = SIZE / 64;
const LAST_FINE: u64 = SIZE / 16;

#[test]
fn r11_the_marks_of_all_blocks_are_read_as_they_were_written() {
    let all = area(3, &[0, 1, 9, LAST_COARSE], &[0, 32_575, 32_576, LAST_FINE]);
    let bytes = layout().encode_all(&all);
    assert_eq!((layout().blocks(), bytes.len()), (4, 4 * MARK_BLOCK));
    assert_eq!(layout().decode(&bytes), Ok(all));
    assert_eq!(layout().decode(&layout().encode_all(&Area::default())), Ok(Area::default()));
}

#[test]
fn r11_every_flipped_bit_of_the_marks_is_noticed() {
    let layout = AreaLayout::new(GEOMETRY, 256);
    let bytes = layout.encode_all(&area(1, &[2], &[3]));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_eq!(layout.decode(&damaged), Err(AreaError), "byte {at}");
    }
}

#[test]
fn r11_blocks_of_another_place_or_size_or_missing_ones_are_damaged() {
    let bytes = layout().encode_all(&area(1, &[], &[]));
    assert_eq!(layout().decode(&bytes[..bytes.len() - 1]), Err(AreaError));
    let mut swapped = bytes.clone();
    swapped.copy_within(2 * MARK_BLOCK..3 * MARK_BLOCK, 3 * MARK_BLOCK);
    assert_eq!(layout().decode(&swapped), Err(AreaError));
    assert_eq!(AreaLayout::new(GEOMETRY, SIZE - 1).decode(&bytes), Err(AreaError));
    let coarser = Geometry { coarse: 128, ..GEOMETRY };
    assert_eq!(AreaLayout::new(coarser, SIZE).decode(&bytes), Err(AreaError));
}

#[test]
fn r11_only_the_blocks_that_differ_are_written() {
    let from = area(1, &[0], &[5]);
    let cases: [(Area, &[u64]); 5] = [
        (from.clone(), &[]),
        (area(1, &[0, 1], &[5]), &[1]),
        (area(1, &[0], &[5, 32_575]), &[2]),
        (area(1, &[], &[32_576]), &[1, 2, 3]),
        (area(2, &[0], &[5]), &[0]),
    ];
    for (to, expected) in cases {
        let blocks = layout().changed(&from, &to);
        assert!(blocks.iter().eq(expected), "{blocks:?}, expected {expected:?}");
        let mut bytes = layout().encode_all(&from);
        write(&mut bytes, &to, blocks);
        assert_eq!(layout().decode(&bytes), Ok(to));
    }
}

/// R3: whatever part of a write a power loss leaves, no mark is missing that was durable and is to
/// stay, and marks are gone only if the head says so. Fails if the head is written last.
#[test]
fn r3_a_write_of_the_marks_that_ends_early_loses_none() {
    let from = area(1, &[0, 1], &[5, 32_576]);
    let to = area(9, &[1, 2], &[]);
    let blocks = layout().changed(&from, &to);
    assert_eq!(blocks.len(), 4);
    for written in 0..=blocks.len() {
        let mut bytes = layout().encode_all(&from);
        write(&mut bytes, &to, blocks.iter().copied().take(written));
        let found = layout().decode(&bytes).unwrap();
        assert!(found.coarse.contains(&1), "{written} blocks");
        let lost = !found.coarse.contains(&0) || !found.fine.is_superset(&from.fine);
        assert!(!lost || found.cleared == Seq(9), "{written} blocks");
    }
}

#[test]
fn r11_a_mark_behind_the_end_of_the_image_has_no_block() {
    let beyond = area(1, &[1 << 40], &[1 << 40]);
    assert!(layout().changed(&area(1, &[], &[]), &beyond).is_empty());
}

#[test]
fn r8_bytes_under_two_marks_count_once() {
    let layout = AreaLayout::new(GEOMETRY, 200);
    let cases: [(&[u64], &[u64], u64); 5] = [
        (&[], &[], 0),
        (&[], &[0, 5], 32),
        (&[1], &[0, 4, 7], 80),
        // The last extent and the last block are shorter.
        (&[3], &[12], 8),
        (&[], &[12], 8),
    ];
    for (coarse, fine, expected) in cases {
        assert_eq!(layout.marked_bytes(&area(0, coarse, fine)), expected, "{coarse:?} {fine:?}");
    }
}
