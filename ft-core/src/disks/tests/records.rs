//! Sidecar, generations, and the set (R6, R7, R11).

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::super::set::{Claim, Member, SetError, SetRecord, begin, claim, enlarge};
use super::*;

fn blank() -> [Vec<u8>; 2] {
    [vec![0; SLOT], vec![0; SLOT]]
}

fn read(slots: &[Vec<u8>; 2]) -> Result<Slots, SidecarError> {
    Slots::read([&slots[0], &slots[1]])
}

#[test]
fn r11_a_torn_slot_leaves_the_version_before() {
    let mut disk = blank();
    let mut slots = Slots::new(sidecar(A, Lineage::new(generation(1))));
    assert_eq!(read(&disk), Err(SidecarError::NoValidSlot));
    for durable in 1..6 {
        let next = Sidecar { durable: Seq(durable), ..slots.sidecar().clone() };
        let (at, bytes) = slots.next(&next);
        for torn in [0, 1, 27, 28, 60, SLOT - 1] {
            let mut cut = disk.clone();
            cut[at][..torn].copy_from_slice(&bytes[..torn]);
            match read(&cut) {
                // What is missing was zero before as well: the slot is whole.
                Ok(found) if cut[at] == bytes => assert_eq!(found.sidecar().durable, Seq(durable)),
                Ok(found) => assert_eq!(found.sidecar().durable, Seq(durable - 1), "{torn}"),
                Err(error) => assert_eq!((durable, error), (1, SidecarError::NoValidSlot)),
            }
        }
        disk[at] = bytes;
        slots.written(next);
        assert_eq!(read(&disk), Ok(slots.clone()));
    }
}

#[test]
fn r11_every_flipped_bit_is_noticed() {
    let slots = Slots::new(sidecar(A, Lineage::new(generation(1))));
    let (at, bytes) = slots.next(slots.sidecar());
    for bit in 0..8 * 400 {
        let mut disk = blank();
        disk[at].clone_from(&bytes);
        disk[at][bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&disk), Err(SidecarError::NoValidSlot), "bit {bit}");
    }
}

#[test]
fn r11_a_replaced_image_is_refused() {
    let sidecar = sidecar(A, Lineage::new(generation(1)));
    assert_eq!(sidecar.check_image(sidecar.image), Ok(()));
    let (size, inode, filesystem) = (255, 8, 2);
    for found in [
        ImageIdentity { size, ..sidecar.image },
        ImageIdentity { inode, ..sidecar.image },
        ImageIdentity { filesystem, ..sidecar.image },
    ] {
        assert!(sidecar.check_image(found).is_err());
    }
}

#[test]
fn r6_generations_tell_what_one_image_is_to_another() {
    let first = Lineage::new(generation(1));
    let second = first.continued(generation(2));
    let other = first.continued(Generation { id: 9, ..generation(2) });
    assert_eq!(first.relation(&first), Relation::Same);
    assert_eq!(first.relation(&second), Relation::Ancestor);
    assert_eq!(second.relation(&first), Relation::Descendant);
    assert_eq!(second.relation(&other), Relation::Diverged);
    let mut late = second.clone();
    for term in 3..=u64::try_from(MAX_PARENTS).unwrap_or(0) + 1 {
        late = late.continued(generation(term));
        assert_eq!(first.relation(&late), Relation::Ancestor, "{term}");
    }
    late = late.continued(generation(99));
    assert_eq!(first.relation(&late), Relation::Unknown);
    assert_eq!(second.relation(&late), Relation::Ancestor);
    assert!(late.is_bounded());
}

fn member(disk: DiskId) -> Member {
    Member { host: if disk == A { "a" } else { "b" }.into(), disk }
}

fn record(members: &[DiskId]) -> SetRecord {
    SetRecord {
        term: 4,
        holder: "p".into(),
        generation: generation(4),
        members: members.iter().map(|disk| member(*disk)).collect(),
    }
}

fn a_claim(holder: &str, disk: DiskId) -> Claim {
    Claim {
        term: 5,
        holder: holder.into(),
        follows: "p".into(),
        member: member(disk),
        current: generation(4),
        next: generation(5),
    }
}

#[test]
fn r7_only_an_image_in_the_set_wins_a_term_and_its_set_is_itself() {
    let both = record(&[A, B]);
    let won = claim(&both, &a_claim("s", B)).unwrap();
    assert_eq!((won.term, won.members.as_slice()), (5, [member(B)].as_slice()));
    assert_eq!(won.generation, generation(5));
    // The answer was lost: the same claim again.
    assert_eq!(claim(&won, &a_claim("s", B)), Ok(won.clone()));
    assert!(matches!(claim(&won, &a_claim("p", A)), Err(SetError::Denied { .. })));
    let syncing = claim(&record(&[A]), &a_claim("s", B));
    assert!(matches!(syncing, Err(SetError::NotInSet { .. })), "{syncing:?}");
    let stranger = Claim { follows: "x".into(), ..a_claim("s", B) };
    assert!(matches!(claim(&both, &stranger), Err(SetError::Denied { .. })));
    let late = Claim { term: 6, ..a_claim("s", B) };
    assert_eq!(claim(&both, &late), Err(SetError::Missing { term: 5 }));
}

