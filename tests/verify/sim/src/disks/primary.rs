//! The driver of a primary with own disks.

use std::collections::{HashMap, HashSet, VecDeque};

use ft_core::disks::set::{Claim, SetError};
use ft_core::disks::{
    Area, Cover, DiskId, Entry, Event as D, Extent, FlushMode, Lane, Limits, List, Message,
    Operation, Payload, Reach, Report, Seq, Sidecar, Ticket, resync,
};
use ft_core::primary::{Action, Event as P, Phase, Primary, Report as Told};
use ft_core::wire::{Data, EpochDigest, Message as Wired, Outgoing};
use ft_core::{Epoch, LinkId, Term};
use io_gate::host::{Ledger, OwnGate, OwnPorts, new_gate_with_own_disks};
use resync::{Piece, Resync, Side};
use std::time::Duration;

use super::guest::{Guest, Kind, Output, PAGES, sectors, some_extent};
use super::host::{Engine, GEOMETRY};
use super::image::{SECTOR, SECTORS};
use super::register::Question;
use super::{Ask, MS, PATIENCE, Role, World, bytes_of, trace};
use crate::random::Random;

pub(super) const LIMITS: Limits =
    Limits { bytes: 1200, epoch: 600, drain: Duration::from_millis(50) };
/// Of the hashes of a resync.
pub(super) const HASH_SEED: u64 = 7;
const SIZE: u64 = SECTORS as u64 * SECTOR;

/// What the lane performs.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// The guest's.
    Guest(Operation),
    Read(Extent),
    /// A resync block, or its hash.
    Piece(Piece),
    /// Left over from the standby that this machine was: staged by that process.
    Entry(Entry, u64),
}

struct Session {
    link: LinkId,
    standby: Option<(Sidecar, Option<Area>)>,
    begun: bool,
    resync: Option<Resync>,
    precopied: bool,
    seals_first: bool,
    cover: Option<(Seq, u128)>,
    report: Report,
    both: Seq,
    enlarge: Option<(u64, u64)>,
    in_set: bool,
    equal: bool,
}

pub(super) struct Active {
    pub(super) core: Primary,
    _ledger: Ledger,
    engine: Engine,
    guest: Guest,
    pub(super) list: List,
    pub(super) lane: Lane<Job>,
    running: Vec<(Ticket, u64, usize)>,
    marked: HashSet<Ticket>,
    heads: HashMap<Ticket, u64>,
    completed: VecDeque<u64>,
    epoch: Epoch,
    held: VecDeque<(Epoch, Output)>,
    leaving: VecDeque<Output>,
    /// The gate is open.
    pub(super) open: bool,
    digest: EpochDigest,
    session: Option<Session>,
    ask: Option<Ask>,
    dials: bool,
}

impl Active {
    /// A machine that boots from an image in a term that it has won.
    pub(super) fn boot(world: &mut World, mut engine: Engine, term: u64) -> (Self, Vec<Action>) {
        let OwnGate { ledger, commit, .. } = new_gate_with_own_disks(OwnPorts::none());
        let options = world.primary_options();
        let (core, actions) =
            Primary::begin_with_disks(commit, options, Term(term), FlushMode::Both, world.time());
        let last = engine.want.durable.max(engine.marks.wanted().cleared);
        engine.durable = last;
        let (lengths, flushed) = (world.judge.lengths(), world.judge.flushed());
        let guest = Guest::boot(lengths, flushed, world.random.next());
        let lane = Lane::of_primary(last);
        (Self::new(core, ledger, engine, guest, (lane, last), Epoch(1)), actions)
    }

