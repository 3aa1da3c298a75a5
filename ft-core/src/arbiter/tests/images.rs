//! Terms of machines with own disks: claim, start and enlargement, each a compare-and-swap (R6,
//! R7).

use alloc::boxed::Box;

use super::*;
use crate::disks::set::{Member, SetError, SetRecord};
use crate::disks::{DiskId, Generation, ImageIdentity, Lineage, PairId, Seq, Sidecar, State};

fn member(host: &str) -> Member {
    Member { host: host.into(), disk: DiskId(host.len() as u128) }
}

fn generation(term: u64) -> Generation {
    Generation { term, id: u128::from(term) << 100 }
}

fn sidecar(term: u64) -> Sidecar {
    Sidecar {
        pair: PairId(1),
        disk: DiskId(1),
        lineage: Lineage::new(generation(term)),
        pending: None,
        durable: Seq(0),
        state: State::Whole,
        peer: None,
        image: ImageIdentity { inode: 1, filesystem: 1, size: 1 },
    }
}

fn start(term: u64) -> ImageStart {
    let (sidecar, next) = (sidecar(term - 1), generation(term));
    ImageStart { member: member("a"), sidecar, next, seize: false, force: None }
}

fn begin_image(start: ImageStart) -> Request {
    Request::BeginImage(Box::new(start))
}

fn claim_image(host: &str, term: u64) -> Request {
    let (current, next) = (generation(term - 1), generation(term));
    let claim = ImageClaim { member: member(host), current, next };
    Request::ClaimImage { claim, why: "test".to_string() }
}

fn enlarge(term: u64, host: &str) -> Request {
    Request::Enlarge { term: Term(term), member: member(host) }
}

fn set(term: u64, holder: &str, hosts: &[&str]) -> SetRecord {
    let members = hosts.iter().map(|host| member(host)).collect();
    SetRecord { term, holder: holder.into(), generation: generation(term), members }
}

fn recorded(term: u64, holder: &str, hosts: &[&str]) -> Result<Success, ClientError<()>> {
    Ok(Success::Recorded(set(term, holder, hosts)))
}

/// A machine of "a" in term 1 whose standby "bb" is in the set.
fn pair() -> (Register, Client, Client) {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    let begun = register.grant(&mut a, at(0), begin_image(start(1)));
    assert_eq!(begun, recorded(1, "a", &["a"]));
    assert_eq!(register.grant(&mut a, at(10), enlarge(1, "bb")), recorded(1, "a", &["a", "bb"]));
    b.follow(Term(1), "a");
    (register, a, b)
}

#[test]
fn r7_a_claim_needs_a_set_that_names_the_image() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin_image(start(1))).unwrap();
    b.follow(Term(1), "a");
    let found = Box::new(set(1, "a", &["a"]));
    let refused = SetError::NotInSet { ours: generation(1), found };
    let before = register.record.clone();
    assert_eq!(register.grant(&mut b, at(10), claim_image("bb", 2)), Ok(Success::Refused(refused)));
    assert_eq!(register.record, before);
    register.grant(&mut a, at(20), enlarge(1, "bb")).unwrap();
    assert_eq!(register.grant(&mut b, at(30), claim_image("bb", 2)), recorded(2, "b", &["bb"]));
    assert_eq!(b.lease().begins(), at(30 + LEASE), "the enlargement was a renewal");
}

/// R7: a process that follows no primary has no image that the set could name.
#[test]
fn r7_a_claim_needs_the_followed_primary_to_hold_the_term() {
    let (mut register, mut a, _) = pair();
    let mut stranger = client("s");
    let answer = register.grant(&mut stranger, at(20), claim_image("bb", 2));
    assert!(matches!(answer, Ok(Success::Refused(SetError::Denied { .. }))), "{answer:?}");
    // The primary itself: its set is itself from then on.
    assert_eq!(register.grant(&mut a, at(30), claim_image("a", 2)), recorded(2, "a", &["a"]));
    assert_eq!(a.lease().ask(at(31)), Right::Held);
}

