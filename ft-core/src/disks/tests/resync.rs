//! What is copied (R8), and what the two sides say (hostile bytes).

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::super::resync::{Plan, Refusal, Resync, Side, hash, plan};
use super::*;

/// Two images that were equal at point 3 in generation 1; the primary has gone on alone.
fn pair() -> [(Sidecar, Area); 2] {
    let first = Lineage::new(generation(1));
    let ours = Sidecar { peer: Some(B), ..sidecar(A, first.continued(generation(2))) };
    let theirs = Sidecar { peer: Some(A), ..sidecar(B, first) };
    let area = |peer| Area { peer: Some(peer), point: 3, cleared: Seq(9), ..Area::default() };
    let our_area = Area { fine: BTreeSet::from([1]), coarse: BTreeSet::from([2]), ..area(B) };
    let their_area = Area { fine: BTreeSet::from([5]), coarse: BTreeSet::from([3]), ..area(A) };
    [(ours, our_area), (theirs, their_area)]
}

fn planned(pair: &[(Sidecar, Area); 2]) -> Result<Plan, Refusal> {
    let side = |at: usize| Side { sidecar: &pair[at].0, area: Some(&pair[at].1) };
    plan(side(0), side(1))
}

fn is_full(pair: &[(Sidecar, Area); 2]) -> bool {
    matches!(planned(pair), Ok(Plan::Full { .. }))
}

#[test]
fn r8_the_blocks_are_the_union_of_both_sides_marks() {
    let marked = Plan::Marked { copy: BTreeSet::from([1, 5]), compare: BTreeSet::from([2, 3]) };
    assert_eq!(planned(&pair()), Ok(marked));
}

#[test]
fn r8_marks_of_another_pair_of_images_are_not_used() {
    let mut other = pair();
    other[0].1.peer = Some(C);
    assert!(is_full(&other));
    let mut other = pair();
    other[1].1.peer = Some(C);
    assert!(is_full(&other));
    let mut other = pair();
    other[1].1.point = 4;
    assert!(is_full(&other));
    let [ours, theirs] = pair();
    let theirs = Side { sidecar: &theirs.0, area: None };
    let damaged = plan(Side { sidecar: &ours.0, area: Some(&ours.1) }, theirs);
    assert!(matches!(damaged, Ok(Plan::Full { .. })));
}

#[test]
fn r8_an_image_that_was_set_back_is_compared_in_full() {
    let mut back = pair();
    back[1].0.durable = Seq(8);
    assert!(is_full(&back));
    let mut back = pair();
    back[0].0.durable = Seq(8);
    assert!(is_full(&back));
    let mut back = pair();
    back[0].0.durable = Seq(9);
    back[1].0.durable = Seq(9);
    assert!(!is_full(&back));
}

/// R6: the power was lost after a claim was won, and before the sidecar said so. Then an operator
/// began from the other image, by force.
#[test]
fn r6_an_image_whose_claim_was_perhaps_won_is_not_overwritten() {
    let mut pair = pair();
    let ours = pair[0].0.lineage.clone();
    let refused = |pending: u64, pair: &mut [(Sidecar, Area); 2]| {
        pair[1].0.pending = Some(generation(pending));
        matches!(planned(pair), Err(Refusal::NotAnAncestor { theirs, .. }) if theirs == generation(pending))
    };
    pair[0].0.lineage = ours.continued(generation(4));
    assert!(refused(3, &mut pair));
    assert!(refused(5, &mut pair));
    // Terms 2 and 4 are the primary's: the claim was lost, or its image continues this one.
    assert!(!refused(2, &mut pair));
    assert!(!refused(4, &mut pair));
    // What the primary has forgotten is compared in full.
    let mut long = pair[0].0.lineage.clone();
    for term in 5..=u64::try_from(MAX_PARENTS).unwrap() + 4 {
        assert!(refused(3, &mut pair));
        long = long.continued(generation(term));
        pair[0].0.lineage = long.clone();
    }
    assert!(!refused(3, &mut pair));
    assert!(is_full(&pair));
}

#[test]
fn r6_an_image_that_has_what_this_one_lacks_is_not_overwritten() {
    let mut newer = pair();
    newer[1].0.lineage = newer[0].0.lineage.continued(generation(3));
    assert!(matches!(planned(&newer), Err(Refusal::NotAnAncestor { .. })));
    let mut diverged = pair();
    diverged[1].0.lineage = diverged[1].0.lineage.continued(generation(3));
    assert!(matches!(planned(&diverged), Err(Refusal::NotAnAncestor { .. })));
    // A machine that had no peer ran on it: what it has told is nowhere else.
    diverged[1].0.peer = None;
    assert!(matches!(planned(&diverged), Err(Refusal::NotAnAncestor { .. })));
    // An image on which no machine has run has nothing to lose.
    diverged[1].0.lineage = Lineage::new(generation(0));
    assert!(is_full(&diverged));
    let mut other = pair();
    other[1].0.pair = PairId(2);
    assert!(matches!(planned(&other), Err(Refusal::OtherPair { .. })));
    let mut other = pair();
    other[1].0.disk = A;
    assert_eq!(planned(&other), Err(Refusal::SameImage(A)));
    let mut other = pair();
    other[1].0.image.size += 1;
    assert!(matches!(planned(&other), Err(Refusal::Size { .. })));
    let mut other = pair();
    other[1].0.state = State::Failed;
    assert_eq!(planned(&other), Err(Refusal::Failed));
    let mut interrupted = pair();
    interrupted[1].0.state = State::Inconsistent;
    assert!(planned(&interrupted).is_ok());
}