    /// A standby that has taken over.
    pub(super) fn take_over(
        (core, ledger): (Primary, Ledger),
        engine: Engine,
        guest: Guest,
        lane: (Lane<Job>, Seq),
        epoch: Epoch,
        running: Vec<(Ticket, u64, usize)>,
        marked: HashSet<Ticket>,
    ) -> Self {
        let mut active = Self::new(core, ledger, engine, guest, lane, epoch.next());
        (active.running, active.marked) = (running, marked);
        active.list.adopt_flushed(active.guest.flush);
        active.held = active.guest.pending.iter().map(|output| (epoch, output.clone())).collect();
        // What was in flight completes when it is performed, which the lane does or has done.
        let by_seq: HashMap<Seq, Ticket> =
            active.lane.unfinished().filter_map(|(ticket, seq)| Some((seq?, ticket))).collect();
        for request in &active.guest.outstanding {
            match by_seq.get(&request.seq) {
                Some(ticket) => {
                    active.heads.insert(*ticket, request.head);
                }
                None if matches!(request.kind, Kind::Read(_)) => {}
                None => active.completed.push_back(request.head),
            }
        }
        let reads: Vec<(u64, Extent)> = active
            .guest
            .outstanding
            .iter()
            .filter_map(|request| match request.kind {
                Kind::Read(extent) => Some((request.head, extent)),
                _ => None,
            })
            .collect();
        for (head, extent) in reads {
            let ticket = active.lane.push(None, Reach::Reads(extent), Job::Read(extent));
            active.heads.insert(ticket, head);
        }
        active
    }

    fn new(
        core: Primary,
        ledger: Ledger,
        engine: Engine,
        guest: Guest,
        (lane, last): (Lane<Job>, Seq),
        epoch: Epoch,
    ) -> Self {
        Self {
            core,
            _ledger: ledger,
            engine,
            guest,
            list: List::new(LIMITS, last),
            lane,
            running: Vec::new(),
            marked: HashSet::new(),
            heads: HashMap::new(),
            completed: VecDeque::new(),
            epoch,
            held: VecDeque::new(),
            leaving: VecDeque::new(),
            open: false,
            digest: EpochDigest::default(),
            session: None,
            ask: None,
            dials: false,
        }
    }

    /// Whether it may ask the arbiter to add this image to the set.
    pub(super) fn joins(&self, disk: DiskId) -> bool {
        let session = self.session.as_ref().filter(|session| session.cover.is_some());
        let standby = session.and_then(|session| session.standby.as_ref());
        standby.is_some_and(|(sidecar, _)| sidecar.disk == disk)
    }

    /// For a trace.
    pub(super) fn status(&self) -> String {
        format!(
            "primary {:?}, list at {:?}, lane {} at {:?}, durable {:?}, outstanding {}, held {}, leaving {}, {:?}",
            self.core.phase(),
            self.list.last(),
            self.lane.len(),
            self.lane.performed(),
            self.engine.durable,
            self.guest.outstanding.len(),
            self.held.len(),
            self.leaving.len(),
            self.session
                .as_ref()
                .map(|session| (session.report, session.resync.as_ref().map(Resync::progress))),
        )
    }

    /// Performs again what a checkpoint has in flight: a deliberate bug.
    pub(super) fn perform_again(&mut self, writes: Vec<(Extent, Vec<u8>, Seq, u64)>) {
        for (extent, bytes, seq, by) in writes {
            let payload = Payload::Inline(bytes);
            let entry = Entry { seq, operation: Operation::Write { extent, payload } };
            self.lane.push(None, Reach::Changes(extent), Job::Entry(entry, by));
        }
    }
}

impl World {
    fn active(&mut self, node: usize) -> &mut Active {
        match &mut self.hosts[node].role {
            Role::Active(active) => active,
            _ => panic!("{node} is no primary"),
        }
    }

    fn is_active(&self, node: usize) -> bool {
        matches!(self.hosts[node].role, Role::Active(_))
    }

    pub(super) fn give_primary(&mut self, node: usize, event: P) {
        let now = self.time();
        if !matches!(
            event,
            P::Tick
                | P::Frame { .. }
                | P::Progress { .. }
                | P::Sealed { .. }
                | P::Disks(D::StandbyDurable { .. } | D::Listed { .. } | D::OwnDurable { .. })
        ) {
            trace!(self, "{node} primary <- {event:?}");
        }
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        let actions = active
            .core
            .handle(now, event)
            .unwrap_or_else(|illegal| panic!("the driver was refused: {illegal}"));
        for action in actions {
            if self.is_active(node) {
                self.primary_does(node, action);
            }
        }
    }

