//! The arbiter, and the client that each process has of it: a register of terms that answers late, or not, or to a client
//! that has given up; with leases, or asked before every effect.

use std::collections::BTreeMap;
use std::time::Duration;

use ft_core::arbiter::{
    Client as LeaseClient, ClientOptions, Held, Question as LeaseQuestion, Reply as LeaseReply,
    Right, Snapshot, Success, Told, Wish, Written,
};
use ft_core::{Term, Time};

use crate::random::Random;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// `file`: take the term if nobody has it, and the one before is of the process that the asker has followed (or is).
    Claim { term: u64, after: u64 },
    /// `etcd`: as the protocol core's client asks.
    Lease(Box<LeaseQuestion>),
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Who has the term that was asked for.
    Holder(u64),
    /// The term before is not whose it must be.
    Stranger,
    Lease(LeaseReply<()>),
}

/// On its way to the register, or back.
pub(crate) struct Letter {
    pub(crate) number: u64,
    pub(crate) process: u64,
    pub(crate) node: usize,
    pub(crate) question: Question,
    pub(crate) reply: Option<Reply>,
    pub(crate) due: u64,
}

/// The register.
#[derive(Default)]
pub(crate) struct Register {
    /// Who has won which term.
    pub(crate) winners: BTreeMap<u64, u64>,
    /// With leases: the record of the last term, and the beat.
    record: Option<Written>,
    beat: i64,
    pub(crate) down_until: u64,
    /// It is slow until then: to ask once takes nearly as long as its clients wait.
    pub(crate) slow_until: u64,
    pub(crate) letters: Vec<Letter>,
    next: u64,
}

impl Register {
    /// Grants a term to the first who asks.
    pub(crate) fn claim(&mut self, term: u64, process: u64) -> u64 {
        *self.winners.entry(term).or_insert(process)
    }

    pub(crate) fn last(&self) -> (u64, u64) {
        self.winners.last_key_value().map_or((0, 0), |(term, process)| (*term, *process))
    }

    fn answer(&mut self, process: u64, question: Question) -> Reply {
        match question {
            Question::Claim { term, after } => match self.winners.get(&(term - 1)) {
                Some(before) if *before == after => Reply::Holder(self.claim(term, process)),
                _ => Reply::Stranger,
            },
            Question::Lease(question) => Reply::Lease(self.answer_lease(process, *question)),
        }
    }

    /// As etcd does, by transactions on two keys.
    fn answer_lease(&mut self, process: u64, question: LeaseQuestion) -> LeaseReply<()> {
        match question {
            LeaseQuestion::Look => {
                LeaseReply::Looked(Snapshot { term: self.record.clone(), beat: self.beat })
            }
            LeaseQuestion::Replace { seen, new } => {
                if seen.term != self.record || seen.beat != self.beat {
                    return LeaseReply::Replaced(None);
                }
                let winner = self.claim(new.record.term, process);
                assert!(winner == process, "P2: term {} is won twice", new.record.term);
                self.beat += 1;
                self.record = Some(written(new));
                LeaseReply::Replaced(self.record.clone())
            }
            LeaseQuestion::Renew(mine) if self.record.as_ref() == Some(&mine) => {
                self.beat += 1;
                LeaseReply::Renewed
            }
            LeaseQuestion::Renew(_) => LeaseReply::Found(self.record.clone()),
        }
    }

    /// Carries out what has come, and gives whose questions those were.
    pub(crate) fn serve(&mut self, now: u64, cut: &[u64], random: &mut Random) -> Vec<u64> {
        let due = |letter: &Letter| {
            letter.reply.is_none() && letter.due <= now && cut[letter.node] <= now
        };
        let mut served = Vec::new();
        if self.down_until > now {
            return served;
        }
        let mut at = 0;
        while at < self.letters.len() {
            if due(&self.letters[at]) {
                let (process, question) =
                    (self.letters[at].process, self.letters[at].question.clone());
                let reply = self.answer(process, question);
                served.push(self.letters[at].number);
                if random.one_in(10) {
                    self.letters.swap_remove(at);
                    continue;
                }
                self.letters[at].reply = Some(reply);
                self.letters[at].due = now + self.delay(now, random);
            }
            at += 1;
        }
        served
    }

