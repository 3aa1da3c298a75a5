//! The client's result for each content of the register: `table.txt`, which reads like a
//! specification. A change of it is a change of the arbiter client's behaviour.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;

use super::*;
use crate::testing::Table;

type Make = fn(&mut Register) -> Client;

const CLIENTS: &[(&str, Make)] = &[
    ("knows nothing", |_| client("me")),
    ("has followed a in term 1", |_| {
        let mut client = client("me");
        client.follow(Term(1), "a");
        client
    }),
    ("has seen a renew term 1 at 200, in beat 5", |register| {
        let mut client = client("me");
        set(register, "a", 1, false);
        register.renewal = 5;
        register.serve(&mut client, at(200)).unwrap();
        client
    }),
    ("holds term 1 since 0", |register| {
        let mut client = client("me");
        register.grant(&mut client, at(0), begin()).unwrap();
        client
    }),
    ("has held term 1, and nobody knows whether its end was written", |register| {
        let mut client = client("me");
        register.grant(&mut client, at(0), begin()).unwrap();
        client.request(Request::End { term: Term(1) }).unwrap();
        client.next(at(20)).unwrap();
        client.reply(at(30), Reply::Failed(())).unwrap();
        client
    }),
    ("holds term 2 since 10, and followed a in term 1", |register| {
        let mut client = client("me");
        client.follow(Term(1), "a");
        set(register, "a", 1, false);
        register.grant(&mut client, at(10), claim(2)).unwrap();
        client
    }),
    ("term 7 of x is written beside its disks", |_| with_disk(7, "x", false)),
    ("term 1 of a is written beside its disks", |_| with_disk(1, "a", false)),
    ("term 1 of nobody is written beside its disks, and has ended", |_| with_disk(1, "", true)),
];

type Change = fn(&mut Register);

const REGISTERS: &[(&str, Change)] = &[
    ("as it was", |_| {}),
    ("empty", |register| register.record = None),
    ("term 1 of a", |register| set(register, "a", 1, false)),
    ("term 1 of a, ended", |register| set(register, "a", 1, true)),
    ("term 1 of me", |register| set(register, "me", 1, false)),
    ("term 2 of me", |register| set(register, "me", 2, false)),
    ("term 2 of me, ended", |register| set(register, "me", 2, true)),
    ("term 2 of b", |register| set(register, "b", 2, false)),
    ("term 3 of b", |register| set(register, "b", 3, false)),
    ("beats undone", |register| register.renewal = -1),
];

type Ask = fn() -> Option<Request>;

const ASKS: &[(&str, u64, Ask)] = &[
    ("beat", 1000, || None),
    ("look", 100, || Some(Request::Look)),
    ("claim 2", 100, || Some(claim(2))),
    ("claim 3", 100, || Some(claim(3))),
    ("begin", 100, || Some(begin())),
    ("seize", 100, || Some(Request::Begin { seize: true })),
    ("end 1", 100, || Some(Request::End { term: Term(1) })),
    ("end 2", 100, || Some(Request::End { term: Term(2) })),
];

fn with_disk(term: u64, holder: &str, ended: bool) -> Client {
    let mut client = client("me");
    let holder = holder.to_owned();
    client.set_disk_claim(Some(DiskClaim { term, holder, ended, text: "x".into() }));
    client
}

/// A record that another process has written. The lease of a is shorter than this one's, that of b
/// is longer.
pub(super) fn set(register: &mut Register, holder: &str, term: u64, ended: bool) {
    let lease_ms = match holder {
        "a" => 500,
        "b" => 1200,
        _ => LEASE,
    };
    let record =
        TermRecord { vm: "vm".into(), term, holder: holder.into(), why: "test".into(), won_at: 0 };
    let value = format!("{holder} {term} {ended}").into_bytes();
    register.record = Some(Written { held: Held { record, lease_ms, ended, set: None }, value });
}

fn record(record: &TermRecord) -> alloc::string::String {
    format!("term {} of {}", record.term, record.holder)
}

fn error(error: &ClientError<()>) -> alloc::string::String {
    let found = |found: &Option<alloc::boxed::Box<TermRecord>>| {
        found.as_ref().map_or("none".into(), |it| record(it))
    };
    match error {
        ClientError::Missing { expected, found: it } => {
            format!("expected term {expected}, found {}", found(it))
        }
        ClientError::Stranger { expected, found } => {
            format!("expected one of {expected}, found {}", record(found))
        }
        other => format!("{other:?}"),
    }
}