    pub(super) fn primary_does(&mut self, node: usize, action: Action) {
        match action {
            Action::Connect => self.active(node).dials = true,
            Action::Send { link, frame } => self.send(link, &frame),
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} primary closes: {reason}");
                self.close(link);
                let active = self.active(node);
                active.session = None;
                active.list.end();
                active.engine.marks.peer_gone();
            }
            Action::StartPrecopy { link, session, .. } => {
                let active = self.active(node);
                active.digest = EpochDigest::new(session);
                active.session.get_or_insert_with(|| Session::new(link));
            }
            Action::SealFirst { .. } => {
                if let Some(session) = &mut self.active(node).session {
                    session.seals_first = true;
                }
            }
            Action::Hold => self.active(node).open = false,
            Action::Release { proof, .. } => {
                let active = self.active(node);
                while let Some((_, output)) =
                    active.held.pop_front_if(|(epoch, _)| *epoch <= proof.epoch())
                {
                    active.leaving.push_back(output);
                }
                self.tally.released += 1;
            }
            Action::RunAlone(proof) => {
                trace!(self, "{node} runs alone in term {}", proof.term());
                let active = self.active(node);
                active.open = true;
                let held = std::mem::take(&mut active.held);
                active.leaving.extend(held.into_iter().map(|(_, output)| output));
            }
            Action::AskArbiter { term, .. } => {
                let next = self.next_generation(term.0);
                let active = self.active(node);
                let next = active.engine.claims(None, next);
                active.ask = Some(Ask { term: term.0, next, asked: None });
            }
            Action::Stop { reason, fenced } => {
                trace!(self, "{node} primary stops, fenced {fenced}: {reason}");
                self.close_all(node, true);
                self.end_process(node);
            }
            Action::Report(report) => {
                trace!(self, "{node} primary: {report}");
                if let Told::Protected { .. } = report {
                    self.tally.protected += 1;
                }
            }
        }
    }

    pub(super) fn work_primary(&mut self, node: usize) {
        let now = self.now;
        if self.write_meta(node) || !self.is_active(node) {
            return;
        }
        if self.active(node).core.next_deadline().is_some_and(|due| due.0 <= now) {
            self.give_primary(node, P::Tick);
        }
        let parts: [fn(&mut Self, usize); 8] = [
            Self::dial,
            Self::run_lane,
            Self::sync_primary,
            Self::run_guest,
            Self::session,
            Self::claim_primary,
            Self::enlarge,
            Self::tell,
        ];
        for part in parts {
            if !self.is_active(node) {
                return;
            }
            part(self, node);
        }
    }

    /// Sidecar and marks; returns whether the host has lost power at the end of a write.
    pub(super) fn write_meta(&mut self, node: usize) -> bool {
        let now = self.now;
        let host = &mut self.hosts[node];
        let engine = match &mut host.role {
            Role::Active(active) => &mut active.engine,
            Role::Passive(passive) => &mut passive.engine,
            Role::Off => return false,
        };
        let ended = engine.write(&mut host.disk, now, &mut self.random);
        ended && self.boundary(node)
    }

    fn dial(&mut self, node: usize) {
        if !std::mem::take(&mut self.active(node).dials) {
            return;
        }
        let target = self.random.index(super::NODES);
        let listens = matches!(self.hosts[target].role, Role::Passive(_));
        let parted = self.parted[node][target] > self.now || self.parted[target][node] > self.now;
        if !listens || parted {
            return self.give_primary(node, P::ConnectFailed { reason: "refused".into() });
        }
        let hello = self.hello(node);
        let link = self.connect(node, target);
        self.give_primary(node, P::StandbyConnected { link, hello });
    }

    // ---- the lane ----

    fn run_lane(&mut self, node: usize) {
        if self.hosts[node].disk.hangs_until > self.now {
            return;
        }
        let due: Vec<(Ticket, u64, usize)> = {
            let now = self.now;
            self.active(node).running.extract_if(.., |(_, due, _)| *due <= now).collect()
        };
        for (ticket, _, begun) in due {
            if let Err(reason) = self.perform(node, ticket, begun) {
                trace!(self, "{node} primary's disk: {reason}");
                self.tally.failed_disks += 1;
                self.active(node).lane.fail(ticket);
                if deliberate!(FailedSyncRetried) {
                    continue;
                }
                let (now, host) = (self.now, &mut self.hosts[node]);
                let Role::Active(active) = &mut host.role else { return };
                active.engine.fails(&mut host.disk, now, &mut self.random);
                return self.give_primary(node, P::Disks(D::OwnFailed { reason }));
            }
            if self.boundary(node) || !self.is_active(node) {
                return;
            }
        }
        let startable: Vec<Ticket> = self.active(node).lane.startable().collect();
        for ticket in startable {
            self.start(node, ticket);
        }
    }

    fn start(&mut self, node: usize, ticket: Ticket) {
        let process = self.hosts[node].process;
        let later = self.random.one_in(3);
        let takes = self.random.below(6 * MS);
        let (now, host) = (self.now, &mut self.hosts[node]);
        let Role::Active(active) = &mut host.role else { return };
        let Some(job) = active.lane.get(ticket).cloned() else { return };
        let seq = active.lane.seq(ticket);
        let (changes, by, of) = match &job {
            Job::Guest(operation) if operation.changes() => (operation.extent(), process, seq),
            Job::Entry(entry, by) if entry.operation.changes() => {
                (entry.operation.extent(), *by, Some(entry.seq))
            }
            _ => (None, process, seq),
        };
        if let Some(extent) = changes {
            if active.marked.insert(ticket) {
                active.engine.marks.begin(&extent, of.unwrap_or_default());
            }
            if !active.engine.marks.covers(&extent) || later {
                return;
            }
            assert!(
                host.disk.has_intent(&extent),
                "R3: {node} writes to {extent:?} without an intent"
            );
            self.judge.performs(node, by, of.unwrap_or_default());
        }
        active.lane.start(ticket);
        active.running.push((ticket, now + takes, host.disk.image.sync_begins()));
    }

    fn perform(&mut self, node: usize, ticket: Ticket, begun: usize) -> Result<(), String> {
        let counts = self.counts(node);
        let host = &mut self.hosts[node];
        let Role::Active(active) = &mut host.role else { return Ok(()) };
        let Some(job) = active.lane.get(ticket).cloned() else { return Ok(()) };
        let seq = active.lane.seq(ticket).unwrap_or_default();
        let operation = match &job {
            Job::Guest(operation) => Some(operation.clone()),
            Job::Entry(entry, _) => Some(entry.operation.clone()),
            _ => None,
        };
        match (&job, operation) {
            (_, Some(Operation::Flush)) => {
                host.disk.image.sync_ends(begun)?;
                active.engine.durable = active.engine.durable.max(seq);
            }
            (_, Some(operation)) => {
                if let (Some(extent), Some(bytes)) = (operation.extent(), bytes_of(&operation)) {
                    assert!(
                        host.disk.has_intent(&extent),
                        "R3: an intent is gone before its write"
                    );
                    let written = host.disk.image.write(&extent, &bytes);
                    active.engine.marks.performed(&extent);
                    written?;
                }
            }
            (Job::Read(extent), None) => {
                let bytes = host.disk.image.read(extent);
                for (sector, value) in sectors(extent).zip(bytes.chunks_exact(8)) {
                    let value = u64::from_le_bytes(value.try_into().expect("a sector"));
                    if counts {
                        self.judge.reads(&active.guest, sector, value);
                    }
                }
                self.tally.reads += 1;
            }
            (Job::Piece(piece), None) if !deliberate!(CopyOutOfPlace) => {
                active.list.fill(seq, read_piece(&host.disk.image, piece));
            }
            _ => {}
        }
        active.lane.done(ticket);
        if let Some(head) = active.heads.remove(&ticket) {
            active.completed.push_back(head);
        }
        Ok(())
    }

    fn sync_primary(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        let Role::Active(active) = &mut host.role else { return };
        if host.disk.hangs_until > now {
            return;
        }
        let performed = active.lane.performed();
        match active.engine.sync(&mut host.disk, performed, now, &mut self.random) {
            Ok(false) => {}
            Ok(true) => {
                if self.boundary(node) {
                    return;
                }
            }
            Err(_) if deliberate!(FailedSyncRetried) => {}
            Err(reason) => {
                self.tally.failed_disks += 1;
                active.engine.fails(&mut host.disk, now, &mut self.random);
                return self.give_primary(node, P::Disks(D::OwnFailed { reason }));
            }
        }
        let lazily = self.random.one_in(10);
        let active = self.active(node);
        let durable = active.engine.durable;
        if lazily {
            active.engine.want.durable = active.engine.want.durable.max(durable);
        }
        if active.core.holds_takeover() {
            self.give_primary(node, P::Disks(D::OwnDurable { durable }));
        }
    }

    // ---- the guest ----

    /// Whether this machine is the one that goes on: a machine that was replaced and does not know
    /// it changes nothing that counts.
    fn counts(&self, node: usize) -> bool {
        let process = self.hosts[node].process.to_string();
        self.register.record.as_ref().is_some_and(|record| record.holder == process)
    }

    fn run_guest(&mut self, node: usize) {
        let mut random = Random::new(self.random.next());
        let (counts, process) = (self.counts(node), self.hosts[node].process);
        let local = self.local;
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        if !random.one_in(3)
            && let Some(head) = (!active.completed.is_empty())
                .then(|| random.index(active.completed.len()))
                .and_then(|at| active.completed.remove(at))
            && let Some(request) = active.guest.complete(head)
            && matches!(request.kind, Kind::Flush(_))
        {
            active.list.flush_completed(request.seq);
            if counts {
                self.judge.flush_completes(&active.guest, &request);
            }
        }
        if active.lane.is_empty() && active.running.is_empty() && counts {
            let content = self.hosts[node].disk.image.content;
            self.judge.at_rest(&content, "the primary's image");
        }
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        active.guest.think(&mut random);
        let barrier =
            active.session.as_ref().is_some_and(|one| one.standby.is_some() && !one.begun);
        // Sometimes the guest leaves its disk alone, so that both sides come to rest.
        let rests = (self.seed + self.at / 300).is_multiple_of(3);
        let waits = rests || barrier && !deliberate!(NoBarrier) || active.guest.is_busy();
        match random.below(12) {
            0..2 => {
                let output = active.guest.output();
                if active.open {
                    active.leaving.push_back(output);
                } else {
                    active.held.push_back((active.epoch, output));
                }
            }
            2 if random.one_in(30) => {
                self.tally.resets += 1;
                active.guest.reset();
                active.list.reset();
            }
            _ if waits => {}
            3..6 => {
                let extent = some_extent(&mut random, local);
                let values: Vec<u64> = sectors(&extent)
                    .map(|_| match random.below(4) {
                        0 => 0,
                        1 => active.guest.memory[random.index(PAGES)],
                        _ => self.judge.fresh(),
                    })
                    .collect();
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let payload = Payload::Inline(bytes);
                self.stage(node, process, counts, Operation::Write { extent, payload }, &values);
            }
            6 => {
                let extent = some_extent(&mut random, local);
                let values = vec![0; (extent.len / SECTOR) as usize];
                self.stage(node, process, counts, Operation::Zero { extent }, &values);
            }
            7 => self.stage(node, process, counts, Operation::Flush, &[]),
            8 => {
                let extent = some_extent(&mut random, local);
                let head = active.guest.ask(Kind::Read(extent), Seq(0), process);
                let ticket = active.lane.push(None, Reach::Reads(extent), Job::Read(extent));
                active.heads.insert(ticket, head);
            }
            _ => {}
        }
    }

    fn stage(&mut self, node: usize, by: u64, counts: bool, operation: Operation, values: &[u64]) {
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        if !active.list.admits(&operation) {
            self.tally.slowed += 1;
            return;
        }
        let seq = active.list.record(operation.clone());
        let (reach, kind) = match operation.extent() {
            Some(extent) => (Reach::Changes(extent), Kind::Write(extent)),
            None => (Reach::Flush, Kind::Flush(active.guest.completed())),
        };
        if let Some(extent) = operation.extent().filter(|_| counts) {
            for (sector, value) in sectors(&extent).zip(values) {
                self.judge.stages(sector, *value);
            }
        }
        let head = active.guest.ask(kind, seq, by);
        let ticket = active.lane.push(Some(seq), reach, Job::Guest(operation));
        active.heads.insert(ticket, head);
    }

    /// Lets go what is released, if this machine still has the right.
    fn tell(&mut self, node: usize) {
        let reachable = self.register.down_until <= self.now && self.cut[node] <= self.now;
        if self.active(node).leaving.is_empty() || !reachable {
            return;
        }
        if !self.counts(node) {
            let term = self.active(node).core.term().0;
            let later = self.register.record.as_ref().is_some_and(|record| record.term > term);
            assert!(later, "P2: a machine is replaced, and no later term is won");
            return self.give_primary(node, P::Fenced { reason: "a later term".into() });
        }
        if let Some(output) = self.active(node).leaving.pop_front() {
            self.judge.told(&output);
            self.tally.packets += 1;
            self.check_set();
        }
    }

    // ---- the session ----

    pub(super) fn primary_hears(&mut self, node: usize, link: LinkId, message: Message) {
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        let Some(session) = active.session.as_mut().filter(|session| session.link == link) else {
            return;
        };
        match message {
            Message::Describe { sidecar, area } => session.standby = Some((*sidecar, area)),
            Message::Report(report) => {
                session.report = report;
                active.list.report(&report);
                if let Some(resync) = &mut session.resync {
                    resync.performed(report.performed);
                }
                let durable = report.durable;
                self.give_primary(node, P::Disks(D::StandbyDurable { link, durable }));
            }
            Message::Different { seq, .. } => {
                self.tally.differences += 1;
                if let Some(resync) = &mut session.resync {
                    resync.different(seq);
                }
            }
            other => panic!("a standby says {other:?}"),
        }
    }

    fn session(&mut self, node: usize) {
        let Some(session) = &self.active(node).session else { return };
        let link = session.link;
        if session.standby.is_some() && !session.begun {
            return self.begin_list(node);
        }
        if !session.begun {
            return;
        }
        if !session.precopied {
            self.precopy(node, link);
        }
        if self.is_active(node) {
            self.seal(node);
        }
        if self.is_active(node) {
            self.unmark(node);
        }
    }

    /// R12: the list begins when the lane is empty. What the images may differ in is known then.
    fn begin_list(&mut self, node: usize) {
        let active = self.active(node);
        if !(active.lane.is_empty() && active.engine.is_recorded() || deliberate!(NoBarrier)) {
            return;
        }
        active.engine.marks.peer_connects();
        let Some(session) = &mut active.session else { return };
        let (link, ours) = (session.link, active.engine.marks.described());
        let Some((sidecar, area)) = &session.standby else { return };
        let our_area = (!active.engine.damaged).then_some(&ours);
        let primary = Side { sidecar: active.engine.slots.sidecar(), area: our_area };
        let standby = Side { sidecar, area: area.as_ref() };
        let plan = match resync::plan(primary, standby) {
            Ok(plan) => plan,
            Err(refusal) => {
                self.tally.refused_images += 1;
                let reason = refusal.to_string();
                if let Some(peer) = self.peer(link) {
                    self.replace_later(peer);
                }
                return self.give_primary(node, P::Unfit { link, reason });
            }
        };
        let resync = Resync::new(GEOMETRY, 0, SIZE, &plan);
        let last = active.list.last();
        session.begun = true;
        let begin = Message::Begin { last, resync: !resync.is_done() };
        session.resync = Some(resync);
        active.list.begin();
        trace!(self, "{node} begins its list behind {}: {plan:?}", last.0);
        self.check_plan(node, link, &plan);
        self.say(link, &begin);
    }

    /// R8: where the images differ, there is a mark.
    fn check_plan(&mut self, node: usize, link: LinkId, plan: &resync::Plan) {
        let Some(peer) = self.peer(link) else { return };
        if self.peer_process(link) != Some(self.hosts[peer].process) {
            return;
        }
        let (ours, theirs) = (self.content(node), self.content(peer));
        match plan {
            resync::Plan::Full { .. } => self.tally.full_syncs += 1,
            resync::Plan::Marked { copy, compare } => {
                self.tally.marked_syncs += 1;
                for sector in (0..SECTORS).filter(|sector| ours[*sector] != theirs[*sector]) {
                    let at = sector as u64 * SECTOR;
                    let marked = copy.contains(&(at / GEOMETRY.fine))
                        || compare.contains(&(at / GEOMETRY.coarse));
                    assert!(
                        marked,
                        "R8: sector {sector} differs between {node} and {peer}, and has no mark: {plan:?}"
                    );
                }
            }
        }
    }

    fn precopy(&mut self, node: usize, link: LinkId) {
        let places = self.random.index(3);
        let host = &mut self.hosts[node];
        let Role::Active(active) = &mut host.role else { return };
        let Some(session) = &mut active.session else { return };
        let Some(resync) = &mut session.resync else { return };
        for _ in 0..places {
            let Some(piece) = resync.next() else { break };
            let room = if piece.compare { 0 } else { piece.extent.len };
            let reserved = Operation::Copy { extent: piece.extent, bytes: vec![0; room as usize] };
            if !active.list.admits(&reserved) {
                break;
            }
            let seq = active.list.reserve(reserved.bytes());
            active.lane.push(Some(seq), Reach::Reads(piece.extent), Job::Piece(piece));
            resync.placed(seq);
            if deliberate!(CopyOutOfPlace) {
                active.list.fill(seq, read_piece(&host.disk.image, &piece));
            }
        }
        let entries = active.list.seal().entries;
        let done = resync.is_done() && active.core.phase() == Phase::Copying;
        session.precopied = done;
        if !entries.is_empty() {
            self.say(link, &Message::Entries { epoch: None, entries });
        }
        if done {
            self.give_primary(node, P::PrecopyDone { link });
        }
    }

    fn seal(&mut self, node: usize) {
        let wanted = self.random.one_in(4);
        let point = u128::from(self.random.next());
        let by_reference = self.random.next();
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        let Some(session) = &mut active.session else { return };
        let due = session.seals_first
            || active.core.may_seal()
                && session.cover.is_some()
                && (wanted || active.list.wants_seal());
        if !due || !active.list.may_seal() {
            return;
        }
        let (link, term, epoch) = (session.link, active.core.term(), active.epoch);
        active.epoch = epoch.next();
        let mut sealed = active.list.seal();
        let first = std::mem::take(&mut session.seals_first);
        if first {
            session.cover = Some((sealed.end, point));
        }
        let guest = &mut active.guest;
        guest.pending = active.leaving.iter().cloned().collect();
        guest.pending.extend(active.held.iter().map(|(_, output)| output.clone()));
        for (at, entry) in sealed.entries.iter_mut().enumerate() {
            if let Operation::Write { payload, .. } = &mut entry.operation
                && by_reference >> (at % 64) & 1 == 1
            {
                refer(payload, &guest.memory);
            }
        }
        let state = postcard::to_allocvec(guest).expect("a guest");
        let lineage = active.engine.want.lineage.clone();
        let disk = active.engine.want.disk;
        let (end, flushed) = (sealed.end, sealed.flushed);
        self.give_primary(node, P::Disks(D::Listed { epoch, end, flushed }));
        self.give_primary(node, P::Sealed { link, epoch });
        if first {
            self.say(link, &Message::Cover(Cover { end, disk, lineage, point }));
        }
        self.say(link, &Message::Entries { epoch: Some(epoch), entries: sealed.entries });
        let active = self.active(node);
        let mut bytes = Vec::new();
        let frame = Outgoing { epoch, term, message: Wired::State(Data(state)) };
        let header = frame.encode(&mut bytes).expect("a state within its limits");
        active.digest.add(&header, 0);
        let end = Wired::End(active.digest.end(epoch, None));
        self.send_bytes(link, bytes);
        self.send(link, &Outgoing { epoch, term, message: end });
    }

    /// R3: what is durable on both sides needs no mark.
    fn unmark(&mut self, node: usize) {
        let Role::Active(active) = &mut self.hosts[node].role else { return };
        let (engine, Some(session)) = (&mut active.engine, &mut active.session) else { return };
        let Some((end, point)) = session.cover.filter(|_| session.in_set) else { return };
        if !session.equal && engine.durable >= end {
            let peer: DiskId = session.standby.as_ref().expect("a standby in the set").0.disk;
            engine.marks.equal(peer, point, end);
            engine.damaged = false;
            session.equal = true;
        }
        let own = if deliberate!(UnmarkWhenOneDurable) {
            engine.durable
        } else {
            engine.slots.sidecar().durable.min(session.report.recorded)
        };
        if session.equal && own > session.both {
            session.both = own;
            engine.marks.both_durable(own);
            let link = session.link;
            self.check_unmarked(link, own);
            self.say(link, &Message::BothDurable(own));
        }
    }

    /// R3: what loses its mark is durable on the standby.
    fn check_unmarked(&self, link: LinkId, seq: Seq) {
        let Some(peer) = self.peer(link) else { return };
        if let Role::Passive(passive) = &self.hosts[peer].role
            && self.peer_process(link) == Some(self.hosts[peer].process)
        {
            assert!(
                passive.is_durable(seq),
                "R3: entry {seq:?} loses its mark, and is not durable on {peer}"
            );
        }
    }

    // ---- the arbiter ----

    fn claim_primary(&mut self, node: usize) {
        let (now, holder) = (self.now, self.hosts[node].process.to_string());
        let active = self.active(node);
        let recorded = active.engine.is_recorded();
        let current = active.engine.want.lineage.current();
        let Some(ask) = &mut active.ask else { return };
        let (term, next) = (ask.term, ask.next);
        let Some((letter, sent)) = ask.asked else {
            if recorded {
                let member = self.member(node);
                let claim = Claim { term, follows: holder.clone(), holder, member, current, next };
                let due = now + self.random.below(5 * MS);
                let letter = self.register.ask(node, Question::Claim(claim), due);
                if let Some(ask) = &mut self.active(node).ask {
                    ask.asked = Some((letter, now));
                }
            }
            return;
        };
        let event = match self.register.take_answer(letter, now) {
            None if now > sent + PATIENCE => P::ArbiterUnreachable { reason: "no answer".into() },
            None => return,
            Some(Ok(record)) => {
                let engine = &mut self.active(node).engine;
                engine.want = engine.want.won(record.generation);
                self.tally.ran_alone += 1;
                P::ArbiterGranted { term: Term(term) }
            }
            Some(Err(SetError::Missing { .. })) => panic!("P2: the arbiter has lost a term"),
            Some(Err(error)) => P::ArbiterDenied { term: Term(term), holder: error.to_string() },
        };
        self.active(node).ask = None;
        self.give_primary(node, event);
    }

    fn enlarge(&mut self, node: usize) {
        let (now, holder) = (self.now, self.hosts[node].process.to_string());
        let active = self.active(node);
        let Some(link) = active.core.wants_in_set() else { return };
        let term = active.core.term().0;
        let Some(session) = active.session.as_mut().filter(|session| session.link == link) else {
            return;
        };
        let Some((letter, sent)) = session.enlarge else {
            let Some((sidecar, _)) = &session.standby else { return };
            let disk = sidecar.disk;
            let host = self.peer(link).map_or(String::new(), |peer| peer.to_string());
            let member = ft_core::disks::set::Member { host, disk };
            let question = Question::Enlarge { term, holder, member };
            let due = now + self.random.below(5 * MS);
            let letter = self.register.ask(node, question, due);
            if let Some(session) = &mut self.active(node).session {
                session.enlarge = Some((letter, now));
            }
            return;
        };
        match self.register.take_answer(letter, now) {
            // The result is unknown: it is asked again.
            None if now > sent + PATIENCE => session_of(self.active(node)).enlarge = None,
            None => {}
            Some(Ok(_)) => {
                let active = self.active(node);
                let peer = session_of(active).standby.as_ref().map(|(sidecar, _)| sidecar.disk);
                session_of(active).in_set = true;
                active.engine.want.peer = peer;
                self.give_primary(node, P::Disks(D::Enlarged { link }));
            }
            Some(Err(error)) => self.give_primary(node, P::Fenced { reason: error.to_string() }),
        }
    }
}

impl Session {
    fn new(link: LinkId) -> Self {
        Self {
            link,
            standby: None,
            begun: false,
            resync: None,
            precopied: false,
            seals_first: false,
            cover: None,
            report: Report::default(),
            both: Seq(0),
            enlarge: None,
            in_set: false,
            equal: false,
        }
    }
}

fn session_of(active: &mut Active) -> &mut Session {
    active.session.as_mut().expect("a session")
}

fn read_piece(image: &super::image::Image, piece: &Piece) -> Operation {
    let (extent, bytes) = (piece.extent, image.read(&piece.extent));
    if piece.compare {
        Operation::Compare { extent, hash: resync::hash(&bytes, HASH_SEED) }
    } else {
        Operation::Copy { extent, bytes }
    }
}

/// R1: by reference, where the checkpoint's memory has the same bytes.
fn refer(payload: &mut Payload, memory: &[u64; PAGES]) {
    if let Payload::Inline(bytes) = payload
        && let Some(page) = memory.iter().position(|page| page.to_le_bytes() == bytes.as_slice())
    {
        *payload = Payload::Memory(page as u64 * SECTOR);
    }
}
