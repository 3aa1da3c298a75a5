//! The client of an arbiter with leases: it claims terms, renews the lease, and watches the present
//! holder (P2).
//!
//! ```text
//!              next(now)                 reply(now, ..)
//!   RESTING --------------> ASKING ---------------------> RESTING, and a result
//!      ^  a renewal is due, or a request    a request takes several questions:
//!      +--- request(..)                  look -> replace (-> look again, if something had changed)
//!                                        look -> renew   (the term is ours: an answer was lost)
//! ```
//!
//! It asks one question at a time: a renewal and a claim never overlap. So a renewal never meets
//! this process's own claim under way, except one whose answer was lost.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use io_gate::host::Term;

use super::{
    Beginning, DiskClaim, Held, ImageClaim, ImageStart, Lease, Question, Reply, Snapshot,
    TermRecord, Written, beginning, begun,
};
use crate::disks::set::{ImageSet, Member, SetError, SetRecord};
use crate::{Illegal, Time, deliberate};

/// A claim that meets a renewal of the holder is repeated, at most this many times.
const ROUNDS: usize = 8;

/// The identity and the times of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The virtual machine.
    pub vm: String,
    /// This process; see [`TermRecord::holder`].
    pub holder: String,
    /// How long a lease lasts after a renewal.
    pub lease: Duration,
    /// Interval at which the holder renews and others check.
    pub interval: Duration,
    /// Wait before a failed question is repeated.
    pub retry: Duration,
}

/// What the process wants from the arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// To check that it answers.
    Look,
    /// To win a term: the one after the current one, or one that this process has already won.
    Claim {
        /// The term.
        term: Term,
        /// What led to the claim.
        why: String,
    },
    /// To begin running a virtual machine.
    Begin {
        /// Even if it has a recorded holder.
        seize: bool,
    },
    /// To record that the machine has ended in this term.
    End {
        /// The term.
        term: Term,
    },
    /// To win the term of `claim`, with own disks (R7).
    ClaimImage {
        /// The image.
        claim: ImageClaim,
        /// What led to the claim.
        why: String,
    },
    /// To begin running a virtual machine with own disks (R6).
    BeginImage(Box<ImageStart>),
    /// To add the standby's image to the set of a term that this process holds (R6).
    Enlarge {
        /// The term.
        term: Term,
        /// The standby's image.
        member: Member,
    },
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Success {
    /// The arbiter answers.
    Looked,
    /// This process holds the term.
    Granted,
    /// Another process holds it, or the machine has ended.
    Denied(TermRecord),
    /// The machine to begin has a holder.
    Taken(TermRecord),
    /// The disks name a possible holder that the register, whose record this is, does not know.
    Behind(Option<TermRecord>, DiskClaim),
    /// The machine begins in this term.
    Began(Term),
    /// The end of the machine is recorded.
    Ended,
    /// This process holds the term of this record, whose set is as it was requested.
    Recorded(SetRecord),
    /// The record has not changed: the set does not allow it.
    Refused(SetError),
}

/// Why a question or a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError<E> {
    /// The register did not answer. The question may still be carried out.
    Failed(E),
    /// The expected term is missing: the register was set back, or is another one.
    Missing {
        /// The term.
        expected: u64,
        /// The record found.
        found: Option<Box<TermRecord>>,
    },
    /// The former term's holder is not the one that this process has followed: the register was set
    /// back, or is another one.
    Stranger {
        /// The followed holder.
        expected: String,
        /// The record found.
        found: Box<TermRecord>,
    },
    /// Something that this process has seen or written is undone.
    WentBack {
        /// The term that was seen.
        term: u64,
    },
    /// The register changed in every round.
    Changing,
}

/// A result for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion<E> {
    /// The result of a renewal, or of a check of the present holder.
    Renewal(Result<(), ClientError<E>>),
    /// The result of the request.
    Request(Result<Success, ClientError<E>>),
}