fn completion(completion: &Completion<()>) -> alloc::string::String {
    match completion {
        Completion::Renewal(Ok(())) => "beats".into(),
        Completion::Renewal(Err(it)) | Completion::Request(Err(it)) => error(it),
        Completion::Request(Ok(Success::Denied(it))) if it.why != "test" => {
            format!("denied: {}: {}", record(it), it.why)
        }
        Completion::Request(Ok(Success::Denied(it))) => format!("denied: {}", record(it)),
        Completion::Request(Ok(Success::Taken(it))) => format!("taken: {}", record(it)),
        Completion::Request(Ok(Success::Behind(it, disk))) => {
            let known = it.as_ref().map_or("nobody".into(), record);
            format!("behind: the disks know of term {}, the register of {known}", disk.term)
        }
        Completion::Request(Ok(success)) => format!("{success:?}"),
    }
}

/// When the right is held, to the millisecond.
fn right(client: &Client) -> alloc::string::String {
    let held: Vec<u64> =
        (0..3000).filter(|ms| client.lease().ask(at(*ms)) == Right::Held).collect();
    match (held.first(), held.last(), client.lost()) {
        (_, _, Some(why)) => format!("right lost: {why}"),
        (Some(first), Some(last), _) => format!("right {first} to {last}"),
        _ => "no right".into(),
    }
}

fn outcome(
    make: Make,
    change: Change,
    time: u64,
    request: Option<Request>,
) -> alloc::string::String {
    let mut register = Register::default();
    let mut client = make(&mut register);
    change(&mut register);
    let before = (register.record.clone(), register.renewal);
    if let Some(request) = request {
        client.request(request).unwrap();
    }
    let mut now = time;
    let completion = loop {
        let question = client.next(at(now)).unwrap();
        assert_eq!(client.next(at(now)), None, "one question at a time");
        let reply = register.answer(question);
        now += 10;
        if let Some(completion) = client.reply(at(now), reply).unwrap() {
            break self::completion(&completion);
        }
    };
    let mut said = Vec::from([completion]);
    if register.record != before.0 {
        let Held { record: new, lease_ms, ended, .. } = &register.record.as_ref().unwrap().held;
        let ended = if *ended { ", ended" } else { "" };
        said.push(format!("writes {}, lease {lease_ms}{ended}", record(new)));
    } else if register.renewal != before.1 {
        said.push("renews".into());
    }
    let due = client.next_deadline().0 / MS;
    said.push(format!("{}, has won {}, due at {due}", right(&client), client.term()));
    said.join("; ")
}

#[test]
fn a_client_makes_of_what_it_finds_what_the_table_says() {
    let mut table = Table(alloc::string::String::new());
    for (name, make) in CLIENTS {
        let mut outcomes = Vec::new();
        for (ask, time, request) in ASKS {
            for (register, change) in REGISTERS {
                let event = format!("{ask}, {register}");
                outcomes.push((event, outcome(*make, *change, *time, request())));
            }
        }
        table.state(name, "", outcomes);
    }
    table.is(include_str!("table.txt"));
}

/// P2: the machine begins only where no other may run it, according to the register and the records
/// beside its disks.
#[test]
fn p2_a_machine_begins_only_where_nobody_may_run_it() {
    let record = |term, holder: &str| TermRecord {
        vm: "vm".into(),
        term,
        holder: holder.into(),
        why: "test".into(),
        won_at: 0,
    };
    let disk = |term, holder: &str| DiskClaim {
        term,
        holder: holder.into(),
        ended: false,
        text: "x".into(),
    };
    // The content of the register and of the disks, and whether the register knows a later holder
    // or the same one.
    for (last, claim, known) in [
        (Some(record(3, "a-1")), disk(2, "b"), true),
        (Some(record(3, "a-1")), disk(3, "a"), true),
        (Some(record(3, "a-1")), disk(3, ""), true),
        (Some(record(3, "a-1")), disk(3, "b"), false),
        (Some(record(3, "a-1")), disk(4, "a"), false),
        (Some(record(3, "a-1")), disk(4, ""), false),
        (None, disk(1, "a"), false),
    ] {
        for ended in [false, true] {
            let found = beginning(last.as_ref().map(|last| (last, ended)), Some(&claim), false);
            let expected = match (&last, ended) {
                _ if !known => Beginning::Behind(claim.clone()),
                (Some(last), false) => Beginning::Taken(last.clone()),
                _ => Beginning::In(Term(4)),
            };
            assert_eq!(found, expected, "{last:?}, {ended}, {claim:?}");
        }
    }
}