    pub(crate) fn ask(&mut self, from: (usize, u64), question: Question, at: u64) -> u64 {
        self.next += 1;
        let (node, process) = from;
        let letter = Letter { number: self.next, process, node, question, reply: None, due: at };
        self.letters.push(letter);
        self.next
    }

    /// How long a letter takes: mostly not long; now and then until after the client has lost its patience.
    pub(crate) fn delay(&self, now: u64, random: &mut Random) -> u64 {
        if self.slow_until > now {
            return 20_000_000 + random.below(20_000_000);
        }
        let longest = if random.one_in(8) { 300_000_000 } else { 8_000_000 };
        random.below(longest)
    }

    /// The answer to a question, if it is there.
    pub(crate) fn take_reply(&mut self, number: u64, now: u64, cut: &[u64]) -> Option<Reply> {
        let at = self.letters.iter().position(|letter| {
            letter.number == number
                && letter.reply.is_some()
                && letter.due <= now
                && cut[letter.node] <= now
        })?;
        self.letters.swap_remove(at).reply
    }
}

/// How a record is written: a term is won once, so its number stands for it.
fn written(held: Held) -> Written {
    let value = held.record.term.to_le_bytes().to_vec();
    Written { held, value }
}

/// Which kind there is in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    File,
    Lease,
}

/// What a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(u64),
    Denied(u64),
    Unreachable,
}

/// What a process has of it. Times are of its own clock.
pub(crate) struct Client {
    kind: Kind,
    process: u64,
    /// The term that the protocol core wants, and whether it has been asked for.
    pub(crate) wanted: Option<u64>,
    wished: bool,
    asked: Option<(u64, Time)>,
    /// Whose successor it is to be, if anybody's.
    followed: u64,
    lease: LeaseClient,
    /// When the lease last gave the right: its answer is acted upon for a time.
    granted: Option<Time>,
}

/// Leases of processes, which need not be alike.
const LEASES: [Duration; 3] =
    [Duration::from_millis(240), Duration::from_millis(160), Duration::from_millis(320)];
const PATIENCE: Duration = Duration::from_millis(90);

impl Client {
    pub(crate) fn new(kind: Kind, process: u64, now: Time) -> Self {
        let lease = LEASES[process as usize % LEASES.len()];
        let options = ClientOptions {
            vm: "vm".into(),
            holder: process.to_string(),
            lease,
            interval: lease / 4,
            retry: lease / 8,
        };
        let lease = LeaseClient::new(options, now);
        Self {
            kind,
            process,
            wanted: None,
            wished: false,
            asked: None,
            followed: 0,
            lease,
            granted: None,
        }
    }

    /// Wins the first of all terms.
    pub(crate) fn begin(&mut self, register: &mut Register, now: Time) {
        self.followed = self.process;
        if self.kind != Kind::Lease {
            register.claim(1, self.process);
            return;
        }
        self.lease.wish(Wish::Begin { seize: false }).unwrap();
        loop {
            let question = self.lease.next(now).expect("not all has been asked");
            let reply = register.answer_lease(self.process, question);
            if let Some(told) = self.lease.reply(now, reply).unwrap() {
                assert_eq!(told, Told::Wish(Ok(Success::Began(Term(1)))));
                return;
            }
        }
    }

    /// `process` has said that it acts in `term`.
    pub(crate) fn follow(&mut self, term: Term, process: &str) {
        self.followed = process.parse().expect("a process says its number");
        self.lease.follow(term, process);
    }

    pub(crate) fn asked(&self) -> Option<u64> {
        self.asked.map(|(number, ..)| number)
    }

