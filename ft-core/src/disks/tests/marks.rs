//! Marks (R3).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::*;

fn flush(marks: &mut Marks) {
    while marks.next_write().is_some() {
        marks.written();
    }
}

fn coarse(marks: &Marks) -> Vec<u64> {
    marks.wanted().coarse.iter().copied().collect()
}

fn paired() -> Marks {
    let mut marks = Marks::load(GEOMETRY, Area::default());
    marks.equal(B, 5, Seq(0));
    flush(&mut marks);
    marks
}

#[test]
fn r3_a_write_begins_when_its_intents_are_durable() {
    let mut marks = paired();
    // Across the border of two extents.
    let across = extent(60, 8);
    marks.begin(&across, Seq(1));
    assert!(!marks.covers(&across));
    let area = marks.next_write().cloned().expect("two intents");
    assert_eq!(area.coarse, BTreeSet::from([0, 1]));
    assert!(!marks.covers(&across), "the write of the area is under way");
    assert!(marks.next_write().is_none(), "one write at a time");
    marks.written();
    assert!(marks.covers(&across));
    assert!(!marks.covers(&extent(128, 1)));
}

#[test]
fn r3_a_mark_goes_when_both_sides_are_durable_and_no_write_is_under_it() {
    let mut marks = paired();
    marks.begin(&extent(0, 16), Seq(1));
    marks.begin(&extent(16, 16), Seq(2));
    flush(&mut marks);
    marks.performed(&extent(0, 16));
    marks.both_durable(Seq(1));
    assert_eq!(coarse(&marks), [0], "entry 2 is not durable");
    marks.both_durable(Seq(2));
    assert_eq!(coarse(&marks), [0], "entry 2 is under way");
    marks.performed(&extent(16, 16));
    marks.begin(&extent(64, 1), Seq(3));
    marks.performed(&extent(64, 1));
    marks.both_durable(Seq(3));
    assert_eq!(coarse(&marks), [0; 0]);
    assert_eq!(marks.wanted().cleared, Seq(3));
}

#[test]
fn r3_a_write_that_meets_an_unmarking_marks_again() {
    let mut marks = paired();
    marks.begin(&extent(0, 16), Seq(1));
    flush(&mut marks);
    marks.performed(&extent(0, 16));
    marks.both_durable(Seq(1));
    assert!(marks.next_write().is_some(), "the removal");
    marks.begin(&extent(0, 16), Seq(2));
    assert!(!marks.covers(&extent(0, 16)), "the mark may be gone at any moment");
    marks.written();
    assert!(!marks.covers(&extent(0, 16)));
    flush(&mut marks);
    assert!(marks.covers(&extent(0, 16)));
}

#[test]
fn r3_fine_marks_are_durable_before_their_coarse_mark_goes() {
    let mut marks = paired();
    marks.begin(&extent(16, 1), Seq(1));
    flush(&mut marks);
    marks.performed(&extent(16, 1));
    marks.peer_gone();
    assert_eq!((coarse(&marks), marks.wanted().fine.len()), (Vec::from([0]), 1));
    assert!(marks.next_write().is_some());
    marks.written();
    assert_eq!((coarse(&marks), marks.wanted().fine.len()), (Vec::new(), 1));
    assert_eq!(marks.differences(), (BTreeSet::from([1]), BTreeSet::new()));
    flush(&mut marks);
    assert!(!marks.covers(&extent(16, 1)), "a new write needs an intent again");
}

#[test]
fn r8_after_a_crash_a_coarse_mark_means_the_whole_extent() {
    let mut marks = paired();
    marks.begin(&extent(130, 1), Seq(1));
    let area = marks.next_write().cloned().expect("an intent");
    let layout = AreaLayout::new(GEOMETRY, 256);
    let bytes = layout.encode_all(&area);
    let mut after = Marks::load(GEOMETRY, layout.decode(&bytes).unwrap());
    assert_eq!(after.differences(), (BTreeSet::new(), BTreeSet::from([2])));
    assert_eq!(after.described().coarse, BTreeSet::from([2]));
    after.both_durable(Seq(99));
    assert_eq!(coarse(&after), [2], "nothing says what it stands for");
    after.equal(B, 6, Seq(99));
    assert_eq!(coarse(&after), [0; 0]);
}

