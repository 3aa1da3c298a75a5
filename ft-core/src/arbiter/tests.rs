//! The client with a register that answers as the test sets it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod images;
mod table;

use super::*;
use crate::Time;
use alloc::string::ToString;
use core::time::Duration;
use io_gate::host::Term;

const MS: u64 = 1_000_000;
const LEASE: u64 = 800;

fn at(millis: u64) -> Time {
    Time(millis * MS)
}

fn client(holder: &str) -> Client {
    let lease = Duration::from_millis(LEASE);
    let options = ClientOptions {
        vm: "vm".into(),
        holder: holder.into(),
        lease,
        interval: lease / 4,
        retry: lease / 8,
    };
    Client::new(options, at(0))
}

/// Behaves like etcd.
#[derive(Default)]
struct Register {
    record: Option<Written>,
    renewal: i64,
}

impl Register {
    fn answer(&mut self, question: Question) -> Reply<()> {
        match question {
            Question::Look => {
                Reply::Looked(Snapshot { term: self.record.clone(), renewal: self.renewal })
            }
            Question::Replace { seen, new } => {
                if seen.term != self.record || seen.renewal != self.renewal {
                    return Reply::Replaced(None);
                }
                self.renewal += 1;
                let value = alloc::format!("{new:?}").into_bytes();
                self.record = Some(Written { held: new, value });
                Reply::Replaced(self.record.clone())
            }
            Question::Renew(mine) if self.record.as_ref() == Some(&mine) => {
                self.renewal += 1;
                Reply::Renewed
            }
            Question::Renew(_) => Reply::Found(self.record.clone()),
        }
    }

    /// Answers questions until there is a result.
    fn serve(&mut self, client: &mut Client, now: Time) -> Option<Completion<()>> {
        while let Some(question) = client.next(now) {
            let reply = self.answer(question);
            if let Some(completion) = client.reply(now, reply).unwrap() {
                return Some(completion);
            }
        }
        None
    }

    fn grant(
        &mut self,
        client: &mut Client,
        now: Time,
        request: Request,
    ) -> Result<Success, ClientError<()>> {
        client.request(request).unwrap();
        loop {
            match self.serve(client, now) {
                Some(Completion::Request(result)) => return result,
                Some(Completion::Renewal(result)) => result.unwrap(),
                None => panic!("the request was forgotten"),
            }
        }
    }
}

fn claim(term: u64) -> Request {
    Request::Claim { term: Term(term), why: "test".to_string() }
}

fn begin() -> Request {
    Request::Begin { seize: false }
}

#[test]
fn p2_a_term_is_won_once_and_the_winner_waits_for_the_former_lease() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    assert_eq!(register.grant(&mut a, at(0), begin()), Ok(Success::Began(Term(1))));
    assert_eq!(a.lease().ask(at(1)), Right::Held);
    assert!(matches!(register.grant(&mut b, at(10), begin()), Ok(Success::Taken(_))));
    // Both want the next term; b has seen the renewal since 10.
    assert_eq!(register.grant(&mut b, at(50), claim(2)), Ok(Success::Granted));
    assert!(matches!(register.grant(&mut a, at(60), claim(2)), Ok(Success::Denied(record))
        if record.holder == "b"));
    assert_eq!(b.lease().ask(at(10 + LEASE - 1)), Right::Lapsed);
    assert_eq!(b.lease().begins(), at(10 + LEASE));
    // The former holder learns of it when its renewal is due, and at the latest when its lease
    // ends.
    assert_eq!(a.lease().ask(at(LEASE - LEASE / 8)), Right::Lapsed);
    assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
    assert_eq!((a.lease().ask(at(201)), a.lost()), (Right::Lost, Some("term 2 is held by b")));
    assert_eq!((a.term(), b.term()), (1, 2));
}

#[test]
fn its_own_next_term_is_won_without_a_gap() {
    let (mut register, mut a) = (Register::default(), client("a"));
    register.grant(&mut a, at(0), begin()).unwrap();
    register.grant(&mut a, at(100), claim(2)).unwrap();
    assert_eq!(a.lease().ask(at(101)), Right::Held);
    assert_eq!(a.lease().begins(), at(0));
}

