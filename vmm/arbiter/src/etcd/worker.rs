//! The thread that talks to etcd.
//!
//! It carries each question of [`ft_core::arbiter::Client`] to the store and the answer back, one
//! at a time, and answers the callers.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ft_core::arbiter::{
    Client, ClientError, Completion, DiskClaim, ImageClaim, ImageStart, Question, Reply, Request,
    Success, TermRecord,
};
use ft_core::disks::set::Member;
use io_gate::host::Term;
use tokio::sync::mpsc::UnboundedReceiver;

use super::store::{Identity, Side, Store};
use crate::clock::boottime;
use crate::lease::SharedLease;
use crate::{ArbiterError, SetVerdict, Verdict};

/// A command, with the channel for its answer.
pub(super) enum Command {
    Look(SyncSender<Result<(), ArbiterError>>),
    Claim(Term, String, SyncSender<Result<Verdict, ArbiterError>>),
    /// Begins a term. Carries the claim from the records beside the machine's disks, and whether to
    /// override a holder.
    Begin(Option<DiskClaim>, bool, SyncSender<Result<Term, ArbiterError>>),
    /// Another process holds this term; the caller expects no answer.
    Follow(Term, String),
    /// Reads this etcd's identity; first writes a new mark if a side is given.
    Identify(Option<Side>, SyncSender<Result<Identity, ArbiterError>>),
    End(Term, SyncSender<Result<(), ArbiterError>>),
    /// Reads the term that a start would win now.
    NextTerm(SyncSender<Result<Term, ArbiterError>>),
    /// A question of a side with own disks.
    Image(ImageQuestion, SyncSender<Result<SetVerdict, ArbiterError>>),
}

/// What a side with own disks asks.
pub(super) enum ImageQuestion {
    Claim(ImageClaim, String),
    Begin(Box<ImageStart>),
    Enlarge(Term, Member),
}

impl ImageQuestion {
    fn request(&self) -> Request {
        match self {
            Self::Claim(claim, why) => {
                Request::ClaimImage { claim: claim.clone(), why: why.clone() }
            }
            Self::Begin(start) => Request::BeginImage(start.clone()),
            Self::Enlarge(term, member) => Request::Enlarge { term: *term, member: member.clone() },
        }
    }
}

impl Command {
    fn request(&self) -> Request {
        match self {
            Self::Follow(..) | Self::Identify(..) | Self::NextTerm(_) => {
                unreachable!("not a request of the client")
            }
            Self::Look(_) => Request::Look,
            Self::Claim(term, why, _) => Request::Claim { term: *term, why: why.clone() },
            Self::Begin(_, seize, _) => Request::Begin { seize: *seize },
            Self::End(term, _) => Request::End { term: *term },
            Self::Image(question, _) => question.request(),
        }
    }

    /// Sends the result to the caller, which may have given up.
    fn answer(self, vm: &str, place: &str, result: Result<Success, ArbiterError>) {
        let odd = |success: Success| -> ArbiterError { unreachable!("it came to {success:?}") };
        let result = match (result, &self) {
            (Ok(Success::Refused(refusal)), Self::Claim(..) | Self::Begin(..)) => {
                Err(ArbiterError::Refused { vm: vm.to_owned(), refusal: refusal.into() })
            }
            (result, _) => result,
        };
        let place = place.to_owned();
        match self {
            Self::Follow(..) => {}
            Self::Identify(_, to) => drop(to.send(result.and_then(|other| Err(odd(other))))),
            Self::NextTerm(to) => drop(to.send(result.and_then(|other| Err(odd(other))))),
            Self::Look(to) => drop(to.send(result.map(drop))),
            Self::Claim(_, _, to) => drop(to.send(result.and_then(|success| match success {
                Success::Granted => Ok(Verdict::Granted),
                Success::Denied(record) => Ok(Verdict::Denied(record)),
                other => Err(odd(other)),
            }))),
            Self::Begin(_, _, to) => drop(to.send(result.and_then(|success| match success {
                Success::Began(term) => Ok(term),
                Success::Taken(record) => Err(ArbiterError::Taken { place, record: record.into() }),
                Success::Behind(last, claim) => Err(ArbiterError::behind(place, last, claim)),
                other => Err(odd(other)),
            }))),
            Self::End(_, to) => drop(to.send(result.map(drop))),
            Self::Image(_, to) => drop(to.send(result.and_then(|success| match success {
                Success::Recorded(record) => Ok(SetVerdict::Recorded(record)),
                Success::Denied(record) => Ok(SetVerdict::Denied(record)),
                Success::Refused(refusal) => Ok(SetVerdict::Refused(refusal)),
                Success::Taken(record) => Err(ArbiterError::Taken { place, record: record.into() }),
                other => Err(odd(other)),
            }))),
        }
    }

    /// Whether to ask once more than each member once: the answer may be lost after the question
    /// was carried out.
    fn is_repeated(&self) -> bool {
        matches!(self, Self::Begin(..) | Self::Image(..))
    }
}

/// A command with the number of attempts left.
struct Pending {
    command: Command,
    tries: usize,
}

/// The state of the thread.
pub(super) struct Worker {
    store: Store,
    client: Client,
    lease: Arc<SharedLease>,
    pending: Option<Pending>,
    in_trouble: bool,
}

