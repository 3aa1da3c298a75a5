//! The arbiter, and each process's client of it: a register of terms that may answer late, never,
//! or to a client that has given up. It either grants leases, or is asked before every effect.

use std::collections::BTreeMap;
use std::time::Duration;

use ft_core::arbiter::{
    Client as LeaseClient, ClientOptions, Completion, Held, Question as LeaseQuestion,
    Reply as LeaseReply, Request, Right, Snapshot, Success, Written,
};
use ft_core::{Term, Time};

use crate::random::Random;

/// A question to the arbiter.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// `file`: take the term if it is free, and if the term before belongs to the process that the
    /// asker has followed (or is).
    Claim { term: u64, after: u64 },
    /// `etcd`: a question of the protocol core's client.
    Lease(Box<LeaseQuestion>),
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// The holder of the requested term.
    Holder(u64),
    /// The term before belongs to another process.
    Stranger,
    Lease(Box<LeaseReply<()>>),
}

/// A question or its answer, in transit.
pub(crate) struct Letter {
    pub(crate) number: u64,
    pub(crate) process: u64,
    pub(crate) node: usize,
    pub(crate) question: Question,
    pub(crate) reply: Option<Reply>,
    pub(crate) due: u64,
}

/// The simulated arbiter: the register that has the winner of each term.
#[derive(Default)]
pub(crate) struct Register {
    /// The winner of each term.
    pub(crate) winners: BTreeMap<u64, u64>,
    /// With leases: the record of the last term, and the renewal counter.
    record: Option<Written>,
    renewal: i64,
    pub(crate) down_until: u64,
    /// Slow until then: one question takes nearly as long as its clients wait.
    pub(crate) slow_until: u64,
    pub(crate) letters: Vec<Letter>,
    next: u64,
}

impl Register {
    /// Grants a term to the first process that asks; returns the holder.
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
            Question::Lease(question) => {
                Reply::Lease(Box::new(self.answer_lease(process, *question)))
            }
        }
    }

    /// Answers as etcd does, by transactions on two keys.
    fn answer_lease(&mut self, process: u64, question: LeaseQuestion) -> LeaseReply<()> {
        match question {
            LeaseQuestion::Look => {
                LeaseReply::Looked(Snapshot { term: self.record.clone(), renewal: self.renewal })
            }
            LeaseQuestion::Replace { seen, new } => {
                if seen.term != self.record || seen.renewal != self.renewal {
                    return LeaseReply::Replaced(None);
                }
                let winner = self.claim(new.record.term, process);
                assert!(winner == process, "P2: term {} is won twice", new.record.term);
                self.renewal += 1;
                self.record = Some(written(new));
                LeaseReply::Replaced(self.record.clone())
            }
            LeaseQuestion::Renew(mine) if self.record.as_ref() == Some(&mine) => {
                self.renewal += 1;
                LeaseReply::Renewed
            }
            LeaseQuestion::Renew(_) => LeaseReply::Found(self.record.clone()),
        }
    }

    /// Carries out the questions that have arrived; returns their numbers.
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

    /// The delay of a message: usually short; sometimes longer than its client waits.
    pub(crate) fn delay(&self, now: u64, random: &mut Random) -> u64 {
        if self.slow_until > now {
            return 20_000_000 + random.below(20_000_000);
        }
        let longest = if random.one_in(8) { 300_000_000 } else { 8_000_000 };
        random.below(longest)
    }

    /// The answer to a question, if it has arrived.
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

/// The written form of a record: a term is won once, so its number identifies the record.
fn written(held: Held) -> Written {
    let value = held.record.term.to_le_bytes().to_vec();
    Written { held, value }
}

/// The kind of arbiter in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    File,
    Lease,
}

/// The result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(u64),
    Denied(u64),
    Unreachable,
}