#[test]
fn r8_what_is_written_after_the_images_are_equal_stays_marked() {
    let mut marks = Marks::load(GEOMETRY, Area::default());
    marks.begin(&extent(0, 1), Seq(1));
    marks.begin(&extent(64, 1), Seq(2));
    flush(&mut marks);
    marks.performed(&extent(0, 1));
    marks.performed(&extent(64, 1));
    flush(&mut marks);
    assert_eq!(marks.wanted().fine, BTreeSet::from([0, 4]));
    marks.begin(&extent(64, 1), Seq(3));
    marks.equal(C, 7, Seq(2));
    assert_eq!((marks.wanted().peer, marks.wanted().point), (Some(C), 7));
    assert_eq!(marks.differences().0, BTreeSet::from([4]));
    assert_eq!(coarse(&marks), [1]);
}

#[test]
fn r8_a_write_between_the_covering_checkpoint_and_the_news_of_it_stays_marked() {
    // Simulation, seed 1003221: its fine mark took the place of its entry's number.
    let mut marks = paired();
    marks.peer_gone();
    marks.peer_connects();
    for (at, seq) in [(0, 1), (16, 2)] {
        marks.begin(&extent(at, 1), Seq(seq));
        flush(&mut marks);
        marks.performed(&extent(at, 1));
        flush(&mut marks);
    }
    marks.equal(B, 6, Seq(1));
    flush(&mut marks);
    assert_eq!(marks.differences().0, BTreeSet::from([1]));
    assert_eq!(coarse(&marks), [0]);
}

#[test]
fn r3_a_coarse_mark_goes_when_the_last_write_under_it_ends() {
    let mut marks = Marks::load(GEOMETRY, Area::default());
    marks.begin(&extent(0, 1), Seq(1));
    flush(&mut marks);
    assert_eq!((coarse(&marks), marks.durable().fine.len()), (Vec::from([0]), 1));
    marks.performed(&extent(0, 1));
    assert_eq!((coarse(&marks), marks.wanted().fine.len()), (Vec::new(), 1));
}

#[test]
fn r3_the_mark_of_a_write_that_is_not_durable_on_both_sides_stays() {
    let mut marks = paired();
    for (at, seq) in [(0, 1), (64, 2)] {
        marks.begin(&extent(at, 1), Seq(seq));
        flush(&mut marks);
        marks.performed(&extent(at, 1));
    }
    marks.both_durable(Seq(1));
    assert_eq!(coarse(&marks), [1]);
}

#[test]
fn r3_the_area_records_only_entries_whose_marks_were_removed() {
    let mut marks = paired();
    marks.both_durable(Seq(5));
    assert_eq!(marks.wanted().cleared, Seq(0));
    assert!(marks.next_write().is_none());
}

#[test]
fn r8_a_mark_of_an_earlier_process_stays_while_others_go() {
    let area = Area { coarse: BTreeSet::from([2]), ..Area::default() };
    let mut marks = Marks::load(GEOMETRY, area);
    marks.begin(&extent(0, 1), Seq(1));
    flush(&mut marks);
    marks.performed(&extent(0, 1));
    assert_eq!(coarse(&marks), [2]);
}

#[test]
fn r8_a_write_that_is_under_way_when_a_peer_connects_stays_marked() {
    let mut marks = Marks::load(GEOMETRY, Area::default());
    marks.begin(&extent(0, 1), Seq(5));
    flush(&mut marks);
    marks.peer_connects();
    marks.equal(B, 6, Seq(4));
    assert_eq!(marks.differences().0, BTreeSet::from([0]));
    marks.performed(&extent(0, 1));
    assert_eq!(coarse(&marks), [0]);
}
