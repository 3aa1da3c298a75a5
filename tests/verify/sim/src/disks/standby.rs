//! The driver of a standby with own disks.

use std::collections::{BTreeSet, HashSet};

use ft_core::disks::set::{Claim, SetError};
use ft_core::disks::{
    Cover, Entry, Event as D, FlushMode, Message, Operation, Payload, Queue, Report, Seq, Standing,
    State, Ticket, resync,
};
use ft_core::primary::{Event as P, Primary};
use ft_core::standby::{Action, Event as S, Phase, Standby, TakenOver};
use ft_core::wire::Message as Wired;
use ft_core::{Epoch, LinkId, Term};
use io_gate::host::{OwnGate, OwnPorts, new_gate_with_own_disks};

use super::guest::{Guest, Kind, PAGES};
use super::host::Engine;
use super::image::SECTOR;
use super::primary::{Active, HASH_SEED, Job, LIMITS};
use super::register::Question;
use super::{Ask, MS, PATIENCE, Role, World, bytes_of, trace};

pub(super) struct Passive {
    core: Standby,
    pub(super) engine: Engine,
    queue: Option<Queue>,
    running: Vec<(Ticket, u64, usize)>,
    marked: HashSet<Ticket>,
    applied: Option<Guest>,
    link: Option<LinkId>,
    /// The image has still to be described to the primary.
    describes: bool,
    /// The list of this session has begun: reports of an earlier list say nothing about it.
    begun: bool,
    /// The process of the primary that has staged what is in the queue.
    by: u64,
    follows: String,
    resync: bool,
    cover: Option<Cover>,
    equal: bool,
    covered: bool,
    reported: Report,
    ask: Option<Ask>,
    /// Flushes that have come, and are not performed.
    flushes: BTreeSet<Seq>,
}

impl Passive {
    pub(super) fn new(core: Standby, engine: Engine) -> Self {
        Self {
            core,
            engine,
            queue: None,
            running: Vec::new(),
            marked: HashSet::new(),
            applied: None,
            link: None,
            describes: false,
            begun: false,
            by: 0,
            follows: String::new(),
            resync: false,
            cover: None,
            equal: false,
            covered: false,
            reported: Report::default(),
            ask: None,
            flushes: BTreeSet::new(),
        }
    }

    /// For a trace.
    pub(super) fn status(&self) -> String {
        let queue =
            self.queue.as_ref().map(|queue| (queue.last(), queue.performed(), queue.durable()));
        let startable: Vec<Ticket> = self.queue.iter().flat_map(Queue::startable).collect();
        format!(
            "standby {:?}, queue {queue:?}, running {:?}, startable {startable:?}, recorded {}, marks {:?} of {:?}, {:?}",
            self.core.phase(),
            self.running,
            self.engine.is_recorded(),
            self.engine.marks.durable(),
            self.engine.marks.wanted(),
            startable.first().and_then(|ticket| self.queue.as_ref()?.get(*ticket)),
        )
    }

    /// Whether it holds nothing, and no primary is there.
    pub(super) fn is_idle(&self) -> bool {
        self.core.phase() == Phase::Waiting
    }

    /// Whether everything up to this entry is durable.
    pub(super) fn is_durable(&self, seq: Seq) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.durable() >= seq)
    }

    /// Whether everything up to this entry is performed, and nothing after it has come.
    pub(super) fn is_at(&self, seq: Seq) -> bool {
        self.queue.as_ref().is_some_and(|queue| {
            queue.is_drained() && queue.performed() == seq && self.running.is_empty()
        })
    }
}

/// The bytes in a checkpoint's memory.
fn memory(guest: &Guest) -> impl Fn(u64, u64) -> Option<Vec<u8>> + use<> {
    let pages: [u64; PAGES] = guest.memory;
    move |address, len| {
        let page = pages.get((address / SECTOR) as usize)?;
        (len == SECTOR).then(|| page.to_le_bytes().to_vec())
    }
}

impl World {
    fn passive(&mut self, node: usize) -> &mut Passive {
        match &mut self.hosts[node].role {
            Role::Passive(passive) => passive,
            _ => panic!("{node} is no standby"),
        }
    }

    fn is_passive(&self, node: usize) -> bool {
        matches!(self.hosts[node].role, Role::Passive(_))
    }