#[test]
fn r6_only_the_holder_of_its_term_enlarges_the_set() {
    let larger = enlarge(&record(&[A]), (4, "p"), &member(B)).unwrap();
    assert_eq!(larger, record(&[A, B]));
    assert_eq!(enlarge(&larger, (4, "p"), &member(B)), Ok(larger.clone()));
    // An arbiter that reads the set before it grants the next term relies on this.
    let third = enlarge(&larger, (4, "p"), &member(C));
    assert_eq!(third, Err(SetError::Full { found: larger.clone().into() }));
    assert!(enlarge(&larger, (4, "q"), &member(B)).is_err());
    assert!(enlarge(&larger, (5, "p"), &member(B)).is_err());
}

#[test]
fn r6_a_cold_start_names_both_generations_and_the_host_to_start() {
    let begin = |sidecar: &Sidecar, force| {
        begin(Some(&record(&[A])), ("n", &member(sidecar.disk)), sidecar, generation(5), force)
    };
    let newest = sidecar(A, Lineage::new(generation(4)));
    let won = begin(&newest, None).unwrap();
    assert_eq!((won.term, won.members), (5, vec![member(A)]));
    // The term was won, and the power lost before the sidecar said so.
    let pending = Some(generation(4));
    let claimed = Sidecar { pending, ..sidecar(A, Lineage::new(generation(3))) };
    assert!(begin(&claimed, None).is_ok());
    let restored = sidecar(A, Lineage::new(generation(3)));
    assert!(matches!(begin(&restored, None), Err(SetError::OtherGeneration { .. })));
    let outdated = sidecar(B, Lineage::new(generation(3)));
    let refused = begin(&outdated, None).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the image of this host is not in the set of term 4: the image is of generation 3/00000067, the set of 4/00000068; \
         start a"
    );
    assert!(begin(&outdated, Some(4)).is_ok(), "the operator gives term 4 up");
    assert!(matches!(begin(&outdated, Some(3)), Err(SetError::OtherTerm { named: 3, .. })));
    for state in [State::Inconsistent, State::Failed] {
        let unusable = Sidecar { state, ..newest.clone() };
        assert_eq!(begin(&unusable, Some(4)), Err(SetError::Unusable { state }));
    }
    let first = super::super::set::begin(None, ("n", &member(A)), &newest, generation(1), None);
    assert_eq!(first.map(|record| record.term), Ok(1));
}

/// R6: an earlier claim of the image may be won late, so no start loses its generation. A sidecar
/// that only takes the next generation as pending is refused after a power loss.
#[test]
fn r6_a_claim_keeps_the_generation_of_one_that_may_still_be_won() {
    let fresh = sidecar(A, Lineage::new(generation(3)));
    let claimed = fresh.claiming(Some(generation(3)), generation(4));
    assert_eq!(claimed, Sidecar { pending: Some(generation(4)), ..fresh.clone() });

    // Again for the same term: the earlier claim may be carried out instead of this one.
    let other = Generation { id: 9, ..generation(4) };
    assert_eq!(claimed.claiming(Some(generation(3)), other), claimed);
    assert_eq!(claimed.claiming(None, other), claimed);

    // The record has it: it was won, and the power was lost before the sidecar said so.
    let next = claimed.claiming(Some(generation(4)), generation(5));
    let lineage = fresh.lineage.continued(generation(4));
    assert_eq!(next, Sidecar { lineage, pending: Some(generation(5)), ..fresh.clone() });
    let again = begin(Some(&record(&[A])), ("n", &member(A)), &next, generation(5), None);
    assert!(again.is_ok(), "a start that lost its power before its claim begins again: {again:?}");

    // Another side has won the term of the earlier claim.
    let late = claimed.claiming(Some(Generation { id: 8, ..generation(4) }), generation(5));
    assert_eq!(late, Sidecar { pending: Some(generation(5)), ..fresh });
    assert_eq!(claimed.won(generation(4)).claiming(None, generation(5)), next);
}

/// The slot with these bytes, and its checksum.
fn with_checksum(mut slot: Vec<u8>) -> Vec<u8> {
    slot[20..28].fill(0);
    let sum = xxhash_rust::xxh3::xxh3_64(&slot).to_le_bytes();
    slot[20..28].copy_from_slice(&sum);
    slot
}