/// R6: the answer to an enlargement is lost. The renewal that follows finds it, and so does the
/// same question.
#[test]
fn r6_an_enlargement_whose_answer_is_lost_is_found() {
    for by_renewal in [true, false] {
        let (mut register, mut a) = (Register::default(), client("a"));
        register.grant(&mut a, at(0), begin_image(start(1))).unwrap();
        a.request(enlarge(1, "bb")).unwrap();
        let look = a.next(at(10)).unwrap();
        let reply = register.answer(look);
        assert_eq!(a.reply(at(10), reply), Ok(None));
        register.answer(a.next(at(10)).unwrap());
        let failed = a.reply(at(20), Reply::Failed(()));
        assert_eq!(failed, Ok(Some(Completion::Request(Err(ClientError::Failed(()))))));
        if by_renewal {
            assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
            assert_eq!(a.lost(), None);
        }
        let again = register.grant(&mut a, at(210), enlarge(1, "bb"));
        assert_eq!(again, recorded(1, "a", &["a", "bb"]));
        assert_eq!(a.lease().ask(at(211)), Right::Held);
        assert_eq!(register.serve(&mut a, at(450)), Some(Completion::Renewal(Ok(()))));
        assert_eq!(a.lease().ask(at(450 + 699)), Right::Held);
    }
}

/// R6: a register that went back to the time before an enlargement grants nothing, although its
/// term and holder are those of this process.
#[test]
fn r6_an_enlargement_that_is_undone_is_noticed() {
    let (mut register, mut a) = (Register::default(), client("a"));
    register.grant(&mut a, at(0), begin_image(start(1))).unwrap();
    let before = register.record.clone();
    register.grant(&mut a, at(10), enlarge(1, "bb")).unwrap();
    register.record = before;
    let undone = Err(ClientError::WentBack { term: 1 });
    assert_eq!(register.serve(&mut a, at(500)), Some(Completion::Renewal(undone)));
}

#[test]
fn r6_an_enlargement_needs_the_term() {
    let (mut register, mut a, mut b) = pair();
    let full = register.grant(&mut a, at(20), enlarge(1, "ccc"));
    assert!(matches!(full, Ok(Success::Refused(SetError::Full { .. }))), "{full:?}");
    assert!(matches!(register.grant(&mut b, at(20), enlarge(1, "bb")), Ok(Success::Denied(_))));
    let missing = register.grant(&mut a, at(30), enlarge(2, "bb"));
    assert!(matches!(missing, Err(ClientError::Missing { expected: 2, .. })), "{missing:?}");
    register.grant(&mut b, at(40), claim_image("bb", 2)).unwrap();
    let late = register.grant(&mut a, at(50), enlarge(1, "bb"));
    assert!(matches!(late, Ok(Success::Denied(record)) if record.holder == "b"));
    b.request(Request::End { term: Term(2) }).unwrap();
    assert!(register.serve(&mut b, at(60)).is_some());
    assert!(matches!(register.grant(&mut b, at(70), enlarge(2, "a")), Ok(Success::Denied(_))));
}

/// R6, R7: a claim or a start whose answer was lost is granted again, with the generation of then.
#[test]
fn r6_a_term_that_was_won_and_not_heard_of_is_told_with_its_generation() {
    let (mut register, _, mut b) = pair();
    register.grant(&mut b, at(20), claim_image("bb", 2)).unwrap();
    let mut deaf = client("b");
    deaf.follow(Term(1), "a");
    let claim = ImageClaim {
        member: member("bb"),
        current: generation(1),
        next: Generation { id: 9, ..generation(2) },
    };
    let request = Request::ClaimImage { claim, why: "test".to_string() };
    assert_eq!(register.grant(&mut deaf, at(30), request), recorded(2, "b", &["bb"]));
    let mut deaf = client("b");
    let begin = begin_image(ImageStart { seize: true, ..start(3) });
    assert_eq!(register.grant(&mut deaf, at(40), begin), recorded(2, "b", &["bb"]));
}

