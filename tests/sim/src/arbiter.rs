//! The arbiter, and the client that each process has of it: a register of terms that answers late,
//! or not, or to a client that has given up; with leases, or asked before every effect.

use std::collections::BTreeMap;
use std::time::Duration;

use ft_core::Time;
use ft_core::lease::{Lease, Right};

use crate::random::Random;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// `file`: take the term if nobody has it.
    Claim { term: u64 },
    /// `etcd`: read the last term and the holder's beat.
    Look,
    /// Take the next term if all is as it was when last looked at.
    Take { term: u64, last: u64, beat: u64 },
    /// Beat, if the last term is still this one.
    Renew { term: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Who has the term that was asked for.
    Holder(u64),
    Seen {
        last: u64,
        holder: u64,
        beat: u64,
    },
    Taken(bool),
    /// Whether it was renewed; else who has the last term.
    Renewed(Result<(), (u64, u64)>),
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
    pub(crate) beat: u64,
    pub(crate) down_until: u64,
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
        let (last, holder) = self.last();
        match question {
            Question::Claim { term } => Reply::Holder(self.claim(term, process)),
            Question::Look => Reply::Seen { last, holder, beat: self.beat },
            Question::Take { term, last: seen, beat } => {
                let same = seen == last && beat == self.beat;
                if same {
                    self.claim(term, process);
                    self.beat += 1;
                }
                Reply::Taken(same)
            }
            Question::Renew { term } => {
                let mine = last == term && holder == process;
                self.beat += u64::from(mine);
                Reply::Renewed(if mine { Ok(()) } else { Err((last, holder)) })
            }
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
                let (process, question) = (self.letters[at].process, self.letters[at].question);
                let reply = self.answer(process, question);
                served.push(self.letters[at].number);
                if random.one_in(10) {
                    self.letters.swap_remove(at);
                    continue;
                }
                self.letters[at].reply = Some(reply);
                self.letters[at].due = now + delay(random);
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

/// Mostly soon; now and then after the client has lost its patience.
pub(crate) fn delay(random: &mut Random) -> u64 {
    let longest = if random.one_in(8) { 300_000_000 } else { 8_000_000 };
    random.below(longest)
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
    /// The term that the protocol core wants.
    pub(crate) wanted: Option<u64>,
    asked: Option<(u64, Question, Time)>,
    seen: Option<(u64, u64, u64, Time)>,
    pub(crate) mine: Option<u64>,
    pub(crate) lease: Lease,
    next_beat: Time,
}

const LEASE: Duration = Duration::from_millis(240);
const PATIENCE: Duration = Duration::from_millis(90);

impl Client {
    pub(crate) fn new(kind: Kind, process: u64) -> Self {
        Self {
            kind,
            process,
            wanted: None,
            asked: None,
            seen: None,
            mine: None,
            lease: Lease::new(LEASE),
            next_beat: Time(0),
        }
    }

    /// The first of all terms.
    pub(crate) fn begin(&mut self, now: Time) {
        self.mine = Some(1);
        self.lease.won(None);
        self.lease.renewed(now, now);
    }

    pub(crate) fn asked(&self) -> Option<u64> {
        self.asked.map(|(number, ..)| number)
    }

    /// Gives up what takes too long; asks what is to be asked. What is given up may still happen.
    pub(crate) fn tick(&mut self, now: Time) -> (Option<Outcome>, Option<Question>) {
        if self.asked.is_some_and(|(_, _, sent)| now.since(sent) > PATIENCE) {
            self.asked = None;
            self.next_beat = now + LEASE / 8;
            if self.wanted.take().is_some() {
                return (Some(Outcome::Unreachable), None);
            }
        }
        if self.asked.is_some() {
            return (None, None);
        }
        let question = match (self.kind, self.wanted) {
            (Kind::None, _) | (Kind::File, None) => return (None, None),
            (Kind::File, Some(term)) => Question::Claim { term },
            (Kind::Lease, Some(_)) => Question::Look,
            (Kind::Lease, None) if now < self.next_beat => return (None, None),
            (Kind::Lease, None) => match self.mine {
                Some(term) => Question::Renew { term },
                None => Question::Look,
            },
        };
        (None, Some(question))
    }

    pub(crate) fn has_asked(&mut self, number: u64, question: Question, now: Time) {
        self.asked = Some((number, question, now));
        self.next_beat = now + LEASE / 4;
    }

    /// An answer to what was asked last.
    pub(crate) fn take(&mut self, reply: Reply, now: Time) -> (Option<Outcome>, Option<Question>) {
        let Some((_, question, sent)) = self.asked.take() else { return (None, None) };
        match reply {
            Reply::Holder(holder) => (self.answer(holder == self.process), None),
            Reply::Seen { last, holder, beat } => {
                let same = |seen: (u64, u64, u64, Time)| (seen.0, seen.2) == (last, beat);
                if !self.seen.is_some_and(same) {
                    self.seen = Some((last, holder, beat, now));
                }
                let Some(term) = self.wanted else { return (None, None) };
                if last == term && holder == self.process {
                    // Won earlier, and the answer got lost: when is not known.
                    if self.mine.is_none() {
                        self.lease.won(Some(now));
                    }
                    self.mine = Some(term);
                    (None, Some(Question::Renew { term }))
                } else if last >= term {
                    (self.answer(false), None)
                } else {
                    (None, Some(Question::Take { term, last, beat }))
                }
            }
            Reply::Taken(false) => (None, Some(Question::Look)),
            Reply::Taken(true) => {
                let (_, holder, _, since) = self.seen.expect("it was looked at before");
                self.lease.won((holder != self.process).then_some(since));
                self.lease.renewed(sent, now);
                self.mine = self.wanted;
                (self.answer(true), None)
            }
            Reply::Renewed(Ok(())) => {
                self.lease.renewed(sent, now);
                let renewed =
                    matches!(question, Question::Renew { term } if Some(term) == self.wanted);
                (renewed.then(|| self.answer(true)).flatten(), None)
            }
            Reply::Renewed(Err((last, holder))) => {
                if holder == self.process {
                    self.mine = Some(last);
                } else if self.mine.is_some_and(|mine| last >= mine) {
                    self.lease.lost();
                    self.mine = None;
                }
                (None, None)
            }
        }
    }

    fn answer(&mut self, won: bool) -> Option<Outcome> {
        let term = self.wanted.take()?;
        if won {
            self.mine = Some(term);
        }
        Some(if won { Outcome::Granted(term) } else { Outcome::Denied(term) })
    }

    /// Whether effects may be performed; `register`: if it can be read now.
    pub(crate) fn may_perform(&self, now: Time, term: u64, register: Option<&Register>) -> Right {
        match self.kind {
            Kind::None => Right::Held,
            Kind::Lease => self.lease.ask(now),
            Kind::File => match register.map(|register| register.winners.get(&(term + 1))) {
                None => Right::Lapsed,
                Some(Some(process)) if *process != self.process => Right::Lost,
                Some(_) => Right::Held,
            },
        }
    }
}