/// P2: a renewal counts from when it was sent, whenever its answer comes.
#[test]
fn p2_a_renewal_counts_from_sending() {
    let (mut register, mut a) = (Register::default(), client("a"));
    register.grant(&mut a, at(0), begin()).unwrap();
    assert_eq!(a.next_deadline(), at(200));
    assert_eq!(a.next(at(199)), None);
    let question = a.next(at(200)).unwrap();
    assert_eq!(a.next(at(201)), None, "one question at a time");
    let reply = register.answer(question);
    assert_eq!(a.reply(at(650), reply), Ok(Some(Completion::Renewal(Ok(())))));
    assert_eq!(a.lease().ask(at(200 + 699)), Right::Held);
    assert_eq!(a.lease().ask(at(200 + 700)), Right::Lapsed);
    // Late: the next is due at once. It fails, and is tried again soon.
    assert_eq!(a.next_deadline(), at(400));
    a.next(at(650)).unwrap();
    assert_eq!(
        a.reply(at(700), Reply::Failed(())),
        Ok(Some(Completion::Renewal(Err(ClientError::Failed(())))))
    );
    assert_eq!(a.next_deadline(), at(800));
}

/// A claim that was carried out, and whose answer was lost, is found by the next renewal or claim.
#[test]
fn a_lost_answer_is_found_again() {
    for again in [false, true] {
        let (mut register, mut a) = (Register::default(), client("a"));
        register.grant(&mut a, at(0), begin()).unwrap();
        a.request(claim(2)).unwrap();
        for _ in 0..2 {
            let question = a.next(at(10)).unwrap();
            let reply = register.answer(question.clone());
            let lost = matches!(question, Question::Replace { .. });
            let completion = a.reply(at(20), if lost { Reply::Failed(()) } else { reply }).unwrap();
            assert_eq!(completion.is_some(), lost);
        }
        assert_eq!(a.term(), 1);
        if again {
            assert_eq!(register.grant(&mut a, at(30), claim(2)), Ok(Success::Granted));
        } else {
            assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
        }
        assert_eq!((a.term(), a.lost()), (2, None));
        assert_eq!(a.lease().begins(), at(0), "nobody else has performed meanwhile");
    }
}

/// P2: a new holder does not know when its lost claim was won, so it waits a whole lease from when
/// it finds out.
#[test]
fn p2_a_stranger_that_finds_that_it_has_won_waits() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    b.request(claim(2)).unwrap();
    let mut completion = None;
    while completion.is_none() {
        let question = b.next(at(10)).unwrap();
        let reply = register.answer(question.clone());
        let lost = matches!(question, Question::Replace { .. });
        completion = b.reply(at(10), if lost { Reply::Failed(()) } else { reply }).unwrap();
    }
    assert_eq!(register.grant(&mut b, at(100), claim(2)), Ok(Success::Granted));
    assert_eq!(b.lease().begins(), at(100 + LEASE));
}

#[test]
fn a_claim_that_meets_a_renewal_is_made_again_and_not_for_ever() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    b.request(claim(2)).unwrap();
    let mut rounds = 0;
    let completion = loop {
        let question = b.next(at(1)).unwrap();
        let renewed = register.renewal + 1;
        if matches!(question, Question::Replace { .. }) {
            register.renewal = renewed;
            rounds += 1;
        }
        let reply = register.answer(question);
        if let Some(completion) = b.reply(at(1), reply).unwrap() {
            break completion;
        }
    };
    assert_eq!((completion, rounds), (Completion::Request(Err(ClientError::Changing)), 8));
}

#[test]
fn a_register_that_went_back_grants_nothing() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    let missing = |result: Result<Success, ClientError<()>>, term| {
        assert!(matches!(result, Err(ClientError::Missing { expected, .. }) if expected == term));
    };
    missing(register.grant(&mut b, at(0), claim(2)), 1);
    register.grant(&mut a, at(0), begin()).unwrap();
    missing(register.grant(&mut b, at(0), claim(3)), 2);
    let backup = register.record.clone();
    register.grant(&mut a, at(0), claim(2)).unwrap();
    register.record = backup;
    // Its own earlier record: what others have won meanwhile may be undone together with the later
    // one.
    let completion = register.serve(&mut a, at(200));
    assert!(
        matches!(completion, Some(Completion::Renewal(Err(ClientError::Missing { .. })))),
        "{completion:?}"
    );
    register.record = None;
    let completion = register.serve(&mut a, at(400));
    assert!(
        matches!(completion, Some(Completion::Renewal(Err(ClientError::Missing { .. })))),
        "{completion:?}"
    );
}

/// P2: an unchanged record proves nothing if a renewal is undone: others may have won and performed
/// since.
#[test]
fn p2_a_holder_whose_beat_is_undone_renews_nothing() {
    let (mut register, mut a) = (Register::default(), client("a"));
    register.grant(&mut a, at(0), begin()).unwrap();
    let mine = a.next(at(200)).unwrap();
    let Question::Renew(written) = mine else { panic!("{mine:?}") };
    // The answer of a register that does not find the last renewal.
    let completion = a.reply(at(201), Reply::<()>::Found(Some(written))).unwrap();
    assert_eq!(completion, Some(Completion::Renewal(Err(ClientError::WentBack { term: 1 }))));
    assert_eq!(a.lease().ask(at(LEASE)), Right::Lapsed);
}

