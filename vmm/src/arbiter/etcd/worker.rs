//! The thread that talks to etcd: it renews the lease, watches others', and claims terms.
//!
//! One thing at a time: a renewal and a claim never overlap, so that what a renewal finds is never
//! this process's own claim under way, but for one whose answer was lost.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_gate::host::Term;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::store::{Held, Renewal, Snapshot, Store, Written};
use crate::arbiter::clock::Boottime;
use crate::arbiter::lease::Lease;
use crate::arbiter::{ArbiterError, TermRecord, Verdict};

/// A claim that meets a renewal by the holder is made again; no more often than this.
const CLAIM_ROUNDS: usize = 8;

/// What to do, and where the answer goes.
pub(super) enum Command {
    Look(SyncSender<Result<(), ArbiterError>>),
    Claim(Term, String, SyncSender<Result<Verdict, ArbiterError>>),
    Begin(bool, SyncSender<Result<Term, ArbiterError>>),
    End(Term, SyncSender<Result<(), ArbiterError>>),
}

/// What was seen at etcd, and since when it has been so.
struct Seen {
    snapshot: Snapshot,
    since: Boottime,
}

/// See the module.
pub(super) struct Worker {
    store: Store,
    vm: String,
    holder: String,
    lease: Arc<Lease>,
    /// The record of the term that this process holds.
    mine: Option<Written>,
    seen: Option<Seen>,
    in_trouble: bool,
}

impl Worker {
    pub(super) fn new(store: Store, vm: String, holder: String, lease: Arc<Lease>) -> Self {
        Self { store, vm, holder, lease, mine: None, seen: None, in_trouble: false }
    }

