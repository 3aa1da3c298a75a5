//! The world: three hosts, their links, the arbiter, the operator, time, and what goes wrong.

use std::collections::VecDeque;

use ft_core::handshake::{Hello, MachineLayout, MemoryRegion, SessionOptions};
use ft_core::pages::{Compression, PageFrame};
use ft_core::primary::{self, Primary, PrimaryOptions};
use ft_core::standby::{self, Standby, StandbyOptions};
use ft_core::wire::{Data, EpochDigest, Hashes, Kind, Message, Outgoing, PROTOCOL};
use ft_core::{Epoch, LinkId, Term, Time};
use io_gate::host::{Performable, new_gate};
use io_gate::{ConsoleTx, Port};

use crate::guest::{Guest, PAGES, State, output_of};
use crate::judge::{Judge, Tally};
use crate::link::Link;
use crate::node::{Active, Node, Passive, Role};
use crate::random::Random;

const MS: u64 = 1_000_000;
const NODES: usize = 3;

pub(crate) struct World {
    random: Random,
    trace: bool,
    now: u64,
    arbiter: bool,
    arbiter_down_until: u64,
    nodes: Vec<Node>,
    links: Vec<Link>,
    next_link: u64,
    judge: Judge,
}

enum Event {
    Primary(primary::Event),
    Standby(standby::Event),
}

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            println!("{:>8} us  {}", $world.now / 1000, format_args!($($text)*));
        }
    };
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let arbiter = !random.one_in(4);
        let mut world = Self {
            random,
            trace,
            now: 1000 * MS,
            arbiter,
            arbiter_down_until: 0,
            nodes: Vec::new(),
            links: Vec::new(),
            next_link: 1,
            judge: Judge::default(),
        };
        world.judge.claim(1, 0);
        for _ in 0..NODES {
            let role = Role::Gone;
            world.nodes.push(Node { role, asleep_until: 0, asked: None, started: 0 });
        }
        world.begin();
        world.start_standby(1);
        world.start_standby(2);
        world
    }

    fn primary_options(&self) -> PrimaryOptions {
        PrimaryOptions { arbiter: self.arbiter, max_in_flight: 3, ..PrimaryOptions::default() }
    }

    fn begin(&mut self) {
        let (ledger, authority) = new_gate();
        let (core, actions) =
            Primary::begin(authority, self.primary_options(), Term(1), Time(self.now));
        self.activate(0, core, ledger, Guest::new(), actions);
    }

    fn activate(
        &mut self,
        node: usize,
        core: Primary,
        ledger: io_gate::host::Ledger,
        guest: Guest,
        actions: Vec<primary::Action>,
    ) {
        self.nodes[node].role = Role::Active(Box::new(Active {
            core,
            ledger,
            guest,
            digest: EpochDigest::default(),
            precopy: None,
            verify: false,
            unsettled: Vec::new(),
        }));
        let mut events = VecDeque::new();
        for action in actions {
            self.primary_does(node, action, &mut events);
        }
        self.drain(node, events);
    }

    fn start_standby(&mut self, node: usize) {
        let options = StandbyOptions { arbiter: self.arbiter, ..StandbyOptions::default() };
        let (core, guest) = (Standby::new(options), Guest::new());
        self.nodes[node].started += 1;
        self.nodes[node].role =
            Role::Passive(Box::new(Passive { core, guest, state: None, check: None }));
        trace!(self, "{node} starts as a standby");
    }

    fn hello(&mut self) -> Box<Hello> {
        Box::new(Hello {
            protocol: PROTOCOL,
            release: String::new(),
            name: "vm".into(),
            term: Term(0),
            session: self.random.next(),
            arbiter: "sim".into(),
            layout: MachineLayout {
                memory: vec![MemoryRegion { start: 0, len: PAGES as u64 * 4096 }],
                cpus: 1,
                page_size: 4096,
                devices: Vec::new(),
            },
            disks: Vec::new(),
            facts: Vec::new(),
            options: SessionOptions { verify: self.random.one_in(2) },
        })
    }

    // ---- the drivers ----

    fn give(&mut self, node: usize, event: Event) {
        self.drain(node, VecDeque::from([event]));
    }

    fn drain(&mut self, node: usize, mut events: VecDeque<Event>) {
        while let Some(event) = events.pop_front() {
            let now = Time(self.now);
            match (&mut self.nodes[node].role, event) {
                (Role::Active(active), Event::Primary(event)) => {
                    if !matches!(event, primary::Event::Tick | primary::Event::Frame { .. }) {
                        trace!(self, "{node} primary <- {event:?}");
                    }
                    let actions = active.core.handle(now, event).unwrap();
                    for action in actions {
                        self.primary_does(node, action, &mut events);
                    }
                }
                (Role::Passive(passive), Event::Standby(event)) => {
                    if !matches!(event, standby::Event::Tick | standby::Event::Frame { .. }) {
                        trace!(self, "{node} standby <- {event:?}");
                    }
                    let actions = passive.core.handle(now, event).unwrap();
                    for action in actions {
                        self.standby_does(node, action, &mut events);
                    }
                }
                // Its process has ended, or has another role now.
                _ => {}
            }
        }
    }

    fn active(&mut self, node: usize) -> &mut Active {
        match &mut self.nodes[node].role {
            Role::Active(active) => active,
            _ => panic!("node {node} is no primary"),
        }
    }

    fn passive(&mut self, node: usize) -> &mut Passive {
        match &mut self.nodes[node].role {
            Role::Passive(passive) => passive,
            _ => panic!("node {node} is no standby"),
        }
    }

    fn primary_does(&mut self, node: usize, action: primary::Action, events: &mut VecDeque<Event>) {
        use primary::Action;
        match action {
            Action::Connect => {
                let event = self.connect(node);
                events.push_back(Event::Primary(event));
            }
            Action::Send { link, frame } => self.send(link, &frame),
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} primary closes: {reason}");
                self.close(link);
                self.active(node).precopy = None;
            }
            Action::StartPrecopy { options, .. } => {
                let active = self.active(node);
                active.digest = EpochDigest::default();
                active.precopy = Some(0);
                active.verify = options.verify;
                active.guest.dirty = [false; PAGES];
            }
            Action::SealFirst { .. } => {
                let event = self.seal(node);
                events.push_front(event);
                self.drain_then_send(node, events);
            }
            Action::Hold => self.active(node).ledger.hold(),
            Action::Release { proof, .. } => {
                let term = self.active(node).core.term().0;
                self.judge.releases(term, proof.epoch().0);
                let released = self.active(node).ledger.release(proof);
                self.perform(node, released, events);
            }
            Action::RunAlone(proof) => {
                trace!(self, "{node} runs alone in term {}", proof.term());
                self.judge.acts(proof.term().0, node);
                self.judge.tally.ran_alone += 1;
                let released = self.active(node).ledger.run_alone(proof);
                self.perform(node, released, events);
            }
            Action::AskArbiter { term, .. } => self.nodes[node].asked = Some(term.0),
            Action::Stop { reason, fenced } => {
                trace!(self, "{node} primary stops, fenced {fenced}: {reason}");
                self.judge.tally.fenced += u64::from(fenced);
                self.kill(node);
                events.clear();
            }
            Action::Report(report) => {
                trace!(self, "{node} primary: {report}");
                self.note(&report);
            }
        }
    }

    fn note(&mut self, report: &primary::Report) {
        use primary::Report;
        let tally = &mut self.judge.tally;
        match report {
            Report::Protected { .. } => {
                tally.protected += 1;
                let again = tally.takeovers + tally.renounced > 0;
                tally.reprotected += u64::from(again);
            }
            Report::Verified { verified, .. } => {
                assert!(verified.agree, "P8: {verified:?}");
                tally.verified += 1;
            }
            Report::WaitingForOperator { .. } => tally.operator_waits += 1,
            Report::ArbiterUnreachable { .. } => tally.unreachable += 1,
            _ => {}
        }
    }

    /// What was released leaves, if the fence allows it; the guest learns of it sooner or later.
    fn perform(&mut self, node: usize, what: Vec<Performable>, events: &mut VecDeque<Event>) {
        let term = self.active(node).core.term().0;
        for item in what {
            if self.arbiter && !self.judge.may_perform(term) {
                let reason = format!("a later term than {term} was won");
                events.push_front(Event::Primary(primary::Event::Fenced { reason }));
                return;
            }
            self.judge.sees(output_of(item.record()), item.is_replay());
            self.active(node).unsettled.push(item);
        }
    }

    fn settle(&mut self, node: usize) {
        let active = self.active(node);
        for item in std::mem::take(&mut active.unsettled) {
            active.ledger.settle(item);
        }
    }

    /// Ends the epoch, and tells the machine so before anything is sent.
    fn seal(&mut self, node: usize) -> Event {
        let active = self.active(node);
        let (epoch, term) = (active.ledger.seal(), active.core.term());
        let link = active.core.link().expect("an epoch is sealed for a session");
        let guest = active.guest.clone();
        trace!(self, "{node} seals epoch {epoch} of term {term}");
        self.judge.seals(term.0, epoch.0, guest);
        Event::Primary(primary::Event::Sealed { link, epoch })
    }

    fn drain_then_send(&mut self, node: usize, events: &mut VecDeque<Event>) {
        let sealed = events.pop_front().expect("the seal was put in front");
        self.give(node, sealed);
        self.send_epoch(node);
    }

    fn send_epoch(&mut self, node: usize) {
        let lz4 = self.random.one_in(2);
        let active = self.active(node);
        let (epoch, term) = (active.core.sealed().unwrap(), active.core.term());
        let mut bytes = Vec::new();
        let dirty = std::mem::take(&mut active.guest.dirty);
        let pages = (0..PAGES).filter(|page| dirty[*page]);
        let (guest, digest) = (&active.guest, &mut active.digest);
        send_pages(guest, digest, Kind::Pages, (epoch, term), lz4, pages, &mut bytes);
        let state = State {
            registers: guest.registers.clone(),
            in_flight: active.ledger.in_flight(),
            next_id: active.ledger.next_id(),
        };
        let message = Message::State(Data(postcard::to_allocvec(&state).unwrap()));
        let header = Outgoing { epoch, term, message }.encode(&mut bytes).unwrap();
        digest.add(&header, 0);
        let hashes = active.verify.then(|| hashes(guest));
        let message = Message::End(digest.end(epoch, hashes));
        Outgoing { epoch, term, message }.encode(&mut bytes).unwrap();
        self.send_bytes(node, &bytes);
    }

    fn standby_does(&mut self, node: usize, action: standby::Action, events: &mut VecDeque<Event>) {
        use standby::{Action, Event as E};
        match action {
            Action::Describe { hello } => {
                let event = if self.random.one_in(20) {
                    E::CannotHost { reason: "no memory".into() }
                } else {
                    E::Described { ours: hello }
                };
                events.push_back(Event::Standby(event));
            }
            Action::Send { link, frame } => {
                if frame.message == Message::Ack {
                    self.judge.acknowledges(frame.term.0, frame.epoch.0);
                }
                self.send(link, &frame);
            }
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} standby closes: {reason}");
                self.close(link);
                let passive = self.passive(node);
                // Another link may have been turned away: the check then goes on.
                use standby::Phase;
                if !matches!(passive.core.phase(), Phase::Filling | Phase::Ready) {
                    passive.check = None;
                }
                if passive.core.staged_bytes() == 0 && passive.core.epoch().is_some() {
                    self.judge.tally.torn += 1;
                }
            }
            Action::ApplyBulk(pages) => {
                let memory = &mut self.passive(node).guest.memory;
                pages.for_each(|address, page| write(memory, address, page)).unwrap();
            }
            Action::Check(checkpoint) => {
                let decodes =
                    checkpoint.state().all(|part| postcard::from_bytes::<State>(part).is_ok());
                assert!(decodes, "the checksums have let something through");
                self.passive(node).check = Some(checkpoint.epoch());
                if self.random.one_in(2) {
                    events.push_back(self.check(node));
                }
            }
            Action::Apply(checkpoint) => {
                let passive = self.passive(node);
                let term = passive.core.term().0;
                let memory = &mut passive.guest.memory;
                checkpoint.for_each_page(|address, page| write(memory, address, page)).unwrap();
                let state: State =
                    postcard::from_bytes(checkpoint.state().next().unwrap()).unwrap();
                passive.guest.registers = state.registers.clone();
                passive.state = Some(state);
                let guest = passive.guest.clone();
                self.judge.applies(term, checkpoint.epoch().0, &guest);
                if checkpoint.hashes().is_some() {
                    let (epoch, hashes) = (checkpoint.epoch(), hashes(&guest));
                    events.push_back(Event::Standby(E::Hashed { epoch, hashes }));
                }
            }
            Action::AskArbiter { term, .. } => self.nodes[node].asked = Some(term.0),
            Action::TakeOver { taken, reason } => {
                trace!(self, "{node} takes over in term {}: {reason}", taken.term());
                self.judge.tally.takeovers += 1;
                self.judge.acts(taken.term().0, node);
                events.clear();
                self.take_over(node, taken);
            }
            Action::Discard { reason } => {
                trace!(self, "{node} standby discards: {reason}");
                self.judge.tally.discarded += 1;
                let passive = self.passive(node);
                passive.guest = Guest::new();
                passive.state = None;
            }
            Action::Stop { reason } => {
                trace!(self, "{node} standby stops: {reason}");
                self.kill(node);
                events.clear();
            }
            Action::Report(report) => {
                trace!(self, "{node} standby: {report}");
                if let standby::Report::ArbiterUnreachable { .. } = report {
                    self.judge.tally.unreachable += 1;
                }
            }
        }
    }

    /// The answer to a check.
    fn check(&mut self, node: usize) -> Event {
        let epoch = self.passive(node).check.take().expect("a check is under way");
        Event::Standby(if self.random.one_in(100) {
            self.judge.tally.not_applicable += 1;
            standby::Event::NotApplicable { epoch, reason: "no room".into() }
        } else {
            standby::Event::Applicable { epoch }
        })
    }

    fn is_checking(&self, node: usize) -> bool {
        matches!(&self.nodes[node].role, Role::Passive(passive) if passive.check.is_some())
    }

    fn take_over(&mut self, node: usize, taken: standby::TakenOver) {
        let options = self.primary_options();
        let now = Time(self.now);
        let passive = self.passive(node);
        let guest = passive.guest.clone();
        let state = passive.state.take().expect("P4: a checkpoint to go on from");
        let (mut ledger, authority) = new_gate();
        ledger.adopt(taken.epoch(), state.next_id, state.in_flight);
        let (core, actions) = Primary::after_takeover(authority, options, taken, now);
        self.activate(node, core, ledger, guest, actions);
    }

    // ---- links ----

    fn connect(&mut self, node: usize) -> primary::Event {
        let targets: Vec<usize> = (0..NODES)
            .filter(|at| *at != node && matches!(self.nodes[*at].role, Role::Passive(_)))
            .collect();
        if targets.is_empty() || self.random.one_in(4) {
            return primary::Event::ConnectFailed { reason: "connection refused".into() };
        }
        let target = targets[self.random.index(targets.len())];
        let ids = [LinkId(self.next_link), LinkId(self.next_link + 1)];
        self.next_link += 2;
        self.links.push(Link::new([node, target], ids));
        self.give(target, Event::Standby(standby::Event::Connected { link: ids[1] }));
        primary::Event::StandbyConnected { link: ids[0], hello: self.hello() }
    }

    fn find(&self, id: LinkId) -> Option<(usize, usize)> {
        self.links.iter().enumerate().find_map(|(at, link)| {
            link.ends.iter().position(|end| end.open && end.id == id).map(|end| (at, end))
        })
    }

    fn send(&mut self, id: LinkId, frame: &Outgoing) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        if let Some((link, end)) = self.find(id) {
            self.links[link].send(end, &bytes);
        }
    }

    fn send_bytes(&mut self, node: usize, bytes: &[u8]) {
        for link in &mut self.links {
            if link.ends[0].node == node && link.ends[0].open {
                link.send(0, bytes);
            }
        }
    }

    fn close(&mut self, id: LinkId) {
        if let Some((link, end)) = self.find(id) {
            self.links[link].close(end);
        }
    }

    fn event(end: usize, event: (LinkId, Result<ft_core::wire::Frame, Lost>)) -> Event {
        let (link, what) = event;
        match (end, what) {
            (0, Ok(frame)) => Event::Primary(primary::Event::Frame { link, frame }),
            (_, Ok(frame)) => Event::Standby(standby::Event::Frame { link, frame }),
            (0, Err(Lost::Garbled(error))) => {
                Event::Primary(primary::Event::Garbled { link, error })
            }
            (_, Err(Lost::Garbled(error))) => {
                Event::Standby(standby::Event::Garbled { link, error })
            }
            (0, Err(Lost::Closed)) => {
                Event::Primary(primary::Event::LinkLost { link, reason: "closed".into() })
            }
            (_, Err(Lost::Closed)) => {
                Event::Standby(standby::Event::LinkLost { link, reason: "closed".into() })
            }
        }
    }

    /// Some bytes arrive at one end, or the news that no more will.
    fn deliver(&mut self) {
        self.links.retain(|link| !link.is_over());
        if self.links.is_empty() {
            return;
        }
        let at = self.random.index(self.links.len());
        let side = self.random.index(2);
        let whole = self.random.one_in(2);
        let link = &mut self.links[at];
        let over = link.broken || !link.ends[1 - side].open;
        let end = &mut link.ends[side];
        let (node, id) = (end.node, end.id);
        let asleep = self.nodes[node].asleep_until > self.now;
        if !end.open || asleep || end.stalled_until > self.now {
            return;
        }
        if end.incoming.is_empty() {
            // A broken link is known at once, whatever is under way.
            if over {
                link.close(side);
                self.give(node, Self::event(side, (id, Err(Lost::Closed))));
            }
            return;
        }
        if self.is_checking(node) {
            return;
        }
        let end = &mut self.links[at].ends[side];
        let len =
            if whole { end.incoming.len() } else { 1 + self.random.index(end.incoming.len()) };
        let bytes: Vec<u8> = end.incoming.drain(..len).collect();
        self.receive(at, side, &bytes);
    }

    fn receive(&mut self, at: usize, side: usize, mut bytes: &[u8]) {
        let (node, id) = (self.links[at].ends[side].node, self.links[at].ends[side].id);
        while !bytes.is_empty() {
            let end = &mut self.links[at].ends[side];
            if !end.open {
                return;
            }
            match end.decoder.decode(&mut bytes) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    if let Message::Bye(_) = frame.message
                        && side == 0
                    {
                        self.judge.tally.renounced += 1;
                    }
                    self.give(node, Self::event(side, (id, Ok(frame))));
                    if self.is_checking(node) {
                        let end = &mut self.links[at].ends[side];
                        bytes.iter().rev().for_each(|byte| end.incoming.push_front(*byte));
                        return;
                    }
                }
                Err(error) => {
                    self.judge.tally.garbled += 1;
                    self.links[at].close(side);
                    self.give(node, Self::event(side, (id, Err(Lost::Garbled(error)))));
                    return;
                }
            }
        }
    }

    // ---- what happens by itself ----

    pub(crate) fn step(&mut self) {
        self.now += self.random.below(2 * MS);
        let node = self.random.index(NODES);
        let asleep = self.nodes[node].asleep_until > self.now;
        match self.random.below(100) {
            0..40 => self.deliver(),
            40..55 if !asleep => self.tick(node),
            55..85 if !asleep => self.work(node),
            85..95 if !asleep => self.answer(node),
            95..97 => self.now += self.random.below(30 * MS),
            97 => self.fault(node),
            98 if !asleep => self.operate(node),
            _ => {}
        }
    }

    fn tick(&mut self, node: usize) {
        match &self.nodes[node].role {
            Role::Active(_) => self.give(node, Event::Primary(primary::Event::Tick)),
            Role::Passive(_) => self.give(node, Event::Standby(standby::Event::Tick)),
            Role::Gone if self.random.one_in(10) => self.start_standby(node),
            Role::Gone => {}
        }
    }

    /// The guest runs, and the engine with it.
    fn work(&mut self, node: usize) {
        if self.is_checking(node) {
            let answer = self.check(node);
            return self.give(node, answer);
        }
        if !matches!(self.nodes[node].role, Role::Active(_)) {
            return;
        }
        let (emits, seals, settles) =
            (self.random.one_in(3), self.random.one_in(2), self.random.one_in(2));
        let seed = self.random.next();
        let active = self.active(node);
        active.guest.run(&mut Random::new(seed));
        if emits {
            let bytes = active.guest.output();
            active
                .ledger
                .detached_session(0, |gate| gate.token::<ConsoleTx>().emit(Port(0), bytes));
            let ready = active.ledger.take_ready();
            let mut events = VecDeque::new();
            self.perform(node, ready, &mut events);
            self.drain(node, events);
        }
        if !matches!(self.nodes[node].role, Role::Active(_)) {
            return;
        }
        if settles {
            self.settle(node);
        }
        if self.active(node).precopy.is_some() {
            self.precopy(node);
        } else if seals && self.active(node).core.may_seal() {
            let event = self.seal(node);
            self.give(node, event);
            self.send_epoch(node);
        }
    }

    fn precopy(&mut self, node: usize) {
        let active = self.active(node);
        let page = active.precopy.take().expect("asked before");
        if page == PAGES {
            let link = active.core.link().expect("memory is sent in a session");
            return self.give(node, Event::Primary(primary::Event::PrecopyDone { link }));
        }
        active.precopy = Some(page + 1);
        let mut bytes = Vec::new();
        let about = (active.ledger.epoch(), active.core.term());
        let pages = std::iter::once(page);
        send_pages(&active.guest, &mut active.digest, Kind::Bulk, about, true, pages, &mut bytes);
        self.send_bytes(node, &bytes);
    }

    fn answer(&mut self, node: usize) {
        let Some(term) = self.nodes[node].asked.take() else { return };
        // The claim may be recorded although its answer gets lost.
        let (down, lost) = (self.arbiter_down_until > self.now, self.random.one_in(5));
        let holder = (!down).then(|| self.judge.claim(term, node)).filter(|_| !lost);
        let primary = matches!(self.nodes[node].role, Role::Active(_));
        let term = Term(term);
        let reason = || "no answer".to_string();
        let event = match (holder, primary) {
            (Some(holder), true) if holder == node => {
                Event::Primary(primary::Event::ArbiterGranted { term })
            }
            (Some(holder), true) => {
                let holder = holder.to_string();
                Event::Primary(primary::Event::ArbiterDenied { term, holder })
            }
            (None, true) => Event::Primary(primary::Event::ArbiterUnreachable { reason: reason() }),
            (Some(holder), false) if holder == node => {
                Event::Standby(standby::Event::ArbiterGranted { term })
            }
            (Some(holder), false) => {
                let holder = holder.to_string();
                Event::Standby(standby::Event::ArbiterDenied { term, holder })
            }
            (None, false) => {
                Event::Standby(standby::Event::ArbiterUnreachable { reason: reason() })
            }
        };
        self.give(node, event);
    }

    fn fault(&mut self, node: usize) {
        let kind = self.random.below(12);
        match kind {
            0 => {
                trace!(self, "{node} dies");
                self.kill(node);
            }
            1..3 => {
                let time = self.random.below(1500 * MS);
                trace!(self, "{node} sleeps for {} ms", time / MS);
                self.nodes[node].asleep_until = self.now + time;
            }
            3 => {
                trace!(self, "the arbiter is down");
                self.arbiter_down_until = self.now + self.random.below(800 * MS);
            }
            4..7 if !self.links.is_empty() => {
                let at = self.random.index(self.links.len());
                trace!(self, "link {at} breaks");
                self.links[at].broken = true;
                for end in 0..2 {
                    // What was on its way may still arrive, whole or torn.
                    let incoming = &mut self.links[at].ends[end].incoming;
                    let rest = self.random.index(incoming.len() + 1);
                    incoming.truncate(rest);
                }
            }
            7..9 if !self.links.is_empty() => {
                let at = self.random.index(self.links.len());
                let side = self.random.index(2);
                let time = self.random.below(900 * MS);
                trace!(self, "link {at} stalls towards end {side} for {} ms", time / MS);
                self.links[at].ends[side].stalled_until = self.now + time;
            }
            9.. if !self.links.is_empty() => {
                let at = self.random.index(self.links.len());
                let side = self.random.index(2);
                let incoming = &mut self.links[at].ends[side].incoming;
                if !incoming.is_empty() {
                    let byte = self.random.index(incoming.len());
                    incoming[byte] ^= 1 << self.random.below(8);
                    trace!(self, "link {at} flips a bit towards end {side}");
                }
            }
            _ => {}
        }
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].role = Role::Gone;
        self.nodes[node].asked = None;
        self.nodes[node].asleep_until = 0;
        for link in &mut self.links {
            for end in 0..2 {
                if link.ends[end].node == node {
                    link.close(end);
                }
            }
        }
    }

    fn operate(&mut self, node: usize) {
        use primary::{Event as P, Phase as PP};
        use standby::{Event as S, Phase as SP};
        let choice = self.random.below(6);
        match &self.nodes[node].role {
            Role::Active(active) => {
                let phase = active.core.phase();
                match phase {
                    PP::WaitingForOperator => self.decide(node),
                    PP::Alone if choice == 0 => {
                        self.give(node, Event::Primary(P::OperatorRunAlone));
                    }
                    PP::Alone => self.give(node, Event::Primary(P::OperatorProtect)),
                    PP::Arming | PP::Protected | PP::Copying if choice == 0 => {
                        self.give(node, Event::Primary(P::OperatorRunAlone));
                    }
                    _ => {}
                }
            }
            Role::Passive(passive) => match passive.core.phase() {
                SP::WaitingForOperator => self.decide(node),
                SP::Ready if choice == 0 && self.arbiter => {
                    self.passive(node).check = None;
                    self.give(node, Event::Standby(S::OperatorTakeOver));
                }
                SP::Ready | SP::Filling if choice == 1 => {
                    self.give(node, Event::Standby(S::OperatorStop));
                }
                _ => {}
            },
            Role::Gone => {}
        }
    }

    /// Without an arbiter: the operator chooses one side, and pulls the plug of the other first.
    fn decide(&mut self, node: usize) {
        let (term, primary) = match &self.nodes[node].role {
            Role::Active(active) => (active.core.term().0 + 1, true),
            Role::Passive(passive) => (passive.core.term().0 + 1, false),
            Role::Gone => return,
        };
        if self.judge.claim(term, node) != node {
            let event = if primary {
                Event::Primary(primary::Event::OperatorStop)
            } else {
                Event::Standby(standby::Event::OperatorDiscard)
            };
            return self.give(node, event);
        }
        if primary {
            return self.give(node, Event::Primary(primary::Event::OperatorRunAlone));
        }
        for other in 0..NODES {
            if matches!(self.nodes[other].role, Role::Active(_)) {
                self.kill(other);
            }
        }
        self.give(node, Event::Standby(standby::Event::OperatorTakeOver));
    }

    pub(crate) fn finish(self) -> Tally {
        self.judge.tally
    }
}