/// A process's client of the arbiter. Times are of the process's clock.
pub(crate) struct Client {
    kind: Kind,
    process: u64,
    /// The term that the protocol core wants, and whether the lease client knows of it.
    pub(crate) wanted: Option<u64>,
    requested: bool,
    asked: Option<(u64, Time)>,
    /// The process whose successor this one would be; 0 if there is none.
    followed: u64,
    lease: LeaseClient,
    /// When the lease last gave the right: the answer is used for a limited time.
    granted: Option<Time>,
}

/// Lease durations of the processes, which may differ.
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
            requested: false,
            asked: None,
            followed: 0,
            lease,
            granted: None,
        }
    }

    /// Wins the first term.
    pub(crate) fn begin(&mut self, register: &mut Register, now: Time) {
        self.followed = self.process;
        if self.kind != Kind::Lease {
            register.claim(1, self.process);
            return;
        }
        self.lease.request(Request::Begin { seize: false }).unwrap();
        loop {
            let question = self.lease.next(now).expect("not all has been asked");
            let reply = register.answer_lease(self.process, question);
            if let Some(completion) = self.lease.reply(now, reply).unwrap() {
                assert_eq!(completion, Completion::Request(Ok(Success::Began(Term(1)))));
                return;
            }
        }
    }

    /// `process` has told this one that it acts in `term`.
    pub(crate) fn follow(&mut self, term: Term, process: &str) {
        self.followed = process.parse().expect("a process says its number");
        self.lease.follow(term, process);
    }

    pub(crate) fn asked(&self) -> Option<u64> {
        self.asked.map(|(number, ..)| number)
    }

    /// Gives up questions that take too long, and asks the next one. A question that was given up
    /// may still be carried out.
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
                if let (Some(term), false) = (wanted, self.requested) {
                    let request = Request::Claim { term: Term(term), why: String::new() };
                    self.lease.request(request).unwrap();
                    self.requested = true;
                }
                self.lease.next(now).map(|question| Question::Lease(Box::new(question)))
            }
        }
    }

    pub(crate) fn has_asked(&mut self, number: u64, now: Time) {
        self.asked = Some((number, now));
    }

    /// Processes an answer to the last question.
    pub(crate) fn take(&mut self, reply: Reply, now: Time) -> (Option<Outcome>, Option<Question>) {
        self.asked = None;
        let outcome = match reply {
            Reply::Holder(holder) => self.answer(holder == self.process),
            Reply::Stranger => panic!("P2: a side claims a term after a stranger's term"),
            Reply::Lease(reply) => self.take_lease(now, *reply),
        };
        let question = if outcome.is_none() { self.question(now) } else { None };
        (outcome, question)
    }

    fn take_lease(&mut self, now: Time, reply: LeaseReply<()>) -> Option<Outcome> {
        let Some(Completion::Request(result)) = self.lease.reply(now, reply).unwrap() else {
            return None;
        };
        self.requested = false;
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

    /// Asks the lease at this moment, as a lane would.
    pub(crate) fn note_right(&mut self, now: Time) {
        match self.lease.lease().ask(now) {
            Right::Held => self.granted = Some(now),
            Right::Lapsed => {}
            Right::Lost => self.granted = None,
        }
    }

    /// Whether a lane may act now on the lease's last answer.
    pub(crate) fn may_act(&self, now: Time) -> bool {
        let longest = self.lease.lease().answer_max_age();
        self.granted.is_some_and(|at| now.since(at) <= longest)
    }

    /// Whether effects may be performed; `register` is given if it can be read now.
    pub(crate) fn may_perform(&self, now: Time, term: u64, register: Option<&Register>) -> Right {
        match self.kind {
            Kind::None => Right::Held,
            Kind::Lease if self.may_act(now) => Right::Held,
            Kind::Lease => self.lease.lease().ask(now),
            Kind::File => match register.map(|register| register.winners.get(&(term + 1))) {
                None => Right::Lapsed,
                // A process whose own term is not its own has lost the right.
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