#[derive(Debug)]
struct Wanted {
    request: Request,
    rounds: usize,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Look,
    Replace(Snapshot, Held),
    Renew(Written),
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    renewal: bool,
    sent: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    lease: Lease,
    /// Why the right is lost for good.
    lost: Option<String>,
    /// The highest term won.
    term: u64,
    /// The record of the term that this process holds.
    mine: Option<Written>,
    /// The holder of the term before the claimed one, if the caller has given it.
    followed: Option<(Term, String)>,
    /// The claim in the records beside the machine's disks.
    disk: Option<DiskClaim>,
    /// What the register last contained, and when this was first seen.
    seen: Option<(Snapshot, Time)>,
    wanted: Option<Wanted>,
    asked: Option<Asked>,
    due: Time,
}

impl Client {
    /// A client that holds nothing.
    #[must_use]
    pub fn new(options: ClientOptions, now: Time) -> Self {
        Self {
            lease: Lease::new(options.lease),
            lost: None,
            term: 0,
            mine: None,
            followed: None,
            disk: None,
            seen: None,
            wanted: None,
            asked: None,
            due: now + options.interval,
            options,
        }
    }

    /// The right to perform effects.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Why the right is lost for good, if it is.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// The highest term that this process has won; 0 for none.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Sets the holder of a term, as the holder itself has sent it. The next term is then claimed
    /// only after this holder's (P2).
    pub fn follow(&mut self, term: Term, holder: &str) {
        self.followed = Some((term, holder.to_owned()));
    }

    /// Sets the claim in the records beside the machine's disks, before the machine begins.
    pub fn set_disk_claim(&mut self, claim: Option<DiskClaim>) {
        self.disk = claim;
    }