/// P2: if something seen earlier is undone, nothing is claimed any more.
#[test]
fn p2_a_client_that_has_seen_a_later_state_claims_nothing_from_an_earlier_one() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    let backup = (register.record.clone(), register.renewal);
    assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
    assert_eq!(register.serve(&mut b, at(200)), Some(Completion::Renewal(Ok(()))));
    (register.record, register.renewal) = backup;
    let undone = Err(ClientError::WentBack { term: 1 });
    assert_eq!(register.grant(&mut b, at(210), claim(2)), undone);
    register.record = None;
    let result = register.grant(&mut b, at(220), claim(2));
    assert!(matches!(result, Err(ClientError::Missing { expected: 1, found: None })), "{result:?}");
}

/// P2: the former term has the right number, but belongs to a process that this one has not
/// followed.
#[test]
fn p2_a_standby_succeeds_the_primary_that_it_has_followed_only() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    b.follow(Term(1), "another a");
    let result = register.grant(&mut b, at(0), claim(2));
    assert!(
        matches!(&result, Err(ClientError::Stranger { expected, found })
        if expected == "another a" && found.holder == "a"),
        "{result:?}"
    );
    b.follow(Term(1), "a");
    assert_eq!(register.grant(&mut b, at(0), claim(2)), Ok(Success::Granted));
}

/// P9: fails if a register that would grant nothing looks valid until a term is claimed.
#[test]
fn p9_a_look_finds_what_a_claim_would() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    assert_eq!(register.grant(&mut b, at(0), Request::Look), Ok(Success::Looked));
    b.follow(Term(1), "a");
    let nothing = register.grant(&mut b, at(0), Request::Look);
    assert!(
        matches!(nothing, Err(ClientError::Missing { expected: 1, found: None })),
        "{nothing:?}"
    );
    register.grant(&mut a, at(0), begin()).unwrap();
    assert_eq!(register.grant(&mut b, at(0), Request::Look), Ok(Success::Looked));
    b.follow(Term(1), "another a");
    let stranger = register.grant(&mut b, at(0), Request::Look);
    assert!(matches!(stranger, Err(ClientError::Stranger { .. })), "{stranger:?}");
    register.grant(&mut a, at(0), claim(2)).unwrap();
    assert_eq!(register.grant(&mut b, at(0), Request::Look), Ok(Success::Looked), "a later term");
}

/// P2: another process has won this process's term, in a register that went back.
#[test]
fn p2_a_term_of_its_own_number_and_another_holder_is_lost() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    register.record = None;
    register.grant(&mut b, at(10), begin()).unwrap();
    let result = register.grant(&mut a, at(20), claim(2));
    assert!(matches!(&result, Ok(Success::Denied(record)) if record.holder == "b"), "{result:?}");
    assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
    assert_eq!(a.lease().ask(at(201)), Right::Lost);
}

/// P2: the storage knows a holder that this register does not know.
#[test]
fn p2_a_machine_begins_after_the_term_that_is_written_beside_its_disks() {
    let (mut register, mut a) = (Register::default(), client("a"));
    let disk = |term, ended| DiskClaim { term, holder: "x".into(), ended, text: "x".into() };
    a.set_disk_claim(Some(disk(7, false)));
    let behind = Ok(Success::Behind(None, disk(7, false)));
    assert_eq!(register.grant(&mut a, at(0), begin()), behind);
    let seize = Request::Begin { seize: true };
    assert_eq!(register.grant(&mut a, at(0), seize), Ok(Success::Began(Term(8))));
    let (mut register, mut b) = (Register::default(), client("b"));
    b.set_disk_claim(Some(disk(7, true)));
    assert_eq!(register.grant(&mut b, at(0), begin()), Ok(Success::Began(Term(8))));
}

#[test]
fn a_machine_that_has_ended_is_not_brought_back_and_its_name_is_free() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    a.request(Request::End { term: Term(1) }).unwrap();
    assert_eq!(a.lease().ask(at(1)), Right::Lost, "before others are told");
    a.next(at(1)).unwrap();
    let failed = Completion::Request(Err(ClientError::Failed(())));
    assert_eq!(a.reply(at(1), Reply::Failed(())), Ok(Some(failed)));
    let end = Request::End { term: Term(1) };
    assert_eq!(register.grant(&mut a, at(2), end.clone()), Ok(Success::Ended));
    assert_eq!(
        register.grant(&mut a, at(3), end),
        Ok(Success::Ended),
        "its answer may have been lost"
    );
    assert!(matches!(register.grant(&mut b, at(4), claim(2)), Ok(Success::Denied(record))
        if record.why.contains("ended the machine")));
    assert_eq!(register.grant(&mut b, at(5), begin()), Ok(Success::Began(Term(2))));
    assert_eq!(b.lease().ask(at(6)), Right::Held, "nobody's lease is waited for");
}