    pub(super) fn give_standby(&mut self, node: usize, event: S) {
        let now = self.time();
        if !matches!(
            event,
            S::Tick
                | S::Frame { .. }
                | S::Progress { .. }
                | S::Applicable { .. }
                | S::Described { .. }
        ) {
            trace!(self, "{node} standby <- {event:?}");
        }
        let Role::Passive(passive) = &mut self.hosts[node].role else { return };
        let actions = passive
            .core
            .handle(now, event)
            .unwrap_or_else(|illegal| panic!("the driver was refused: {illegal}"));
        for action in actions {
            if self.is_passive(node) {
                self.standby_does(node, action);
            }
        }
    }

    fn standby_does(&mut self, node: usize, action: Action) {
        match action {
            Action::Describe { mut hello } => {
                hello.standby_session = self.random.next().max(1);
                self.passive(node).follows = hello.holder.clone();
                self.give_standby(node, S::Described { ours: hello });
            }
            Action::Send { link, frame } => {
                self.send(link, &frame);
                if matches!(frame.message, Wired::Welcome(_)) {
                    let passive = self.passive(node);
                    (passive.link, passive.describes, passive.begun) = (Some(link), true, false);
                    (passive.cover, passive.equal, passive.covered) = (None, false, false);
                    passive.reported = Report::default();
                }
            }
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} standby closes: {reason}");
                self.close(link);
                let passive = self.passive(node);
                if passive.link == Some(link) {
                    passive.link = None;
                    if let Some(queue) = &mut passive.queue {
                        queue.drop_uncommitted();
                    }
                    passive.engine.marks.peer_gone();
                }
            }
            Action::Check(checkpoint) => {
                let epoch = checkpoint.epoch();
                self.give_standby(node, S::Applicable { epoch });
            }
            Action::Apply(checkpoint) => {
                let state = checkpoint.state().next().expect("a state");
                let guest: Guest = postcard::from_bytes(state).expect("a guest");
                let passive = self.passive(node);
                let commits = passive.queue.as_mut().expect("a list has begun");
                commits.commit(checkpoint.epoch(), &memory(&guest)).expect("a good list");
                passive.applied = Some(guest);
                self.tally.applied += 1;
            }
            Action::AskArbiter { term, .. } => {
                let next = self.next_generation(term.0);
                let next = self.passive(node).engine.claims(None, next);
                self.passive(node).ask = Some(Ask { term: term.0, next, asked: None });
            }
            Action::TakeOver { taken, reason } => {
                trace!(self, "{node} takes over in term {}: {reason}", taken.term());
                self.take_over(node, taken);
            }
            Action::Discard { reason } => {
                trace!(self, "{node} standby discards: {reason}");
                let passive = self.passive(node);
                (passive.applied, passive.cover) = (None, None);
                self.tally.discarded += 1;
            }
            Action::Stop { reason } => {
                trace!(self, "{node} standby stops: {reason}");
                self.close_all(node, true);
                self.end_process(node);
            }
            Action::Report(report) => trace!(self, "{node} standby: {report}"),
            Action::ApplyBulk(_) | Action::StoreImages(_) => panic!("this guest has no pages"),
        }
    }

    pub(super) fn standby_hears(&mut self, node: usize, link: LinkId, message: Message) {
        let process = self.peer_process(link).unwrap_or_default();
        let Role::Passive(passive) = &mut self.hosts[node].role else { return };
        if passive.link != Some(link) {
            return;
        }
        match message {
            Message::Begin { last, resync } => {
                trace!(self, "{node} list begins behind {}, resync {resync}", last.0);
                let passive = self.passive(node);
                passive.queue = Some(Queue::new(LIMITS.bytes, last));
                passive.marked.clear();
                passive.flushes.clear();
                passive.engine.sync = None;
                passive.begun = true;
                (passive.by, passive.resync) = (process, resync);
                if resync {
                    passive.engine.want.state = State::Inconsistent;
                }
            }
            Message::Entries { epoch, entries } => {
                let Some(queue) = &mut passive.queue else { panic!("a list before its beginning") };
                let flushes = entries.iter().filter(|entry| entry.operation == Operation::Flush);
                passive.flushes.extend(flushes.map(|entry| entry.seq));
                queue.receive(epoch, entries).expect("the next entries");
                if let Some(guest) =
                    passive.applied.as_ref().filter(|_| deliberate!(PerformUncommitted))
                {
                    queue.commit(Epoch(u64::MAX), &memory(guest)).expect("a good list");
                }
            }
            Message::Cover(cover) => passive.cover = Some(cover),
            Message::BothDurable(seq) => {
                if passive.covered {
                    passive.engine.marks.both_durable(seq);
                }
            }
            other => panic!("a primary says {other:?}"),
        }
    }

    pub(super) fn work_standby(&mut self, node: usize) {
        let now = self.now;
        if self.write_meta(node) || !self.is_passive(node) {
            return;
        }
        if self.passive(node).core.next_deadline().is_some_and(|due| due.0 <= now) {
            self.give_standby(node, S::Tick);
        }
        let parts: [fn(&mut Self, usize); 6] = [
            Self::describe,
            Self::run_queue,
            Self::sync_standby,
            Self::cover,
            Self::report,
            Self::claim_standby,
        ];
        for part in parts {
            if !self.is_passive(node) {
                return;
            }
            part(self, node);
        }
    }

    /// What is left of the former session is performed first: the marks say what it changes.
    fn describe(&mut self, node: usize) {
        let passive = self.passive(node);
        let drained = passive.queue.as_ref().is_none_or(Queue::is_drained);
        let Some(link) = passive.link.filter(|_| passive.describes) else { return };
        if !drained || !passive.running.is_empty() || !passive.engine.is_recorded() {
            return;
        }
        passive.describes = false;
        passive.engine.marks.peer_connects();
        let area = (!passive.engine.damaged).then(|| passive.engine.marks.described());
        let sidecar = Box::new(passive.engine.slots.sidecar().clone());
        self.say(link, &Message::Describe { sidecar, area });
    }

    // ---- the queue ----

    fn run_queue(&mut self, node: usize) {
        let now = self.now;
        let passive = self.passive(node);
        if passive.queue.is_none() || self.hosts[node].disk.hangs_until > now {
            return;
        }
        let passive = self.passive(node);
        let due: Vec<(Ticket, u64, usize)> =
            passive.running.extract_if(.., |(_, due, _)| *due <= now).collect();
        for (ticket, _, begun) in due {
            if let Err(reason) = self.perform_entry(node, ticket, begun) {
                self.queue_failed(node, Some(ticket), reason);
            }
            if !self.is_passive(node) || self.boundary(node) {
                return;
            }
        }
        let Some(queue) = &self.passive(node).queue else { return };
        let startable: Vec<Ticket> = queue.startable().collect();
        for ticket in startable {
            if !self.random.one_in(3) {
                self.start_entry(node, ticket);
            }
        }
    }

    fn start_entry(&mut self, node: usize, ticket: Ticket) {
        let takes = self.random.below(6 * MS);
        let (now, host) = (self.now, &mut self.hosts[node]);
        let Role::Passive(passive) = &mut host.role else { return };
        let Some(entry) = passive.queue.as_ref().and_then(|queue| queue.get(ticket)).cloned()
        else {
            return;
        };
        if let Some(extent) = entry.operation.extent().filter(|_| entry.operation.changes()) {
            if passive.marked.insert(ticket) {
                passive.engine.marks.begin(&extent, entry.seq);
            }
            if !passive.engine.marks.covers(&extent) {
                return;
            }
            let durably = passive.engine.slots.sidecar().state == State::Inconsistent;
            if passive.resync && !durably && !deliberate!(InconsistentLate) {
                return;
            }
            if matches!(entry.operation, Operation::Copy { .. }) {
                assert!(
                    host.disk.sidecar().state == State::Inconsistent,
                    "R8: {node} overwrites blocks of an image that is durably whole"
                );
            }
            assert!(
                host.disk.has_intent(&extent),
                "R3: {node} writes to {extent:?} without an intent"
            );
            assert!(
                passive.flushes.range(..entry.seq).next().is_none(),
                "R1: {node} writes past a flush that is not synced"
            );
            self.judge.performs(node, passive.by, entry.seq);
        }
        if let Some(queue) = &mut passive.queue {
            queue.start(ticket);
        }
        passive.running.push((ticket, now + takes, host.disk.image.sync_begins()));
    }

    fn perform_entry(&mut self, node: usize, ticket: Ticket, begun: usize) -> Result<(), String> {
        let host = &mut self.hosts[node];
        let Role::Passive(passive) = &mut host.role else { return Ok(()) };
        let Some(queue) = &mut passive.queue else { return Ok(()) };
        let Some(Entry { seq, mut operation }) = queue.get(ticket).cloned() else { return Ok(()) };
        let mut different = None;
        if let (Operation::Write { payload, extent }, Some(guest)) =
            (&mut operation, &passive.applied)
            && let Payload::Memory(address) = *payload
        {
            *payload = Payload::Inline(memory(guest)(address, extent.len).unwrap_or_default());
        }
        match &operation {
            Operation::Flush => {
                host.disk.image.sync_ends(begun)?;
                passive.flushes.remove(&seq);
            }
            Operation::Compare { extent, hash } => {
                let found = resync::hash(&host.disk.image.read(extent), HASH_SEED);
                different = (found != *hash).then_some(*extent);
            }
            operation => {
                if let (Some(extent), Some(bytes)) = (operation.extent(), bytes_of(operation)) {
                    assert!(
                        host.disk.has_intent(&extent),
                        "R3: an intent is gone before its write"
                    );
                    let written = host.disk.image.write(&extent, &bytes);
                    passive.engine.marks.performed(&extent);
                    written?;
                }
                if matches!(operation, Operation::Copy { .. }) {
                    self.tally.copied += 1;
                }
            }
        }
        queue.done(ticket);
        if let (Some(extent), Some(link)) = (different, passive.link) {
            self.say(link, &Message::Different { seq, extent });
        }
        Ok(())
    }

    fn queue_failed(&mut self, node: usize, ticket: Option<Ticket>, reason: String) {
        trace!(self, "{node} standby's disk: {reason}");
        self.tally.failed_disks += 1;
        let (now, host) = (self.now, &mut self.hosts[node]);
        let Role::Passive(passive) = &mut host.role else { return };
        match (ticket, &mut passive.queue) {
            (Some(ticket), Some(queue)) => queue.fail(ticket),
            (None, Some(queue)) if !deliberate!(FailedSyncRetried) => queue.sync_failed(),
            _ => {}
        }
        if deliberate!(FailedSyncRetried) {
            return;
        }
        passive.engine.fails(&mut host.disk, now, &mut self.random);
        self.give_standby(node, S::Disks(Standing::Failed { reason }));
        // Nothing more can be done with it: its process ends when nothing depends on it.
        if self.is_passive(node) && self.passive(node).is_idle() {
            self.close_all(node, true);
            self.end_process(node);
        }
    }

    fn sync_standby(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        let Role::Passive(passive) = &mut host.role else { return };
        let Some(queue) = &mut passive.queue else { return };
        if host.disk.hangs_until > now {
            return;
        }
        passive.engine.durable = queue.durable();
        let performed = queue.performed();
        match passive.engine.sync(&mut host.disk, performed, now, &mut self.random) {
            Ok(false) => {}
            Ok(true) => {
                queue.synced(passive.engine.durable);
                self.boundary(node);
            }
            Err(reason) => self.queue_failed(node, None, reason),
        }
    }

    /// The images become equal (R6): durable up to the covering checkpoint, then said so by sidecar
    /// and marks, then reported.
    fn cover(&mut self, node: usize) {
        let passive = self.passive(node);
        let (Some(cover), Some(queue)) = (&passive.cover, &passive.queue) else { return };
        let held = passive.applied.is_some() && queue.durable() >= cover.end;
        if !held || passive.covered || passive.core.phase() != Phase::Ready {
            return;
        }
        let engine = &mut passive.engine;
        if !passive.equal {
            (passive.equal, passive.resync) = (true, false);
            engine.marks.equal(cover.disk, cover.point, cover.end);
            engine.damaged = false;
            let want = &mut engine.want;
            (want.state, want.lineage, want.pending) = (State::Whole, cover.lineage.clone(), None);
            (want.peer, want.durable) = (Some(cover.disk), queue.durable());
        }
        if engine.is_recorded() && engine.marks.durable().point == cover.point {
            passive.covered = true;
            self.give_standby(node, S::Disks(Standing::Covered));
        }
    }

    fn report(&mut self, node: usize) {
        let lazily = self.random.one_in(10);
        let passive = self.passive(node);
        let (Some(link), Some(queue)) = (passive.link, &passive.queue) else { return };
        if !passive.begun {
            return;
        }
        let mut report = Report { performed: queue.performed(), ..Report::default() };
        if passive.covered {
            if lazily {
                passive.engine.want.durable = passive.engine.want.durable.max(queue.durable());
            }
            report.durable = queue.durable();
            report.recorded = passive.engine.slots.sidecar().durable;
        }
        if report != passive.reported {
            passive.reported = report;
            self.say(link, &Message::Report(report));
        }
    }

    // ---- the arbiter ----

    fn claim_standby(&mut self, node: usize) {
        let (now, holder) = (self.now, self.hosts[node].process.to_string());
        let passive = self.passive(node);
        let recorded = passive.engine.is_recorded();
        let current = passive.engine.want.lineage.current();
        let follows = passive.follows.clone();
        let Some(ask) = &passive.ask else { return };
        let (term, next) = (ask.term, ask.next);
        let Some((letter, sent)) = ask.asked else {
            if recorded {
                let member = self.member(node);
                let claim = Claim { term, holder, follows, member, current, next };
                let due = now + self.random.below(5 * MS);
                let letter = self.register.ask(node, Question::Claim(claim), due);
                if let Some(ask) = &mut self.passive(node).ask {
                    ask.asked = Some((letter, now));
                }
            }
            return;
        };
        let event = match self.register.take_answer(letter, now) {
            None if now > sent + PATIENCE => S::ArbiterUnreachable { reason: "no answer".into() },
            None => return,
            Some(Ok(record)) => {
                let engine = &mut self.passive(node).engine;
                engine.want = engine.want.won(record.generation);
                S::ArbiterGranted { term: Term(term) }
            }
            Some(Err(SetError::Missing { .. })) => panic!("P2: the arbiter has lost a term"),
            Some(Err(error @ SetError::NotInSet { .. })) => {
                self.tally.not_in_set += 1;
                S::CannotGoOn { reason: error.to_string() }
            }
            Some(Err(error)) => S::ArbiterDenied { term: Term(term), holder: error.to_string() },
        };
        self.passive(node).ask = None;
        self.give_standby(node, event);
    }

    fn take_over(&mut self, node: usize, taken: TakenOver) {
        let (options, now) = (self.primary_options(), self.time());
        let epoch = taken.epoch();
        let role = std::mem::replace(&mut self.hosts[node].role, Role::Off);
        let Role::Passive(passive) = role else { panic!("{node} is no standby") };
        let Passive { mut engine, queue, applied, running, marked, by, .. } = *passive;
        let guest = applied.expect("P4: a checkpoint is held");
        self.judge.takes_over(&guest);
        self.check_set();
        let mut queue = queue.expect("a list has begun");
        queue.drop_uncommitted();
        let last = queue.last();
        engine.durable = queue.durable();
        engine.marks.peer_gone();
        let dropped = deliberate!(QueueDropped);
        let (running, marked) = if dropped { Default::default() } else { (running, marked) };
        let lane = queue.into_lane().map(|entry| Job::Entry(entry, by));
        let OwnGate { ledger, commit, .. } = new_gate_with_own_disks(OwnPorts::none());
        let flushed = (FlushMode::Both, guest.flush);
        let (core, actions) =
            Primary::after_takeover_with_disks(commit, options, taken, flushed, now);
        self.tally.takeovers += 1;
        self.tally.drained += u64::from(!lane.is_empty());
        let again = if deliberate!(InFlightAgain) { self.in_flight(&guest) } else { Vec::new() };
        let mut active =
            Active::take_over((core, ledger), engine, guest, (lane, last), epoch, running, marked);
        active.perform_again(again);
        let failed = active.lane.has_failed();
        self.activate(node, (active, actions));
        if failed {
            // It failed while the arbiter was asked.
            let reason = "failed as a standby's".into();
            self.give_primary(node, P::Disks(D::OwnFailed { reason }));
        }
    }

    /// The writes that a checkpoint has in flight.
    fn in_flight(&mut self, guest: &Guest) -> Vec<(ft_core::disks::Extent, Vec<u8>, Seq, u64)> {
        let writes = guest.outstanding.iter().filter_map(|request| match request.kind {
            Kind::Write(extent) => {
                Some((extent, vec![0; extent.len as usize], request.seq, request.by))
            }
            _ => None,
        });
        writes.collect()
    }
}
