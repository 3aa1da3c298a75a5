//! The set of a machine with own disks at the arbiters `file:` and `etcd:`: one suite for both,
//! with a real etcd server.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Barrier;
use std::time::{Duration, Instant};

use ft_core::disks::set::{Member, SetError, SetRecord};
use ft_core::disks::{DiskId, Generation, ImageIdentity, Lineage, PairId, Seq, Sidecar, State};
use io_gate::host::Term;
use kemari_arbiter::{
    ArbiterError, FileArbiter, ImageClaim, ImageStart, SetArbiter, SetVerdict, Verdict,
};

/// Upper bound for an answer, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Open<'a> = &'a dyn Fn(&str) -> Box<dyn SetArbiter>;

/// Runs a case at each kind of arbiter, with data of its own.
fn at_each(case: impl Fn(Open<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    case(&|holder| Box::new(FileArbiter::open(dir.path(), "vm", holder.to_owned()).unwrap()));
    #[cfg(feature = "etcd")]
    {
        let server = etcd::server();
        case(&|holder| Box::new(etcd::open(server.etcd.address(), holder)));
    }
}

/// Repeats a question until the arbiter answers. A refused start is an answer.
fn ask(
    question: impl Fn() -> Result<SetVerdict, ArbiterError>,
) -> Result<SetVerdict, ArbiterError> {
    let begun = Instant::now();
    loop {
        match question() {
            Err(ArbiterError::Etcd { problem, .. }) => {
                assert!(begun.elapsed() < PATIENCE, "{problem}");
            }
            answer => return answer,
        }
    }
}

fn member(host: &str) -> Member {
    let id = host.bytes().fold(u128::MAX, |id, byte| id << 8 | u128::from(byte));
    Member { host: host.to_owned(), disk: DiskId(id) }
}

fn generation(term: u64) -> Generation {
    Generation { term, id: u128::MAX - u128::from(term) }
}

fn set(term: u64, holder: &str, hosts: &[&str]) -> SetRecord {
    let members = hosts.iter().map(|host| member(host)).collect();
    SetRecord { term, holder: holder.to_owned(), generation: generation(term), members }
}

fn image(host: &str, term: u64) -> Sidecar {
    Sidecar {
        pair: PairId(1),
        disk: member(host).disk,
        lineage: Lineage::new(generation(term)),
        pending: None,
        durable: Seq(0),
        state: State::Whole,
        peer: None,
        image: ImageIdentity { inode: 1, filesystem: 1, size: 1 },
    }
}

fn start(host: &str, term: u64) -> ImageStart {
    ImageStart {
        member: member(host),
        sidecar: image(host, term - 1),
        next: generation(term),
        seize: false,
        force: None,
    }
}

fn begin(arbiter: &dyn SetArbiter, start: &ImageStart) -> Result<SetVerdict, ArbiterError> {
    ask(|| arbiter.begin_image(start))
}

fn claim(arbiter: &dyn SetArbiter, host: &str, term: u64) -> SetVerdict {
    let (current, next) = (generation(term - 1), generation(term));
    let claim = ImageClaim { member: member(host), current, next };
    ask(|| arbiter.claim_image(&claim, "a test")).unwrap()
}

fn enlarge(arbiter: &dyn SetArbiter, term: u64, host: &str) -> SetVerdict {
    ask(|| arbiter.enlarge(Term(term), &member(host))).unwrap()
}

fn recorded(term: u64, holder: &str, hosts: &[&str]) -> SetVerdict {
    SetVerdict::Recorded(set(term, holder, hosts))
}

/// A machine of process p on host a, in term 1.
fn begun(open: Open<'_>) -> Box<dyn SetArbiter> {
    let primary = open("p");
    assert_eq!(primary.next_term().unwrap(), Term(1));
    assert_eq!(begin(&*primary, &start("a", 1)).unwrap(), recorded(1, "p", &["a"]));
    assert_eq!(primary.next_term().unwrap(), Term(2));
    primary
}

/// Its standby s on host b, in the set.
fn pair(open: Open<'_>) -> (Box<dyn SetArbiter>, Box<dyn SetArbiter>) {
    let (primary, standby) = (begun(open), open("s"));
    standby.follow(Term(1), "p");
    assert_eq!(enlarge(&*primary, 1, "b"), recorded(1, "p", &["a", "b"]));
    (primary, standby)
}

/// R7: the refusal names both generations and the host to start.
#[test]
fn r7_a_claim_is_refused_unless_the_set_names_the_image() {
    at_each(|open| {
        let (primary, standby) = (begun(open), open("s"));
        standby.follow(Term(1), "p");
        let SetVerdict::Refused(refused) = claim(&*standby, "b", 2) else { panic!("it is won") };
        let found = Box::new(set(1, "p", &["a"]));
        assert_eq!(refused, SetError::NotInSet { ours: generation(1), found });
        let ours = generation(1).to_string();
        assert!(refused.to_string().ends_with(&format!("the set of {ours}; start a")), "{refused}");
        assert_eq!(primary.next_term().unwrap(), Term(2), "nothing is won");
        enlarge(&*primary, 1, "b");
        assert_eq!(claim(&*standby, "b", 2), recorded(2, "s", &["b"]));
        assert!(
            matches!(claim(&*primary, "a", 2), SetVerdict::Denied(record) if record.holder == "s")
        );
    });
}

/// R7: the set names the image, and the claimant has not followed the holder.
#[test]
fn r7_a_claim_is_refused_unless_its_primary_holds_the_term() {
    at_each(|open| {
        let (_primary, _) = pair(open);
        let answer = claim(&*open("x"), "b", 2);
        assert!(matches!(answer, SetVerdict::Refused(SetError::Denied { .. })), "{answer:?}");
        let other = open("y");
        other.follow(Term(1), "q");
        let claims =
            ImageClaim { member: member("b"), current: generation(1), next: generation(2) };
        assert!(other.claim_image(&claims, "a test").is_err(), "its primary held term 1");
    });
}

/// R6: a primary goes on alone in a term whose set is itself, and its standby is out.
#[test]
fn r6_a_term_that_the_primary_wins_has_a_set_of_itself() {
    at_each(|open| {
        let (primary, standby) = pair(open);
        assert_eq!(claim(&*primary, "a", 2), recorded(2, "p", &["a"]));
        standby.follow(Term(2), "p");
        let answer = claim(&*standby, "b", 3);
        assert!(matches!(answer, SetVerdict::Refused(SetError::NotInSet { .. })), "{answer:?}");
        // It joins again.
        assert_eq!(enlarge(&*primary, 2, "b"), recorded(2, "p", &["a", "b"]));
        assert_eq!(claim(&*standby, "b", 3), recorded(3, "s", &["b"]));
    });
}

#[test]
fn r6_a_set_is_enlarged_once_by_the_holder_of_its_term() {
    at_each(|open| {
        let (primary, standby) = pair(open);
        assert_eq!(
            enlarge(&*primary, 1, "b"),
            recorded(1, "p", &["a", "b"]),
            "it was this process"
        );
        let full = SetError::Full { found: Box::new(set(1, "p", &["a", "b"])) };
        assert_eq!(enlarge(&*primary, 1, "c"), SetVerdict::Refused(full));
        assert!(
            matches!(enlarge(&*standby, 1, "b"), SetVerdict::Denied(record) if record.holder == "p")
        );
        assert!(primary.enlarge(Term(2), &member("b")).is_err(), "no such term");
        claim(&*standby, "b", 2);
        assert!(
            matches!(enlarge(&*primary, 1, "b"), SetVerdict::Denied(record) if record.holder == "s")
        );
        standby.end(Term(2)).unwrap();
        assert!(matches!(enlarge(&*standby, 2, "a"), SetVerdict::Denied(_)), "it has ended");
    });
}

/// R6: what was carried out is recorded once; a process that did not hear of it asks again. Fails
/// if the second answer has the generation of the second question.
#[test]
fn r6_a_question_whose_answer_is_lost_is_asked_again() {
    at_each(|open| {
        let (_primary, standby) = pair(open);
        assert_eq!(claim(&*standby, "b", 2), recorded(2, "s", &["b"]));
        let deaf = open("s");
        deaf.follow(Term(1), "p");
        let next = Generation { id: 7, ..generation(2) };
        let claims = ImageClaim { member: member("b"), current: generation(1), next };
        let answer = ask(|| deaf.claim_image(&claims, "a test")).unwrap();
        assert_eq!(answer, recorded(2, "s", &["b"]));
        standby.end(Term(2)).unwrap();
        let first = open("n");
        assert_eq!(begin(&*first, &start("b", 3)).unwrap(), recorded(3, "n", &["b"]));
        let next = Generation { id: 7, ..generation(4) };
        let again = ImageStart { next, ..start("b", 4) };
        assert_eq!(begin(&*open("n"), &again).unwrap(), recorded(3, "n", &["b"]));
    });
}

#[test]
fn r6_a_start_needs_the_newest_image_or_the_term_that_it_gives_up() {
    at_each(|open| {
        let (primary, _standby) = pair(open);
        let next = open("n");
        let refused = |start: &ImageStart| match begin(&*next, start) {
            Ok(SetVerdict::Refused(refused)) => refused,
            answer => panic!("{answer:?}"),
        };
        let taken = begin(&*next, &start("a", 2));
        assert!(matches!(taken, Err(ArbiterError::Taken { .. })), "{taken:?}");
        primary.end(Term(1)).unwrap();
        let outside = start("c", 2);
        let text = refused(&outside).to_string();
        assert!(
            text.contains("not in the set of term 1") && text.ends_with("start a or b"),
            "{text}"
        );
        let restored = ImageStart { sidecar: image("b", 0), ..start("b", 2) };
        assert!(matches!(refused(&restored), SetError::OtherGeneration { .. }));
        for state in [State::Failed, State::Inconsistent] {
            let sidecar = Sidecar { state, ..image("b", 1) };
            let unusable = ImageStart { sidecar, force: Some(1), ..start("b", 2) };
            assert_eq!(refused(&unusable), SetError::Unusable { state });
        }
        let moved = SetError::Moved { last: 1, next: generation(3) };
        assert_eq!(refused(&ImageStart { sidecar: image("b", 1), ..start("b", 3) }), moved);
        let other = ImageStart { force: Some(2), ..outside.clone() };
        assert!(matches!(refused(&other), SetError::OtherTerm { named: 2, .. }));
        assert_eq!(next.next_term().unwrap(), Term(2), "nothing is won");

        // The power was lost before the sidecar had the generation of the term.
        let claimed = Sidecar { pending: Some(generation(1)), ..image("b", 0) };
        let pending = ImageStart { sidecar: claimed, ..start("b", 2) };
        assert_eq!(begin(&*next, &pending).unwrap(), recorded(2, "n", &["b"]));
        let forced = ImageStart { seize: true, force: Some(2), ..start("c", 3) };
        assert_eq!(begin(&*open("f"), &forced).unwrap(), recorded(3, "f", &["c"]));
    });
}

/// R6: an arbiter without a set says nothing about an image that has been in one.
#[test]
fn r6_an_image_that_had_a_peer_needs_a_set_or_the_operator() {
    at_each(|open| {
        let (shared, next) = (open("shared"), open("n"));
        let peer = Some(member("b").disk);
        let had = |term, force| {
            let sidecar = Sidecar { peer, ..image("a", term - 1) };
            ImageStart { sidecar, force, ..start("a", term) }
        };
        for term in [1, 2] {
            let forgotten = SetError::Forgotten { ours: generation(term - 1), last: term - 1 };
            let answer = begin(&*next, &had(term, None)).unwrap();
            assert_eq!(answer, SetVerdict::Refused(forgotten));
            if term == 1 {
                assert_eq!(shared.begin(false).unwrap(), Term(1));
                shared.end(Term(1)).unwrap();
            }
        }
        assert_eq!(begin(&*next, &had(2, Some(1))).unwrap(), recorded(2, "n", &["a"]));
    });
}

/// R7: fails if a machine that shares its disks could follow on one that has its own, or the other
/// way round.
#[test]
fn r7_a_machine_without_own_disks_claims_nothing_over_a_set() {
    at_each(|open| {
        let (_primary, standby) = pair(open);
        let refusal = standby.claim(Term(2), "a test").unwrap_err().to_string();
        assert!(refusal.contains("machine with own disks"), "{refusal}");
        let refusal = standby.begin(true).unwrap_err().to_string();
        assert!(refusal.contains("`vm`") && refusal.contains("start a or b with its"), "{refusal}");
        assert!(matches!(standby.begin(false), Err(ArbiterError::Taken { .. })));
        assert_eq!(standby.next_term().unwrap(), Term(2), "nothing is won");
        assert_eq!(claim(&*standby, "b", 2), recorded(2, "s", &["b"]));
    });
    at_each(|open| {
        let (shared, standby) = (open("p"), open("s"));
        shared.begin(false).unwrap();
        standby.follow(Term(1), "p");
        let forgotten = SetError::Forgotten { ours: generation(1), last: 1 };
        assert_eq!(claim(&*standby, "b", 2), SetVerdict::Refused(forgotten));
        let none = SetError::Missing { term: 1 };
        assert_eq!(enlarge(&*shared, 1, "b"), SetVerdict::Refused(none));
        assert_eq!(standby.claim(Term(2), "a test").unwrap(), Verdict::Granted);
    });
}

/// R6: the set is enlarged, the standby claims, and an operator forces a start, all at once. One
/// process wins the next term. The standby only if the set was enlarged before.
#[test]
fn r6_of_an_enlargement_a_claim_and_a_start_at_once_one_wins_the_term() {
    at_each(|open| {
        let mut term = 1;
        begun(open).end(Term(1)).unwrap();
        for round in 0..8 {
            let (p, s, f) = (format!("p{round}"), format!("s{round}"), format!("f{round}"));
            let (primary, standby, operator) = (open(&p), open(&s), open(&f));
            term = primary.next_term().unwrap().0;
            let begins = ImageStart { force: Some(term - 1), ..start("a", term) };
            assert_eq!(begin(&*primary, &begins).unwrap(), recorded(term, &p, &["a"]));
            standby.follow(Term(term), &p);
            let barrier = Barrier::new(3);
            let (enlarged, claimed, forced) = std::thread::scope(|scope| {
                let enlarged = scope.spawn(|| {
                    barrier.wait();
                    enlarge(&*primary, term, "b")
                });
                let claimed = scope.spawn(|| {
                    barrier.wait();
                    claim(&*standby, "b", term + 1)
                });
                barrier.wait();
                let force = ImageStart { seize: true, force: Some(term), ..start("a", term + 1) };
                let forced = begin(&*operator, &force);
                (enlarged.join().unwrap(), claimed.join().unwrap(), forced)
            });
            let wins = |answer: &SetVerdict| matches!(answer, SetVerdict::Recorded(_));
            let forced = matches!(&forced, Ok(answer) if wins(answer));
            assert!(forced != wins(&claimed), "{enlarged:?} {claimed:?} {forced:?}");
            assert!(wins(&enlarged) || matches!(enlarged, SetVerdict::Denied(_)), "{enlarged:?}");
            let winner = if forced { operator } else { standby };
            winner.end(Term(term + 1)).unwrap();
        }
        assert!(term >= 16);
    });
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::net::SocketAddr;

    use kemari_arbiter::{Arbiter as _, EtcdArbiter, EtcdOptions};
    use kemari_testbed::etcd::Etcd;
    use kemari_testbed::network::Relay;
    use tempfile::TempDir;

    use super::*;

    /// A question waits for half of the lease: an etcd on a busy machine answers within that time.
    const LEASE: Duration = Duration::from_secs(4);

    pub(super) struct Server {
        pub(super) etcd: Etcd,
        _dir: TempDir,
    }

    pub(super) fn server() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path(), None).unwrap();
        Server { etcd, _dir: dir }
    }

    pub(super) fn open(address: SocketAddr, holder: &str) -> EtcdArbiter {
        let options = EtcdOptions {
            endpoints: vec![address.to_string()],
            ca: None,
            identity: None,
            user: None,
            lease: LEASE,
        };
        EtcdArbiter::open(options, "vm", holder.to_owned()).unwrap()
    }

    /// R6: each question is carried out, and its answer comes too late.
    #[test]
    fn r6_answers_that_are_lost_are_found_by_the_same_question() {
        let server = server();
        let relay = Relay::to(server.etcd.address()).unwrap();
        let (primary, standby) = (open(relay.address(), "p"), open(relay.address(), "s"));
        let lost = |question: &dyn Fn() -> Result<SetVerdict, ArbiterError>| {
            relay.set_delay(LEASE);
            let answer = question();
            assert!(matches!(answer, Err(ArbiterError::Etcd { .. })), "{answer:?}");
            relay.set_delay(Duration::ZERO);
            ask(question).unwrap()
        };
        begin(&primary, &start("a", 1)).unwrap();
        let enlarges = || primary.enlarge(Term(1), &member("b"));
        assert_eq!(lost(&enlarges), recorded(1, "p", &["a", "b"]));
        standby.follow(Term(1), "p");
        let claims =
            ImageClaim { member: member("b"), current: generation(1), next: generation(2) };
        let claim = || standby.claim_image(&claims, "a test");
        assert_eq!(lost(&claim), recorded(2, "s", &["b"]));
    }
}