#[test]
fn what_was_not_asked_is_not_answered() {
    let mut a = client("a");
    let illegal = a.reply(at(0), Reply::<()>::Renewed).unwrap_err();
    assert_eq!((illegal.state, illegal.event), ("resting", "reply"));
    a.request(begin()).unwrap();
    assert_eq!(a.request(begin()).unwrap_err().expected, "one request at a time");
    a.next(at(0)).unwrap();
    assert_eq!(a.reply(at(0), Reply::<()>::Renewed).unwrap_err().state, "asking");
    let empty = Snapshot { term: None, renewal: 0 };
    assert_eq!(a.reply(at(0), Reply::<()>::Looked(empty)), Ok(None), "the machine has not changed");
}

/// The bound of the proof in numbers: both clocks are off by 5 % in the unfavourable direction.
#[test]
fn p2_the_guard_covers_clocks_that_are_five_per_cent_off() {
    let mut lease = Lease::new(Duration::from_millis(LEASE));
    lease.renewed(at(0), at(0));
    let holder_ends = (0..LEASE).take_while(|millis| lease.ask(at(*millis)) == Right::Held).count();
    assert!(holder_ends as f64 * 1.05 < LEASE as f64 * 0.95);
}

/// A due renewal goes first, but not between a look and the replacement that follows, which would
/// then find the renewal number changed.
#[test]
fn a_renewal_waits_for_a_claim_that_is_half_way() {
    let (mut register, mut a) = (Register::default(), client("a"));
    register.grant(&mut a, at(0), begin()).unwrap();
    let ask = |register: &mut Register, a: &mut Client, now| {
        let question = a.next(at(now)).unwrap();
        let reply = register.answer(question.clone());
        (question, a.reply(at(now), reply).unwrap())
    };
    a.request(claim(2)).unwrap();
    assert_eq!(ask(&mut register, &mut a, 199), (Question::Look, None));
    let (question, completion) = ask(&mut register, &mut a, 200);
    assert!(matches!(question, Question::Replace { .. }), "{question:?}");
    assert_eq!(completion, Some(Completion::Request(Ok(Success::Granted))));
    a.request(Request::Look).unwrap();
    assert!(matches!(ask(&mut register, &mut a, 200).0, Question::Renew(_)), "a command can wait");
    assert_eq!(ask(&mut register, &mut a, 200).0, Question::Look);
}

#[test]
fn a_claim_that_has_met_a_renewal_looks_again() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    b.request(claim(2)).unwrap();
    let question = b.next(at(1)).unwrap();
    let reply = register.answer(question);
    assert_eq!(b.reply(at(1), reply).unwrap(), None);
    register.renewal += 1;
    assert_eq!(register.serve(&mut b, at(1)), Some(Completion::Request(Ok(Success::Granted))));
    assert_eq!(b.lease().begins(), at(1 + LEASE), "the renewal counts");
}

/// P9: the register must contain the followed term or a later one.
#[test]
fn p9_a_look_misses_the_term_that_was_followed() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    for holder in ["a", "another a"] {
        b.follow(Term(2), holder);
        let result = register.grant(&mut b, at(0), Request::Look);
        assert!(matches!(result, Err(ClientError::Missing { expected: 2, .. })), "{result:?}");
    }
}

/// P2: no process waits for the lease of an ended machine; and a process that has lost the right
/// continues to look, and renews nothing.
#[test]
fn p2_what_has_ended_or_is_lost_leaves_no_lease() {
    let (mut register, mut a, mut b) = (Register::default(), client("a"), client("b"));
    register.grant(&mut a, at(0), begin()).unwrap();
    if let Some(record) = &mut register.record {
        (record.held.ended, record.held.lease_ms) = (true, 2 * LEASE);
    }
    assert_eq!(register.grant(&mut b, at(10), begin()), Ok(Success::Began(Term(2))));
    let held = &register.record.as_ref().unwrap().held;
    assert_eq!((held.lease_ms, held.record.won_at), (LEASE, 0));
    assert_eq!(register.serve(&mut a, at(200)), Some(Completion::Renewal(Ok(()))));
    assert_eq!((a.lease().ask(at(201)), a.next(at(400))), (Right::Lost, Some(Question::Look)));
}