#[test]
fn r8_only_blocks_of_an_extent_that_differs_are_copied() {
    let compare = BTreeSet::from([1]);
    let marked = Plan::Marked { copy: BTreeSet::from([2]), compare };
    // The last extent and the last block are shorter.
    let mut resync = Resync::new(GEOMETRY, 0, 90, &marked);
    let piece = resync.next().unwrap();
    assert_eq!((piece.extent, piece.compare), (extent(32, 16), false));
    resync.placed(Seq(7));
    let piece = resync.next().unwrap();
    assert_eq!((piece.extent, piece.compare), (extent(64, 26), true));
    resync.placed(Seq(8));
    assert_eq!((resync.next(), resync.progress()), (None, (42, 42)));
    resync.different(Seq(7));
    assert_eq!(resync.next(), None, "a copy is not compared");
    resync.different(Seq(8));
    resync.performed(Seq(8));
    let mut copied = Vec::new();
    while let Some(piece) = resync.next() {
        assert!(!piece.compare);
        copied.push(piece.extent);
        resync.placed(Seq(9 + copied.len() as u64));
    }
    copied.sort();
    assert_eq!(copied, [extent(64, 16), extent(80, 10)]);
    assert!(!resync.is_done());
    resync.performed(Seq(11));
    assert!(resync.is_done());
}

#[test]
fn r8_a_full_resync_compares_the_whole_image() {
    let resync = Resync::new(GEOMETRY, 3, 130, &Plan::Full { why: "" });
    assert_eq!(resync.progress(), (130, 130));
    assert_eq!(resync.next().map(|piece| piece.extent.disk), Some(3));
    assert_ne!(hash(&[0; 16], 1), hash(&[0; 16], 2));
    assert_ne!(hash(&[0; 16], 1), hash(&[0; 17], 1));
}

#[test]
fn what_one_side_says_the_other_reads() {
    let [(sidecar, area), _] = pair();
    let lineage = sidecar.lineage.clone();
    let entry = Entry { seq: Seq(1), operation: write(0, &[1; 8]) };
    for message in [
        Message::Describe { sidecar: Box::new(sidecar), area: Some(area) },
        Message::Begin { last: Seq(3), resync: true },
        Message::Entries { epoch: Some(crate::Epoch(2)), entries: Vec::from([entry]) },
        Message::Cover(Cover { end: Seq(4), disk: A, lineage, point: 9 }),
        Message::BothDurable(Seq(5)),
        Message::Report(Report::default()),
        Message::Different { seq: Seq(6), extent: extent(0, 8) },
    ] {
        let mut bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message.clone()));
        bytes.push(0);
        assert_eq!(Message::decode(&bytes), Err(MessageError { found: bytes.len() }));
        bytes.truncate(bytes.len() - 2);
        assert!(Message::decode(&bytes).is_err() || bytes.is_empty());
    }
}

#[test]
fn r8_every_byte_of_the_image_and_none_behind_it_is_copied() {
    let marked = |copy| Plan::Marked { copy: BTreeSet::from([copy]), compare: BTreeSet::new() };
    // Block 5 has the bytes from 80 on.
    let one_byte = Resync::new(GEOMETRY, 0, 81, &marked(5));
    assert_eq!(one_byte.next().map(|piece| piece.extent), Some(extent(80, 1)));
    assert_eq!(Resync::new(GEOMETRY, 0, 80, &marked(5)).next(), None);
}

#[test]
fn r8_a_resync_ends_when_the_standby_has_performed_every_piece() {
    let mut resync = Resync::new(GEOMETRY, 0, 128, &Plan::Full { why: "" });
    assert!(!resync.is_done(), "nothing is placed");
    resync.placed(Seq(7));
    resync.placed(Seq(8));
    resync.performed(Seq(7));
    assert!(!resync.is_done());
    resync.different(Seq(8));
    assert_eq!(resync.progress(), (128, 192), "the blocks that are found come on top");
    resync.performed(Seq(8));
    assert_eq!((resync.is_done(), resync.progress()), (false, (64, 192)));
}
