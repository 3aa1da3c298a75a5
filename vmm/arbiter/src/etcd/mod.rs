//! The `etcd:` arbiter: a transaction on a key wins a term, and a lease holds it (P2).
//!
//! This module is a blocking front. etcd's client and its runtime live on a thread of their own
//! (`worker`); the rest of the program does not see them. [`ft_core::arbiter`] decides what to ask
//! and when, and ensures that two processes never hold a lease; the simulation runs the same code.
//! `store` has the keys and transactions, `api` and `member` the protocol.
//!
//! Leases here are not etcd's own: those count whole seconds, follow the clock of etcd's leader,
//! and are extended by every election.

mod api;
mod member;
mod options;
mod store;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use ft_core::arbiter::{Client, DiskClaim, ImageClaim, ImageStart};
use ft_core::disks::set::Member;
use ft_core::handshake::ArbiterView;
use io_gate::host::Term;
use io_gate_host::Fence;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::clock::boottime;
use super::lease::SharedLease;
use super::{Arbiter, ArbiterError, SetArbiter, SetVerdict, Verdict};
pub use options::EtcdOptions;
use store::{Identity, Side, Store};
use worker::{Command, ImageQuestion, Worker};

/// The front: sends commands to the worker and waits for their answers.
#[derive(Debug)]
pub struct EtcdArbiter {
    commands: UnboundedSender<Command>,
    lease: Arc<SharedLease>,
    holder: String,
    endpoints: String,
    patience: Duration,
}

impl EtcdArbiter {
    /// Connects as `holder`, the name under which this process claims terms of the virtual machine
    /// `vm`.
    ///
    /// # Errors
    /// When no member answers, or a member refuses this side.
    pub fn open(options: EtcdOptions, vm: &str, holder: String) -> Result<Self, ArbiterError> {
        /// Number of unanswered questions to each member that one command may wait for.
        const ROUNDS: u32 = 12;
        let endpoints = options.endpoints.join(",");
        let members = u32::try_from(options.endpoints.len()).unwrap_or(u32::MAX);
        let patience = options.patience().saturating_mul(members.saturating_mul(ROUNDS));
        let lease = Arc::new(SharedLease::new(options.lease, holder.clone()));
        let (commands, received) = unbounded_channel();
        let problem = |error: std::io::Error| ArbiterError::Etcd {
            endpoint: endpoints.clone(),
            problem: format!("cannot start the thread that asks it: {error}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("arbiter-dns")
            .build()
            .map_err(problem)?;
        let client = Client::new(options.client(vm, holder.clone()), boottime());
        let worker = Worker::new(Store::new(options, vm), client, lease.clone());
        threads::start("etcd", Role::Main, move || runtime.block_on(worker.run(received)))
            .map_err(problem)?;
        let arbiter = Self { commands, lease, holder, endpoints, patience };
        arbiter.ask(Command::Look)?;
        Ok(arbiter)
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(SyncSender<Result<T, ArbiterError>>) -> Command,
    ) -> Result<T, ArbiterError> {
        let (answer, answered) = sync_channel(1);
        let silent = |found: &str| ArbiterError::Etcd {
            endpoint: self.endpoints.clone(),
            problem: format!("expected an answer within {:?}, found {found}", self.patience),
        };
        self.commands.send(command(answer)).map_err(|_| silent("its thread has ended"))?;
        answered.recv_timeout(self.patience).map_err(|_| silent("none"))?
    }
}

impl EtcdArbiter {
    fn view(&self, leave: Option<Side>) -> Result<ArbiterView, ArbiterError> {
        let Identity { id, mark, counter_mark } =
            self.ask(|answer| Command::Identify(leave, answer))?;
        let (kind, place) = (self.kind().to_owned(), format!("etcd:{}", self.endpoints));
        Ok(ArbiterView { kind, place, id, mark, counter_mark })
    }
}

impl Arbiter for EtcdArbiter {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn answers(&self) -> Result<(), ArbiterError> {
        self.ask(Command::Look).map(drop)
    }

    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        self.ask(|answer| Command::Claim(term, why.to_owned(), answer))
    }

    fn holder(&self) -> &str {
        &self.holder
    }

    fn follow(&self, term: Term, holder: &str) {
        // A thread that has ended makes no more claims.
        let _ = self.commands.send(Command::Follow(term, holder.to_owned()));
    }

    fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError> {
        self.ask(|answer| Command::Begin(disk.cloned(), seize, answer))
    }

    fn mark(&self) -> Result<ArbiterView, ArbiterError> {
        self.view(Some(Side::Primary))
    }

    fn counter_mark(&self) -> Result<ArbiterView, ArbiterError> {
        self.view(Some(Side::Standby))
    }

    fn read_marks(&self) -> Result<ArbiterView, ArbiterError> {
        self.view(None)
    }

    fn end(&self, term: Term) -> Result<(), ArbiterError> {
        self.ask(|answer| Command::End(term, answer))
    }

    fn fence(&self) -> Arc<dyn Fence> {
        self.lease.clone()
    }
}

impl EtcdArbiter {
    fn ask_image(&self, question: ImageQuestion) -> Result<SetVerdict, ArbiterError> {
        self.ask(|answer| Command::Image(question, answer))
    }
}

impl SetArbiter for EtcdArbiter {
    fn next_term(&self) -> Result<Term, ArbiterError> {
        self.ask(Command::NextTerm)
    }

    fn claim_image(&self, claim: &ImageClaim, why: &str) -> Result<SetVerdict, ArbiterError> {
        self.ask_image(ImageQuestion::Claim(claim.clone(), why.to_owned()))
    }

    fn begin_image(&self, start: &ImageStart) -> Result<SetVerdict, ArbiterError> {
        self.ask_image(ImageQuestion::Begin(Box::new(start.clone())))
    }

    fn enlarge(&self, term: Term, member: &Member) -> Result<SetVerdict, ArbiterError> {
        self.ask_image(ImageQuestion::Enlarge(term, member.clone()))
    }
}