    /// Gives up what takes too long; asks what is to be asked. What is given up may still happen.
    pub(crate) fn tick(&mut self, now: Time) -> (Option<Outcome>, Option<Question>) {
        let mut outcome = None;
        if self.asked.is_some_and(|(_, sent)| now.since(sent) > PATIENCE) {
            self.asked = None;
            outcome = self.failed(now);
        }
        let question =
            if self.asked.is_none() && outcome.is_none() { self.question(now) } else { None };
        (outcome, question)
    }

    fn failed(&mut self, now: Time) -> Option<Outcome> {
        if self.kind == Kind::Lease {
            return self.take_lease(now, LeaseReply::Failed(()));
        }
        self.wanted.take().map(|_| Outcome::Unreachable)
    }

    fn question(&mut self, now: Time) -> Option<Question> {
        match (self.kind, self.wanted) {
            (Kind::None, _) | (Kind::File, None) => None,
            (Kind::File, Some(term)) => Some(Question::Claim { term, after: self.followed }),
            (Kind::Lease, wanted) => {
                if let (Some(term), false) = (wanted, self.wished) {
                    let wish = Wish::Claim { term: Term(term), why: String::new() };
                    self.lease.wish(wish).unwrap();
                    self.wished = true;
                }
                self.lease.next(now).map(|question| Question::Lease(Box::new(question)))
            }
        }
    }

    pub(crate) fn has_asked(&mut self, number: u64, now: Time) {
        self.asked = Some((number, now));
    }

    /// An answer to what was asked last.
    pub(crate) fn take(&mut self, reply: Reply, now: Time) -> (Option<Outcome>, Option<Question>) {
        self.asked = None;
        let outcome = match reply {
            Reply::Holder(holder) => self.answer(holder == self.process),
            Reply::Stranger => panic!("P2: a side claims a term after one of a stranger"),
            Reply::Lease(reply) => self.take_lease(now, reply),
        };
        let question = if outcome.is_none() { self.question(now) } else { None };
        (outcome, question)
    }

    fn take_lease(&mut self, now: Time, reply: LeaseReply<()>) -> Option<Outcome> {
        let Some(Told::Wish(result)) = self.lease.reply(now, reply).unwrap() else { return None };
        self.wished = false;
        match result {
            Ok(Success::Granted) => self.answer(true),
            Ok(Success::Denied(_)) => self.answer(false),
            Ok(other) => panic!("a claim came to {other:?}"),
            Err(_) => self.wanted.take().map(|_| Outcome::Unreachable),
        }
    }

    fn answer(&mut self, won: bool) -> Option<Outcome> {
        let term = self.wanted.take()?;
        if won {
            self.followed = self.process;
        }
        Some(if won { Outcome::Granted(term) } else { Outcome::Denied(term) })
    }

    /// Somebody asks the lease, now.
    pub(crate) fn note_right(&mut self, now: Time) {
        match self.lease.lease().ask(now) {
            Right::Held => self.granted = Some(now),
            Right::Lapsed => {}
            Right::Lost => self.granted = None,
        }
    }

    /// Whether somebody may act now upon what the lease has answered.
    pub(crate) fn may_act(&self, now: Time) -> bool {
        let longest = self.lease.lease().answer_max_age();
        self.granted.is_some_and(|at| now.since(at) <= longest)
    }

    /// Whether effects may be performed; `register`: if it can be read now.
    pub(crate) fn may_perform(&self, now: Time, term: u64, register: Option<&Register>) -> Right {
        match self.kind {
            Kind::None => Right::Held,
            Kind::Lease if self.may_act(now) => Right::Held,
            Kind::Lease => self.lease.lease().ask(now),
            Kind::File => match register.map(|register| register.winners.get(&(term + 1))) {
                None => Right::Lapsed,
                // Its own term is its own, or no word of it counts.
                Some(_)
                    if register.is_none_or(|all| all.winners.get(&term) != Some(&self.process)) =>
                {
                    Right::Lost
                }
                Some(Some(process)) if *process != self.process => Right::Lost,
                Some(_) => Right::Held,
            },
        }
    }
}