enum Lost {
    Closed,
    Garbled(ft_core::wire::WireError),
}

fn send_pages(
    guest: &Guest,
    digest: &mut EpochDigest,
    kind: Kind,
    (epoch, term): (Epoch, Term),
    lz4: bool,
    pages: impl Iterator<Item = usize>,
    bytes: &mut Vec<u8>,
) {
    let compression = if lz4 { Compression::Lz4 } else { Compression::None };
    let mut frame = PageFrame::begin(bytes, kind, epoch, term, compression);
    for page in pages {
        let fill = |to: &mut [u8; 4096]| {
            to.copy_from_slice(&guest.memory[page]);
            Ok::<_, ()>(())
        };
        frame.push(page as u64 * 4096, fill).unwrap();
    }
    let pages = frame.pages();
    digest.add(&frame.finish().unwrap(), pages);
}

fn write(memory: &mut [[u8; 4096]], address: u64, page: &[u8; 4096]) -> Result<(), String> {
    let to = memory.get_mut(address as usize / 4096).ok_or("outside of memory")?;
    *to = *page;
    Ok(())
}

fn hashes(guest: &Guest) -> Hashes {
    let sum = |bytes: &[u8]| {
        bytes.iter().fold(17u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
    };
    let memory =
        guest.memory.iter().map(|page| sum(page)).fold(0, |all: u64, one| all.rotate_left(9) ^ one);
    Hashes { memory, state: guest.registers.history }
}