    /// When to call [`Self::next`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        self.due
    }

    /// Accepts a request. [`Self::next`] returns the questions that it needs.
    ///
    /// # Errors
    /// When there is already a request.
    pub fn request(&mut self, request: Request) -> Result<(), Illegal> {
        if self.wanted.is_some() {
            return Err(self.illegal("request", "one request at a time"));
        }
        if let Request::End { .. } = request {
            // Lose the right before others learn that they need not wait.
            self.lose("the machine has ended".to_owned());
            self.mine = None;
        }
        self.wanted = Some(Wanted { request, rounds: ROUNDS, step: Step::Look });
        Ok(())
    }

    /// The question to ask now. It must be sent after `now`, not before. `None` while an answer is
    /// awaited, or if there is nothing to ask.
    pub fn next(&mut self, now: Time) -> Option<Question> {
        if self.asked.is_some() {
            return None;
        }
        // A due renewal goes first: a request can wait, the lease cannot. But no renewal comes
        // between a look and the replacement that follows, which would then find the renewal number
        // changed.
        let midway = self.wanted.as_ref().is_some_and(|wanted| !matches!(wanted.step, Step::Look));
        if self.due <= now && !midway {
            self.asked = Some(Asked { renewal: true, sent: now });
            return Some(self.mine.clone().map_or(Question::Look, Question::Renew));
        }
        let wanted = self.wanted.as_ref()?;
        self.asked = Some(Asked { renewal: false, sent: now });
        Some(match &wanted.step {
            Step::Look => Question::Look,
            Step::Replace(seen, new) => Question::Replace { seen: seen.clone(), new: new.clone() },
            Step::Renew(mine) => Question::Renew(mine.clone()),
        })
    }

    /// Takes the answer to the last question.
    ///
    /// # Errors
    /// When no question with such an answer was asked.
    pub fn reply<E>(
        &mut self,
        now: Time,
        reply: Reply<E>,
    ) -> Result<Option<Completion<E>>, Illegal> {
        let Some(Asked { renewal, sent }) = self.asked else {
            return Err(self.illegal("reply", "no question was asked"));
        };
        let completion = if renewal {
            let result = self.renewal_answered(now, sent, reply)?;
            self.due = match &result {
                Ok(()) => sent + self.options.interval,
                Err(_) => now + self.options.retry,
            };
            Some(Completion::Renewal(result))
        } else {
            self.advance(now, sent, reply)?.map(Completion::Request)
        };
        self.asked = None;
        if matches!(completion, Some(Completion::Request(_))) {
            self.wanted = None;
        }
        Ok(completion)
    }

    fn illegal(&self, event: &'static str, expected: &'static str) -> Illegal {
        let state = if self.asked.is_some() { "asking" } else { "resting" };
        Illegal { machine: "the arbiter's client", state, event, expected }
    }

    fn lose(&mut self, why: String) {
        self.lease.lost();
        self.lost.get_or_insert(why);
    }

    // ---- the lease ----

    fn renewal_answered<E>(
        &mut self,
        now: Time,
        sent: Time,
        reply: Reply<E>,
    ) -> Result<Result<(), ClientError<E>>, Illegal> {
        Ok(match reply {
            Reply::Failed(error) => Err(ClientError::Failed(error)),
            Reply::Looked(snapshot) if self.mine.is_none() => self.saw(now, snapshot),
            reply => self.renewed(now, sent, reply)?,
        })
    }

    fn renewed<E>(
        &mut self,
        now: Time,
        sent: Time,
        reply: Reply<E>,
    ) -> Result<Result<(), ClientError<E>>, Illegal> {
        let Some(mine) = &self.mine else {
            return Err(self.illegal("reply", "no renewal was asked for"));
        };
        let expected = mine.held.record.term;
        match reply {
            Reply::Renewed => self.lease.renewed(sent, now),
            // P2: the record is unchanged, but a renewal of this process is missing: others may
            // have performed since, and have been undone too.
            Reply::Found(Some(found)) if found.value == mine.value => {
                return Ok(Err(ClientError::WentBack { term: expected }));
            }
            Reply::Found(Some(found))
                if found.held.record.holder == self.options.holder
                    && found.held.record.term > expected =>
            {
                // A claim of this process whose answer was lost has been carried out.
                self.won(found, None);
            }
            // The set of this term differs: an enlargement whose answer was lost has been carried
            // out, or the register went back to the time before one.
            Reply::Found(Some(found))
                if found.held.record == mine.held.record && found.held.set != mine.held.set =>
            {
                match (found.held.set_record(), mine.held.set_record()) {
                    (Some(new), Some(old)) if new.enlarges(&old) => self.mine = Some(found),
                    _ => return Ok(Err(ClientError::WentBack { term: expected })),
                }
            }
            Reply::Found(Some(found)) if found.held.record.term >= expected => {
                self.lose(found.held.record.to_string());
                self.mine = None;
            }
            Reply::Found(found) => return Ok(Err(missing(expected, found.as_ref()))),
            Reply::Failed(error) => return Ok(Err(ClientError::Failed(error))),
            _ => return Err(self.illegal("reply", "a renewal is answered by Renewed or Found")),
        }
        Ok(Ok(()))
    }

    fn won(&mut self, record: Written, begins: Option<Time>) {
        self.term = self.term.max(record.held.record.term);
        self.lease.won(begins);
        self.mine = Some(record);
    }

    /// Records how long the register has been unchanged: the holder's lease is judged by this. If
    /// something seen earlier is undone, nothing seen now is reliable (P2).
    fn saw<E>(&mut self, now: Time, snapshot: Snapshot) -> Result<(), ClientError<E>> {
        let term =
            |snapshot: &Snapshot| snapshot.term.as_ref().map_or(0, |term| term.held.record.term);
        if let Some((seen, _)) = &self.seen {
            let expected = term(seen);
            if term(&snapshot) < expected {
                return Err(missing(expected, snapshot.term.as_ref()));
            }
            if snapshot.renewal < seen.renewal {
                return Err(ClientError::WentBack { term: expected });
            }
        }
        if let Some((seen, _)) = &mut self.seen
            && deliberate!(SeenByTermOnly)
            && seen.term == snapshot.term
        {
            *seen = snapshot;
        } else if self.seen.as_ref().is_none_or(|(seen, _)| *seen != snapshot) {
            self.seen = Some((snapshot, now));
        }
        Ok(())
    }

    // ---- requests ----

    fn advance<E>(
        &mut self,
        now: Time,
        sent: Time,
        reply: Reply<E>,
    ) -> Result<Option<Result<Success, ClientError<E>>>, Illegal> {
        let Some(Wanted { request, step, .. }) = &self.wanted else {
            return Err(self.illegal("reply", "nothing was requested"));
        };
        Ok(match (step, reply) {
            (_, Reply::Failed(error)) => Some(Err(ClientError::Failed(error))),
            (Step::Look, Reply::Looked(snapshot)) => {
                let request = request.clone();
                match self.saw(now, snapshot.clone()) {
                    Ok(()) => self.decide(now, &request, snapshot),
                    Err(error) => Some(Err(error)),
                }
            }
            (Step::Replace(..), Reply::Replaced(None)) => self.again(),
            (Step::Replace(seen, _), Reply::Replaced(Some(written))) => {
                let former = seen.term.as_ref().map(|term| term.held.clone());
                Some(Ok(self.replaced(now, sent, former.as_ref(), written)))
            }
            (Step::Renew(_), reply @ (Reply::Renewed | Reply::Found(_))) => {
                let granted = self.granted();
                Some(self.renewed(now, sent, reply)?.map(|()| granted))
            }
            _ => return Err(self.illegal("reply", "another question was asked")),
        })
    }

    /// Another process was faster: start again with a look.
    fn again<E>(&mut self) -> Option<Result<Success, ClientError<E>>> {
        let wanted = self.wanted.as_mut()?;
        wanted.rounds -= 1;
        wanted.step = Step::Look;
        (wanted.rounds == 0).then_some(Err(ClientError::Changing))
    }

    fn go_on<E>(&mut self, step: Step) -> Option<Result<Success, ClientError<E>>> {
        if let Some(wanted) = &mut self.wanted {
            wanted.step = step;
        }
        None
    }

    fn decide<E>(
        &mut self,
        now: Time,
        request: &Request,
        snapshot: Snapshot,
    ) -> Option<Result<Success, ClientError<E>>> {
        match request {
            Request::Look => Some(self.look(snapshot.term.as_ref())),
            Request::Claim { term, why } => self.claim(now, (*term, why), None, snapshot),
            Request::Begin { seize } => self.begin(now, *seize, None, snapshot),
            Request::End { term } => self.end(*term, snapshot),
            Request::ClaimImage { claim, why } => {
                let term = Term(claim.next.term);
                self.claim(now, (term, why), Some(claim), snapshot)
            }
            Request::BeginImage(start) => self.begin(now, start.seize, Some(start), snapshot),
            Request::Enlarge { term, member } => self.enlarge(*term, member, snapshot),
        }
    }

    /// P9: a register that went back, or is another one, would grant nothing to the successor of a
    /// term that it does not know.
    fn look<E>(&self, found: Option<&Written>) -> Result<Success, ClientError<E>> {
        let Some((term, expected)) = &self.followed else { return Ok(Success::Looked) };
        match found.map(|found| &found.held.record) {
            Some(record) if record.term > term.0 => Ok(Success::Looked),
            Some(record) if record.term == term.0 && record.holder == *expected => {
                Ok(Success::Looked)
            }
            Some(record) if record.term == term.0 => Err(ClientError::Stranger {
                expected: expected.clone(),
                found: Box::new(record.clone()),
            }),
            _ => Err(missing(term.0, found)),
        }
    }

    fn claim<E>(
        &mut self,
        now: Time,
        (term, why): (Term, &str),
        image: Option<&ImageClaim>,
        snapshot: Snapshot,
    ) -> Option<Result<Success, ClientError<E>>> {
        let before = term.0.saturating_sub(1);
        let Some(current) = &snapshot.term else { return Some(Err(missing(before, None))) };
        let record = &current.held.record;
        if record.term == term.0 && record.holder == self.options.holder {
            return self.adopt(now, image.is_some(), current.clone());
        }
        if record.term >= term.0 {
            return Some(Ok(Success::Denied(record.clone())));
        }
        if record.term + 1 != term.0 {
            return Some(Err(missing(before, Some(current))));
        }
        // P2: the number is not enough. The holder of the former term must be this process, or the
        // one that it has followed.
        if let Some(expected) = self.known_holder(before).filter(|known| *known != record.holder) {
            return Some(if expected == self.options.holder {
                Ok(Success::Denied(record.clone()))
            } else {
                Err(ClientError::Stranger { expected, found: Box::new(record.clone()) })
            });
        }
        if current.held.ended {
            // The machine ended in good order, and its standby was not reached: it must not be
            // continued.
            let why = format!("{} ended the machine", record.holder);
            return Some(Ok(Success::Denied(TermRecord { why, ..record.clone() })));
        }
        let set = match self.claimed(&current.held, image) {
            Ok(set) => set,
            Err(refusal) => return Some(Ok(Success::Refused(refusal))),
        };
        let new = Held { set, ..self.held(Some(&current.held), term, why) };
        self.go_on(Step::Replace(snapshot, new))
    }

    /// The set of the term after `last`. A claimant with own disks has to know its holder.
    fn claimed(
        &self,
        last: &Held,
        image: Option<&ImageClaim>,
    ) -> Result<Option<ImageSet>, SetError> {
        let Some(claim) = image else { return last.last().shared().map(|()| None) };
        let follows = self.known_holder(last.record.term).unwrap_or_default();
        last.last().claimed((&self.options.holder, &follows), claim).map(Some)
    }

    fn known_holder(&self, term: u64) -> Option<String> {
        if self.mine.as_ref().is_some_and(|mine| mine.held.record.term == term) {
            return Some(self.options.holder.clone());
        }
        let followed = self.followed.as_ref().filter(|(of, _)| of.0 == term);
        followed.map(|(_, holder)| holder.clone())
    }

    fn begin<E>(
        &mut self,
        now: Time,
        seize: bool,
        image: Option<&ImageStart>,
        snapshot: Snapshot,
    ) -> Option<Result<Success, ClientError<E>>> {
        if let Some(current) = &snapshot.term
            && current.held.record.holder == self.options.holder
        {
            return self.adopt(now, image.is_some(), current.clone());
        }
        let last = snapshot.term.as_ref().map(|term| (&term.held.record, term.held.ended));
        let term = match beginning(last, self.disk.as_ref(), seize) {
            Beginning::In(term) => term,
            Beginning::Taken(record) => return Some(Ok(Success::Taken(record))),
            Beginning::Behind(claim) => {
                let last = last.map(|(record, _)| record.clone());
                return Some(Ok(Success::Behind(last, claim)));
            }
        };
        let last = snapshot.term.as_ref().map(|term| &term.held);
        let set = match (image, last) {
            (Some(start), _) => begun(last.map(Held::last), &self.options.holder, start).map(Some),
            (None, Some(last)) => last.last().shared().map(|()| None),
            (None, None) => Ok(None),
        };
        let set = match set {
            Ok(set) => set,
            Err(refusal) => return Some(Ok(Success::Refused(refusal))),
        };
        let new = Held { set, ..self.held(last, term, "start") };
        self.go_on(Step::Replace(snapshot, new))
    }

    fn enlarge<E>(
        &mut self,
        term: Term,
        member: &Member,
        snapshot: Snapshot,
    ) -> Option<Result<Success, ClientError<E>>> {
        let current = match &snapshot.term {
            Some(current) if current.held.record.term >= term.0 => current,
            found => return Some(Err(missing(term.0, found.as_ref()))),
        };
        let record = &current.held.record;
        let ours = (record.term, record.holder.as_str()) == (term.0, self.options.holder.as_str());
        if !ours || current.held.ended || self.lost.is_some() {
            return Some(Ok(Success::Denied(record.clone())));
        }
        let set = match current.held.last().enlarged(&record.holder, member) {
            Ok(set) => Some(set),
            Err(refusal) => return Some(Ok(Success::Refused(refusal))),
        };
        if set == current.held.set {
            // It was carried out before, and its answer was lost.
            let current = current.clone();
            self.mine = Some(current.clone());
            return self.go_on(Step::Renew(current));
        }
        let new = Held { set, ..current.held.clone() };
        self.go_on(Step::Replace(snapshot, new))
    }

    fn end<E>(
        &mut self,
        term: Term,
        snapshot: Snapshot,
    ) -> Option<Result<Success, ClientError<E>>> {
        let ours =
            |held: &Held| held.record.term == term.0 && held.record.holder == self.options.holder;
        match &snapshot.term {
            Some(current) if ours(&current.held) && current.held.ended => Some(Ok(Success::Ended)),
            Some(current) if ours(&current.held) => {
                let new = Held { ended: true, ..current.held.clone() };
                self.go_on(Step::Replace(snapshot, new))
            }
            found => Some(Err(missing(term.0, found.as_ref()))),
        }
    }

    /// Adopts a term that this process won earlier, but whose answer was lost. The time of winning
    /// is unknown, so the former holder's lease is waited for from now on.
    fn adopt<E>(
        &mut self,
        now: Time,
        with_set: bool,
        current: Written,
    ) -> Option<Result<Success, ClientError<E>>> {
        if with_set != current.held.set.is_some() {
            // A process asks either with own disks or without: it did not ask for this record.
            return Some(Ok(Success::Denied(current.held.record)));
        }
        let waits = self.mine.is_none() && !deliberate!(AdoptDoesNotWait);
        let begins = now + Duration::from_millis(current.held.lease_ms);
        self.won(current.clone(), waits.then_some(begins));
        self.go_on(Step::Renew(current))
    }

    fn replaced(
        &mut self,
        now: Time,
        sent: Time,
        former: Option<&Held>,
        written: Written,
    ) -> Success {
        if written.held.ended {
            return Success::Ended;
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        // P2: another holder may perform while its lease lasts. This process's own lease continues
        // in the new term.
        let waits = former.filter(|held| !held.ended && held.record.holder != self.options.holder);
        let begins = waits.map(|held| since + Duration::from_millis(held.lease_ms));
        self.won(written, begins);
        self.lease.renewed(sent, now);
        self.granted()
    }

    fn granted(&self) -> Success {
        // A process with own disks gets the set with each answer: a claim that was carried out
        // earlier has the generation of that time.
        if let Some(record) = self.mine.as_ref().and_then(|mine| mine.held.set_record()) {
            return Success::Recorded(record);
        }
        match self.wanted.as_ref().map(|wanted| &wanted.request) {
            Some(Request::Begin { .. }) => Success::Began(Term(self.term)),
            _ => Success::Granted,
        }
    }

    fn held(&self, former: Option<&Held>, term: Term, why: &str) -> Held {
        let record = TermRecord {
            vm: self.options.vm.clone(),
            term: term.0,
            holder: self.options.holder.clone(),
            why: why.to_owned(),
            won_at: 0,
        };
        let own = u64::try_from(self.lease.length().as_millis()).unwrap_or(u64::MAX);
        let earlier = former.filter(|held| !held.ended).map_or(0, |held| held.lease_ms);
        Held { record, lease_ms: own.max(earlier), ended: false, set: None }
    }
}

fn missing<E>(expected: u64, found: Option<&Written>) -> ClientError<E> {
    ClientError::Missing { expected, found: found.map(|found| Box::new(found.held.record.clone())) }
}