#[test]
fn r11_a_slot_of_another_release_is_refused_also_beside_a_valid_one() {
    let mut slots = Slots::new(sidecar(A, Lineage::new(generation(1))));
    let mut disk = blank();
    for version in [2_u16, 0x0101] {
        let (at, mut bytes) = slots.next(slots.sidecar());
        slots.written(slots.sidecar().clone());
        disk[at].clone_from(&with_checksum(bytes.clone()));
        assert_eq!(read(&disk), Ok(slots.clone()));
        bytes[4..6].copy_from_slice(&version.to_le_bytes());
        let mut other = disk.clone();
        other[at] = with_checksum(bytes);
        assert_eq!(read(&other), Err(SidecarError::Version { found: version }));
    }
}

#[test]
fn r11_bytes_that_are_no_sidecar_are_no_slot() {
    let slots = Slots::new(sidecar(A, Lineage::new(generation(1))));
    let (at, mut bytes) = slots.next(slots.sidecar());
    bytes[0] = b'x';
    let mut disk = blank();
    disk[at] = with_checksum(bytes);
    assert_eq!(read(&disk), Err(SidecarError::NoValidSlot));
}

#[test]
fn r11_the_unused_bytes_of_a_slot_are_zero() {
    let small = Slots::new(sidecar(A, Lineage::new(generation(1))));
    let (_, bytes) = small.next(small.sidecar());
    let body = usize::from(u16::from_le_bytes([bytes[16], bytes[17]]));
    assert_eq!((bytes.len(), &bytes[6..8]), (SLOT, [0; 2].as_slice()));
    assert!(body > 0 && bytes[28 + body..].iter().all(|byte| *byte == 0));
}

#[test]
fn r11_a_slot_with_more_parents_than_an_image_remembers_is_not_valid() {
    let encoded = |count: usize| {
        let parents = vec![generation(1); count];
        let bytes = postcard::to_allocvec(&(generation(2), parents, true)).unwrap();
        postcard::from_bytes::<Lineage>(&bytes).unwrap()
    };
    for (count, valid) in [(MAX_PARENTS, true), (MAX_PARENTS + 1, false)] {
        let slots = Slots::new(sidecar(A, encoded(count)));
        let (at, bytes) = slots.next(slots.sidecar());
        let mut disk = blank();
        disk[at] = bytes;
        assert_eq!(read(&disk).is_ok(), valid, "{count}");
    }
}

#[test]
fn r6_a_side_that_has_forgotten_generations_does_not_know_what_an_old_image_is() {
    let first = Lineage::new(generation(1));
    let mut late = first.clone();
    for term in 2..=MAX_PARENTS as u64 + 2 {
        late = late.continued(generation(term));
    }
    assert_eq!(late.relation(&first), Relation::Unknown);
    assert_eq!(first.relation(&late), Relation::Unknown);
}

#[test]
fn r6_a_primary_that_goes_on_alone_wins_a_term_whose_set_is_itself() {
    let won = claim(&record(&[A, B]), &a_claim("p", A)).unwrap();
    let alone = SetRecord { term: 5, generation: generation(5), ..record(&[A]) };
    assert_eq!(won, alone);
}

#[test]
fn r6_a_set_names_an_image_once() {
    assert_eq!(enlarge(&record(&[A]), (4, "p"), &member(A)), Ok(record(&[A])));
}

#[test]
fn an_id_is_read_as_it_is_written_and_nothing_else_is_one() {
    let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    let id: PairId = text.parse().unwrap();
    assert_eq!(id, PairId(0x0f1e_2d3c_4b5a_6978_8796_a5b4_c3d2_e1f0));
    assert_eq!((id.to_string().as_str(), DiskId(id.0).to_string().as_str()), (text, text));
    assert_eq!(PairId(1).to_string().parse(), Ok(PairId(1)));
    for wrong in [
        "",
        "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f",
        "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1fg",
        "+f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "0f1e2d3-c4b5a-6978-8796-a5b4c3d2e1f0",
        "00000000-0000-0000-0000-000000000000",
    ] {
        assert_eq!(wrong.parse::<PairId>(), Err(IdError), "{wrong}");
    }
}

#[test]
fn r6_a_lineage_names_its_parents_the_newest_first() {
    let lineage = Lineage::new(generation(1)).continued(generation(2)).continued(generation(3));
    assert_eq!(lineage.parents(), [generation(2), generation(1)]);
}

#[test]
fn r11_each_version_of_a_sidecar_has_the_next_number() {
    let mut slots = Slots::new(sidecar(A, Lineage::new(generation(1))));
    for number in 1..4 {
        let (at, bytes) = slots.next(slots.sidecar());
        slots.written(slots.sidecar().clone());
        let mut disk = blank();
        disk[at] = bytes;
        assert_eq!((slots.number(), read(&disk).unwrap().number()), (number, number));
    }
}