impl Worker {
    pub(super) fn new(store: Store, client: Client, lease: Arc<SharedLease>) -> Self {
        Self { store, client, lease, pending: None, in_trouble: false }
    }

    /// Serves commands until every sender is dropped.
    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        loop {
            while let Some(question) = self.client.next(boottime()) {
                self.ask(question).await;
            }
            let due = self.client.next_deadline().since(boottime());
            tokio::select! {
                biased;
                () = tokio::time::sleep(due) => {}
                command = commands.recv() => match command {
                    Some(Command::Follow(term, holder)) => self.client.follow(term, &holder),
                    Some(Command::Identify(leave, to)) => {
                        // The send at the end may fail: the caller may have given up.
                        let identity = match leave {
                            Some(side) => self.store.leave_mark(side).await,
                            None => self.store.identify().await,
                        };
                        drop(to.send(identity));
                    }
                    Some(Command::NextTerm(to)) => {
                        let last = self.store.look().await;
                        let last = last.map(|seen| seen.term.map_or(0, |term| term.held.record.term));
                        drop(to.send(last.map(|last| Term(last).next())));
                    }
                    Some(command) => self.obey(command),
                    None => return,
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let tries = self.store.options().endpoints.len() + usize::from(command.is_repeated());
        match &command {
            Command::Begin(disk, ..) => self.client.set_disk_claim(disk.clone()),
            Command::Image(ImageQuestion::Begin(_), _) => self.client.set_disk_claim(None),
            _ => {}
        }
        self.pursue(Pending { command, tries });
    }

    fn pursue(&mut self, pending: Pending) {
        let request = pending.command.request();
        self.client.request(request).expect("the last command has been answered");
        self.lease.show(&self.client);
        self.pending = Some(pending);
    }

    async fn ask(&mut self, question: Question) {
        let reply = self.carry(question).await.unwrap_or_else(Reply::Failed);
        let completion =
            self.client.reply(boottime(), reply).expect("it is the answer to the question");
        self.lease.show(&self.client);
        match completion {
            Some(Completion::Renewal(result)) => self.tell_renewal(result),
            Some(Completion::Request(result)) => self.tell(result),
            None => {}
        }
    }

    async fn carry(&mut self, question: Question) -> Result<Reply<ArbiterError>, ArbiterError> {
        Ok(match question {
            Question::Look => Reply::Looked(self.store.look().await?),
            Question::Replace { seen, new } => {
                let new = self.store.encode(new)?;
                let replaced = self.store.replace(&seen, &new).await?;
                Reply::Replaced(replaced.then_some(new))
            }
            Question::Renew(mine) => self.store.renew(&mine).await?,
        })
    }

    fn tell_renewal(&mut self, result: Result<(), ClientError<ArbiterError>>) {
        let Err(error) = result else {
            if std::mem::take(&mut self.in_trouble) {
                log::info!("arbiter: etcd at {} answers again", self.store.endpoint());
            }
            return;
        };
        let error = self.error(error);
        self.lease.set_reason(&error.to_string());
        if std::mem::replace(&mut self.in_trouble, true) {
            log::debug!("arbiter: {error}");
        } else {
            log::warn!("arbiter: {error}");
        }
    }

    fn tell(&mut self, result: Result<Success, ClientError<ArbiterError>>) {
        let Some(Pending { command, tries }) = self.pending.take() else { return };
        let again = matches!(result, Err(ClientError::Failed(ArbiterError::Etcd { .. })));
        if again && tries > 1 {
            return self.pursue(Pending { command, tries: tries - 1 });
        }
        let result = result.map_err(|error| self.error(error));
        let place = format!("etcd's {}", self.store.term_key());
        command.answer(self.store.vm(), &place, result);
    }

    fn error(&self, error: ClientError<ArbiterError>) -> ArbiterError {
        let problem = match error {
            ClientError::Failed(error) => return error,
            ClientError::Stranger { expected, found } => {
                let place = format!("etcd's {}", self.store.term_key());
                return ArbiterError::OtherHolder { place, expected, record: found };
            }
            ClientError::WentBack { term } => format!(
                "expected term {term} of virtual machine `{}` in the state that this process saw last, found an older \
                 state: etcd's data went back. Another machine may also run this guest: stop one of the two",
                self.store.vm()
            ),
            ClientError::Missing { expected, found } => self.missing(expected, found.as_deref()),
            ClientError::Changing => format!(
                "expected {} to stay unchanged for a moment, found that it keeps changing",
                self.store.term_key()
            ),
        };
        ArbiterError::Etcd { endpoint: self.store.endpoint().to_owned(), problem }
    }

    /// Describes a missing term: etcd was restored from a backup, or the key was deleted.
    fn missing(&self, expected: u64, found: Option<&TermRecord>) -> String {
        let found = match found {
            Some(record) => format!("term {} of {}", record.term, record.holder),
            None => "nothing".to_owned(),
        };
        format!(
            "expected term {expected} of virtual machine `{}` in {}, found {found}; --arbiter must name the same etcd \
             on both hosts, and its data must not go back",
            self.store.vm(),
            self.store.term_key()
        )
    }
}
