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
fn r6_the_set_is_enlarged_only_by_who_holds_its_term() {
    let larger = enlarge(&record(&[A]), (4, "p"), &member(B)).unwrap();
    assert_eq!(larger, record(&[A, B]));
    assert_eq!(enlarge(&larger, (4, "p"), &member(B)), Ok(larger.clone()));
    assert_eq!(enlarge(&larger, (4, "p"), &member(C)).unwrap().members.len(), 2);
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
        "the image of this host is not in the set of term 4: it is of generation 3/00000067, the set of 4/00000068; \
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