    /// Works until nobody is left who could give commands.
    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let interval = self.store.options().interval();
        let mut due = Instant::now() + interval;
        loop {
            tokio::select! {
                // A renewal that is due goes first: commands can wait, the lease does not.
                biased;
                () = tokio::time::sleep_until(due) => {
                    let begun = Instant::now();
                    let done = self.beat().await;
                    due = if done { begun + interval } else { Instant::now() + self.store.options().retry() };
                }
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have given up.
        match command {
            Command::Look(answer) => drop(answer.send(self.look_anywhere().await)),
            Command::Claim(term, why, answer) => {
                drop(answer.send(self.claim_anywhere(term, &why).await));
            }
            Command::Begin(seize, answer) => drop(answer.send(self.begin_anywhere(seize).await)),
            Command::End(term, answer) => drop(answer.send(self.end(term).await)),
        }
    }

    /// Renews the lease, or looks at who does; whether etcd has answered.
    async fn beat(&mut self) -> bool {
        let result = match self.mine.clone() {
            Some(mine) => self.renew(&mine).await,
            None => self.look().await.map(drop),
        };
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.in_trouble) {
                    log::info!("arbiter: etcd at {} answers again", self.store.endpoint());
                }
                true
            }
            Err(error) => {
                self.lease.trouble(&error.to_string());
                if std::mem::replace(&mut self.in_trouble, true) {
                    log::debug!("arbiter: {error}");
                } else {
                    log::warn!("arbiter: {error}");
                }
                false
            }
        }
    }

    async fn renew(&mut self, mine: &Written) -> Result<(), ArbiterError> {
        let sent = Boottime::now();
        match self.store.renew(mine).await? {
            Renewal::Renewed => {
                self.lease.renewed(sent);
                Ok(())
            }
            Renewal::Found(Some(found)) if found.held.record.holder == self.holder => {
                // A claim of this process whose answer was lost has been carried out after all.
                self.lease.won(found.held.record.term, None);
                self.mine = Some(found);
                Ok(())
            }
            Renewal::Found(Some(found)) if found.held.record.term >= mine.held.record.term => {
                self.lease.lost(found.held.record.to_string());
                self.mine = None;
                Ok(())
            }
            Renewal::Found(found) => Err(self.missing(mine.held.record.term, found.as_ref())),
        }
    }

    /// The term that must be there is not: etcd was restored from a backup, or somebody has deleted it.
    fn missing(&self, expected: u64, found: Option<&Written>) -> ArbiterError {
        let found = match found {
            Some(found) => {
                format!("term {} of {}", found.held.record.term, found.held.record.holder)
            }
            None => "nothing".to_owned(),
        };
        let problem = format!(
            "expected term {expected} of virtual machine `{}` in {}, found {found}; --arbiter must name the same etcd \
             on both hosts, and its data must not go back",
            self.vm,
            self.store.term_key()
        );
        ArbiterError::Etcd { endpoint: self.store.endpoint().to_owned(), problem }
    }

    /// Looks, and keeps count of how long it has been so: the lease of whoever beats is judged by it.
    async fn look(&mut self) -> Result<Snapshot, ArbiterError> {
        let snapshot = self.store.look().await?;
        if self.seen.as_ref().is_none_or(|seen| seen.snapshot != snapshot) {
            self.seen = Some(Seen { snapshot: snapshot.clone(), since: Boottime::now() });
        }
        Ok(snapshot)
    }

    async fn look_anywhere(&mut self) -> Result<(), ArbiterError> {
        let mut result = self.look().await;
        for _ in 1..self.store.options().endpoints.len() {
            if result.is_ok() {
                break;
            }
            result = self.look().await;
        }
        result.map(drop)
    }

    async fn claim_anywhere(&mut self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        let mut result = self.claim(term, why).await;
        for _ in 1..self.store.options().endpoints.len() {
            if !matches!(result, Err(ArbiterError::Etcd { .. })) {
                break;
            }
            result = self.claim(term, why).await;
        }
        result
    }

    async fn claim(&mut self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        for _ in 0..CLAIM_ROUNDS {
            let snapshot = self.look().await?;
            let Some(current) = &snapshot.term else {
                return Err(self.missing(term.0 - 1, None));
            };
            let record = &current.held.record;
            if record.term == term.0 && record.holder == self.holder {
                return self.adopt(current.clone()).await;
            }
            if record.term >= term.0 {
                return Ok(Verdict::Denied(record.clone()));
            }
            if record.term + 1 != term.0 {
                return Err(self.missing(term.0 - 1, Some(current)));
            }
            if current.held.ended {
                // The machine ended in good order, and its standby was not reached: nobody brings it back.
                let why = format!("{} ended the machine", record.holder);
                return Ok(Verdict::Denied(TermRecord { why, ..record.clone() }));
            }
            if self.take(&snapshot, term, why).await? {
                return Ok(Verdict::Granted);
            }
        }
        Err(self.changing())
    }

    fn changing(&self) -> ArbiterError {
        let problem =
            format!("expected {} to rest for a moment, found it changing", self.store.term_key());
        ArbiterError::Etcd { endpoint: self.store.endpoint().to_owned(), problem }
    }

    /// A term won earlier by this process, whose answer was lost. When it was won is not known, so the
    /// former holder's lease is waited for from now on.
    async fn adopt(&mut self, current: Written) -> Result<Verdict, ArbiterError> {
        let known = self.mine.as_ref().is_some_and(|mine| mine.value == current.value);
        let waits = !known && self.mine.is_none();
        let length = Duration::from_millis(current.held.lease_ms);
        let begins = waits.then(|| Boottime::now() + length);
        self.lease.won(current.held.record.term, begins);
        self.mine = Some(current.clone());
        self.renew(&current).await?;
        Ok(Verdict::Granted)
    }

    /// Takes `term` if all is still as in `snapshot`, which is the last one seen.
    async fn take(
        &mut self,
        snapshot: &Snapshot,
        term: Term,
        why: &str,
    ) -> Result<bool, ArbiterError> {
        let former = snapshot.term.as_ref().map(|term| &term.held);
        let new = self.store.encode(self.held(former, term, why))?;
        let sent = Boottime::now();
        if !self.store.replace(snapshot, &new).await? {
            return Ok(false);
        }
        let since = self.seen.as_ref().map_or_else(Boottime::now, |seen| seen.since);
        // P2: others may perform as long as their lease runs; one's own goes over into the new term.
        let waits = former.filter(|held| !held.ended && held.record.holder != self.holder);
        self.lease.won(term.0, waits.map(|held| since + Duration::from_millis(held.lease_ms)));
        self.lease.renewed(sent);
        self.mine = Some(new);
        Ok(true)
    }

    fn held(&self, former: Option<&Held>, term: Term, why: &str) -> Held {
        let won_at =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = TermRecord {
            vm: self.vm.clone(),
            term: term.0,
            holder: self.holder.clone(),
            why: why.to_owned(),
            won_at,
        };
        let own = u64::try_from(self.lease.length().as_millis()).unwrap_or(u64::MAX);
        let earlier = former.filter(|held| !held.ended).map_or(0, |held| held.lease_ms);
        Held { record, lease_ms: own.max(earlier), ended: false }
    }

    async fn begin_anywhere(&mut self, seize: bool) -> Result<Term, ArbiterError> {
        // One round more than there are members: an answer may get lost, and the term be won.
        let mut result = self.begin(seize).await;
        for _ in 0..self.store.options().endpoints.len() {
            if !matches!(result, Err(ArbiterError::Etcd { .. })) {
                break;
            }
            result = self.begin(seize).await;
        }
        result
    }

    async fn begin(&mut self, seize: bool) -> Result<Term, ArbiterError> {
        for _ in 0..CLAIM_ROUNDS {
            let snapshot = self.look().await?;
            let term = match &snapshot.term {
                None => Term(1),
                Some(current) if current.held.record.holder == self.holder => {
                    let term = Term(current.held.record.term);
                    self.adopt(current.clone()).await?;
                    return Ok(term);
                }
                Some(current) if !current.held.ended && !seize => {
                    return Err(ArbiterError::Taken(current.held.record.clone()));
                }
                Some(current) => Term(current.held.record.term).next(),
            };
            if self.take(&snapshot, term, "start").await? {
                return Ok(term);
            }
        }
        Err(self.changing())
    }

    async fn end(&mut self, term: Term) -> Result<(), ArbiterError> {
        let Some(mine) = self.mine.clone().filter(|mine| mine.held.record.term == term.0) else {
            return Err(self.missing(term.0, self.mine.as_ref()));
        };
        // Before others are told that they need not wait.
        self.lease.lost("the machine has ended".to_owned());
        self.mine = None;
        let ended = self.store.encode(Held { ended: true, ..mine.held.clone() })?;
        for _ in 0..CLAIM_ROUNDS {
            let snapshot = self.look().await?;
            match &snapshot.term {
                Some(current) if *current == mine => {}
                Some(current) if *current == ended => return Ok(()),
                found => return Err(self.missing(term.0, found.as_ref())),
            }
            if self.store.replace(&snapshot, &ended).await? {
                return Ok(());
            }
        }
        Err(self.changing())
    }
}