/// R6: a machine whose record has a set is continued by no process without own disks, and one
/// whose record has none by no process with them.
#[test]
fn r6_terms_with_a_set_and_without_do_not_follow_each_other() {
    let (mut register, mut a, mut b) = pair();
    for seize in [true, false] {
        let answer = register.grant(&mut b, at(20), Request::Begin { seize });
        match (seize, answer) {
            (true, Ok(Success::Refused(SetError::OwnDisks { .. }))) => {}
            (false, Ok(Success::Taken(_))) => {}
            (_, answer) => panic!("{answer:?}"),
        }
    }
    let answer = register.grant(&mut b, at(30), claim(2));
    assert!(matches!(answer, Ok(Success::Refused(SetError::OwnDisks { .. }))), "{answer:?}");
    assert!(matches!(register.grant(&mut a, at(40), claim(1)), Ok(Success::Denied(_))));

    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    b.follow(Term(1), "a");
    for (client, request) in [(&mut b, claim_image("bb", 2)), (&mut a, claim_image("a", 2))] {
        let answer = register.grant(client, at(10), request);
        let expected = SetError::Forgotten { ours: generation(1), last: 1 };
        assert_eq!(answer, Ok(Success::Refused(expected)));
    }
    assert!(matches!(register.grant(&mut a, at(20), claim_image("a", 1)), Ok(Success::Denied(_))));
    let answer = register.grant(&mut a, at(20), enlarge(1, "bb"));
    assert_eq!(answer, Ok(Success::Refused(SetError::Missing { term: 1 })));
}

/// R6: a start needs what a start needs without own disks, and an image that the set names.
#[test]
fn r6_a_start_is_refused_unless_its_image_is_the_newest() {
    let (mut register, ..) = pair();
    let mut next = client("n");
    let mut ask = |request| register.grant(&mut next, at(20), begin_image(request));
    assert!(matches!(ask(start(2)), Ok(Success::Taken(_))), "a runs it");
    let seizes = ImageStart { seize: true, ..start(2) };
    let other = ImageStart { member: member("ccc"), ..seizes.clone() };
    let found = Box::new(set(1, "a", &["a", "bb"]));
    let refused = SetError::NotInSet { ours: generation(1), found };
    assert_eq!(ask(other.clone()), Ok(Success::Refused(refused)));
    let restored = ImageStart { sidecar: sidecar(0), ..seizes.clone() };
    let answer = ask(restored);
    assert!(matches!(answer, Ok(Success::Refused(SetError::OtherGeneration { .. }))), "{answer:?}");
    let moved = SetError::Moved { last: 1, next: generation(3) };
    assert_eq!(
        ask(ImageStart { seize: true, ..start(3) }),
        Ok(Success::Refused(moved)),
        "it has seen another last term"
    );
    let named = ask(ImageStart { force: Some(7), ..other.clone() });
    assert!(matches!(named, Ok(Success::Refused(SetError::OtherTerm { named: 7, .. }))));
    let forced = ask(ImageStart { force: Some(1), ..other });
    assert_eq!(forced, recorded(2, "n", &["ccc"]));
}

/// R6: the arbiter has lost the set, or is another one: what an image has had a peer for is not
/// known. A machine that had no own disks may begin to have them.
#[test]
fn r6_an_image_that_had_a_peer_needs_a_set_or_the_operator() {
    let with_peer = |start: ImageStart| {
        let sidecar = Sidecar { peer: Some(DiskId(2)), ..start.sidecar.clone() };
        ImageStart { sidecar, ..start }
    };
    for ended in [None, Some(4)] {
        let (mut register, mut next) = (Register::default(), client("n"));
        if let Some(term) = ended {
            table::set(&mut register, "a", term, true);
        }
        let last = ended.unwrap_or(0);
        let begins = with_peer(start(last + 1));
        let ours = begins.sidecar.lineage.current();
        let answer = register.grant(&mut next, at(0), begin_image(begins.clone()));
        assert_eq!(answer, Ok(Success::Refused(SetError::Forgotten { ours, last })));
        let unusable = Sidecar { state: State::Failed, ..begins.sidecar.clone() };
        let unusable = ImageStart { sidecar: unusable, force: Some(last), ..begins.clone() };
        let answer = register.grant(&mut next, at(0), begin_image(unusable));
        let expected = SetError::Unusable { state: State::Failed };
        assert_eq!(answer, Ok(Success::Refused(expected)));
        let moved = ImageStart { next: generation(last + 2), ..start(last + 1) };
        let answer = register.grant(&mut next, at(0), begin_image(moved));
        let expected = SetError::Moved { last, next: generation(last + 2) };
        assert_eq!(answer, Ok(Success::Refused(expected)));
        let begins = match ended {
            Some(last) => ImageStart { force: Some(last), ..begins },
            None => start(1),
        };
        let answer = register.grant(&mut next, at(0), begin_image(begins));
        assert_eq!(answer, recorded(last + 1, "n", &["a"]));
    }
}
