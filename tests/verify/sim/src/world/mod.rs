//! The world: hosts, time, and the order of steps.

mod faults;
mod forge;
mod lanes;
mod network;
mod primary;
mod standby;
mod watch;

use ft_core::handshake::{
    ArbiterView, BootSource, Hello, ImageId, MachineLayout, MemoryRegion, SessionOptions,
};
use ft_core::primary::{Event as P, Phase as PrimaryPhase, Primary, PrimaryOptions};
use ft_core::standby::{Event as S, Lack, Phase as StandbyPhase, Standby, StandbyOptions};
use ft_core::wire::PROTOCOL;
use ft_core::{Backoff, Term, Time};
use io_gate::host::new_gate;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::arbiter::{Client, Kind, Outcome, Register};
use crate::guest::{Guest, PAGES};
use crate::link::Link;
use crate::node::{Active, Fate, Node, Passive, Role, Search, Task};
use crate::observer::Observer;
use crate::plan::Planned;
use crate::random::{Random, mix};
use crate::storage::{Operation, Storage};
use crate::tally::Tally;
use network::{Captured, Recorded};

pub(crate) const NODES: usize = 3;
const MS: u64 = 1_000_000;
/// The guest's kernel: sent to a standby that lacks it, in frames of two bytes.
const KERNEL: ImageId = ImageId { size: KERNEL_BYTES.len() as u64, sha256: [7; 32] };
const KERNEL_BYTES: [u8; 3] = [7, 8, 9];
/// Steps that a world has to recover once nothing fails any more.
const RECOVERY: u64 = 12_000;
/// Number of steps after which both sides have noticed silence.
const SETTLING: u64 = 1200;

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            println!("{:>5} {:>8} us  {}", $world.at, $world.now / 1000, format_args!($($text)*));
        }
    };
}
pub(crate) use trace;

pub(crate) struct World {
    seed: u64,
    plan: VecDeque<Planned>,
    trace: bool,
    random: Random,
    at: u64,
    now: u64,
    kind: Kind,
    /// Shorter or longer than the time-out for setting up and detaching; both occur in the product.
    ack_timeout: Duration,
    register: Register,
    storage: Storage,
    nodes: Vec<Node>,
    links: Vec<Link>,
    next_link: u64,
    next_process: u64,
    /// Until when nothing passes from one host to another, and from a host to the arbiter.
    parted: [[u64; NODES]; NODES],
    cut: [u64; NODES],
    /// Sent frames, by the receiving end, for a network that repeats them.
    captured: [VecDeque<Captured>; 2],
    /// The last messages of sessions. They are rare among the captured frames, and have the
    /// greatest effect.
    words: [VecDeque<Captured>; 2],
    /// Messages that standbys sent when a session began.
    greetings: VecDeque<Captured>,
    /// Which of them the next primary that connects hears, and whether before or after it has been
    /// welcomed.
    echo: Option<(usize, bool)>,
    /// The sessions that standbys have opened, by the numbers of both sides.
    welcomed: HashSet<(u64, u64)>,
    /// What primaries sent in the last sessions, from the first message on.
    recorded: VecDeque<Recorded>,
    observer: Observer,
    /// Nothing fails any more.
    healing: bool,
    /// Nothing fails at all.
    calm: bool,
    /// No driver ticks before the time that its core has asked for.
    punctual: bool,
    /// The machine is ending in order.
    ending: bool,
}

const UNSERVED: &str = "P7, P9: a time-out has passed, but nothing happened";

/// Whether no time-out is overdue: the core must act on an expired time-out, or its driver would
/// ask again forever.
fn is_served(deadline: Option<Time>, now: Time) -> bool {
    deadline.is_none_or(|deadline| deadline >= now)
}

const fn backoff(first: u64, longest: u64) -> Backoff {
    Backoff { first: Duration::from_millis(first), longest: Duration::from_millis(longest) }
}

impl World {
    pub(crate) fn new(seed: u64, plan: &[Planned], trace: bool) -> Self {
        let mut random = Random::new(mix(seed, u64::MAX - 1));
        let kind = [Kind::None, Kind::File, Kind::File, Kind::Lease, Kind::Lease][random.index(5)];
        let ack_timeout = Duration::from_millis([400, 900][random.index(2)]);
        // Clocks differ by up to two per cent, forty times more than Linux permits, or all by the
        // most that a lease allows.
        let worst = random.one_in(2);
        let punctual = random.one_in(2);
        let nodes = (0..NODES)
            .map(|_| Node {
                role: Role::Gone,
                process: 0,
                client: Client::new(kind, 0, Time(0)),
                tasks: VecDeque::new(),
                asleep_until: 0,
                suspended_until: 0,
                hangs_until: 0,
                refuses_until: 0,
                stuck_until: 0,
                waits: 0,
                nap: None,
                fuse: None,
                rate: match worst {
                    true => [945_000, 1_055_000][random.index(2)],
                    false => 980_000 + random.below(40_001),
                },
                added: 0,
            })
            .collect();
        let mut world = Self {
            seed,
            plan: plan.iter().copied().collect(),
            trace,
            random,
            at: 0,
            now: 1000 * MS,
            kind,
            ack_timeout,
            register: Register::default(),
            storage: Storage::default(),
            nodes,
            links: Vec::new(),
            next_link: 1,
            next_process: 1,
            parted: [[0; NODES]; NODES],
            cut: [0; NODES],
            captured: Default::default(),
            words: Default::default(),
            greetings: VecDeque::new(),
            echo: None,
            welcomed: HashSet::new(),
            recorded: VecDeque::new(),
            observer: Observer::default(),
            healing: false,
            calm: plan.is_empty(),
            punctual,
            ending: false,
        };
        trace!(world, "arbiter: {kind:?}");
        world.begin();
        world.start_standby(1);
        if world.random.one_in(2) {
            world.start_standby(2);
        }
        world
    }

    fn primary_options(&self) -> PrimaryOptions {
        PrimaryOptions {
            arbiter: self.kind != Kind::None,
            protect: true,
            heartbeat_interval: Duration::from_millis(20),
            heartbeat_timeout: Duration::from_millis(200),
            ack_timeout: self.ack_timeout,
            setup_timeout: Duration::from_millis(600),
            arbiter_retry: backoff(20, 200),
            connect_retry: backoff(20, 300),
            max_in_flight: 3,
        }
    }

    fn standby_options(&self) -> StandbyOptions {
        StandbyOptions {
            arbiter: self.kind != Kind::None,
            heartbeat_timeout: Duration::from_millis(200),
            heartbeat_interval: Duration::from_millis(20),
            setup_timeout: Duration::from_millis(600),
            arbiter_retry: backoff(20, 200),
            // Only slightly more than one checkpoint needs.
            staging_slack: 16 << 10,
        }
    }

    fn new_process(&mut self, node: usize) {
        let process = self.next_process;
        self.next_process += 1;
        let host = &mut self.nodes[node];
        host.process = process;
        host.client = Client::new(self.kind, process, host.boot_time(self.now));
        host.tasks.clear();
        host.fuse = None;
        host.wake(self.now);
        host.hangs_until = 0;
        host.refuses_until = 0;
        host.stuck_until = 0;
        host.waits = 0;
        host.nap = None;
    }

    fn begin(&mut self) {
        self.new_process(0);
        let now = self.nodes[0].boot_time(self.now);
        self.nodes[0].client.begin(&mut self.register, now);
        let (ledger, authority) = new_gate();
        let now = self.nodes[0].core_time(self.now);
        let (core, actions) = Primary::begin(authority, self.primary_options(), Term(1), now);
        self.activate(0, core, ledger, Guest::new(), actions);
        self.run_tasks(0);
    }

    fn activate(
        &mut self,
        node: usize,
        core: Primary,
        ledger: io_gate::host::Ledger,
        guest: Guest,
        actions: Vec<ft_core::primary::Action>,
    ) {
        let sent = Active::none_sent(&mut self.random);
        let host = &mut self.nodes[node];
        host.role = Role::Active(Box::new(Active {
            core,
            ledger,
            guest,
            digest: ft_core::wire::EpochDigest::default(),
            sent,
            seals_first: None,
            taken: None,
            dials: None,
            search: Search::default(),
            asked: None,
            precopy: None,
            verify: false,
            net: VecDeque::new(),
            disk: VecDeque::new(),
            disk_busy: false,
            performed: VecDeque::new(),
            fenced_off: false,
            asks_operator: false,
            detaches: None,
            says_protected: None,
            lies: 0,
            heard: Time(0),
            silence: Duration::ZERO,
            searches: true,
            sessions: 0,
            host_cache: std::collections::HashMap::new(),
            console: 2,
        }));
        host.waits = 0;
        host.tasks.clear();
        host.tasks.extend(actions.into_iter().map(Task::PrimaryDoes));
    }

    fn start_standby(&mut self, node: usize) {
        self.new_process(node);
        self.nodes[node].role = Role::Passive(Box::new(Passive {
            core: Standby::new(self.standby_options()),
            guest: Guest::new(),
            applied: None,
            held_term: 0,
            check: None,
            heard_term: 0,
            asks_operator: false,
            may_stop: false,
            asked: None,
            opens: None,
            lacks_kernel: false,
            kernel: Vec::new(),
        }));
        trace!(self, "{node} starts as a standby, process {}", self.nodes[node].process);
    }

    fn hello(&mut self, node: usize) -> Box<Hello> {
        let holder = self.nodes[node].process.to_string();
        Box::new(Hello {
            protocol: PROTOCOL,
            release: String::new(),
            name: "vm".into(),
            term: Term(0),
            session: self.random.next().max(1),
            standby_session: 0,
            holder,
            arbiter: ArbiterView { kind: "sim".into(), ..ArbiterView::default() },
            layout: MachineLayout {
                memory: vec![MemoryRegion { start: 0, len: PAGES as u64 * 4096 }],
                cpus: 1,
                page_size: 4096,
                devices: Vec::new(),
            },
            facts: Vec::new(),
            disks: Vec::new(),
            boot: Some(BootSource { kernel: KERNEL, initrd: None, cmdline: String::new() }),
            images: Vec::new(),
            options: SessionOptions { verify: self.random.one_in(2) },
        })
    }

    // ---- the drivers ----

    fn give(&mut self, node: usize, task: Task) {
        self.nodes[node].tasks.push_back(task);
        self.run_tasks(node);
    }

    /// Whether the process can run now.
    fn is_awake(&self, node: usize) -> bool {
        self.nodes[node].asleep_until <= self.now
    }

    /// Burns the fuse by one step; at its end the process dies or stops.
    fn burn(&mut self, node: usize) -> bool {
        let Some((left, fate)) = self.nodes[node].fuse else { return true };
        if left > 0 {
            self.nodes[node].fuse = Some((left - 1, fate));
            return true;
        }
        self.nodes[node].fuse = None;
        trace!(self, "in the middle of what it does, {node}: {fate:?}");
        match fate {
            Fate::Sleeps { time, suspended } => self.sleep(node, time, suspended),
            Fate::Dies => self.kill(node, false),
        }
        false
    }

    /// Runs the pending tasks one after the other, until the process dies or is stopped, or other
    /// threads have their turn.
    fn run_tasks(&mut self, node: usize) {
        while self.is_awake(node) && !self.nodes[node].tasks.is_empty() {
            if self.random.one_in(20) || !self.burn(node) {
                return;
            }
            let Some(task) = self.nodes[node].tasks.pop_front() else { return };
            self.run_task(node, task);
        }
    }

    fn run_task(&mut self, node: usize, task: Task) {
        let now = self.nodes[node].core_time(self.now);
        let host = &mut self.nodes[node];
        match (&mut host.role, task) {
            (Role::Active(active), Task::Primary(event)) => {
                active.listen(now, &event);
                if !matches!(event, P::Tick | P::Frame { .. } | P::Progress { .. }) {
                    trace!(self, "{node} primary <- {event:?}");
                }
                let ticks = event == P::Tick;
                let actions = active.core.handle(now, event).unwrap_or_else(|illegal| {
                    panic!("the driver was refused: {illegal}");
                });
                assert!(!ticks || is_served(active.core.next_deadline(), now), "{UNSERVED}");
                self.first(node, actions.into_iter().map(Task::PrimaryDoes));
            }
            (Role::Passive(passive), Task::Standby(event)) => {
                if matches!(event, S::Frame { .. } | S::Progress { .. }) {
                    // This does not count as silence: the last frames of a dead primary may be
                    // processed late.
                    host.waits = 0;
                }
                if !matches!(event, S::Tick | S::Frame { .. } | S::Progress { .. }) {
                    trace!(self, "{node} standby <- {event:?}");
                }
                let ticks = event == S::Tick;
                let actions = passive.core.handle(now, event).unwrap_or_else(|illegal| {
                    panic!("the driver was refused: {illegal}");
                });
                assert!(!ticks || is_served(passive.core.next_deadline(), now), "{UNSERVED}");
                self.first(node, actions.into_iter().map(Task::StandbyDoes));
            }
            (Role::Active(_), Task::PrimaryDoes(action)) => self.primary_does(node, action),
            (Role::Passive(_), Task::StandbyDoes(action)) => self.standby_does(node, action),
            (_, Task::Send(link, bytes)) => self.send_bytes(link, bytes),
            // The process has another role now.
            _ => {}
        }
    }

    /// Puts tasks before all others, in their order.
    fn first(&mut self, node: usize, tasks: impl DoubleEndedIterator<Item = Task>) {
        for task in tasks.rev() {
            self.nodes[node].tasks.push_front(task);
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

    fn is_active(&self, node: usize) -> bool {
        matches!(self.nodes[node].role, Role::Active(_))
    }

    // ---- time ----

    pub(crate) fn run(mut self, steps: u64) -> Tally {
        while self.at < steps {
            self.step();
            if self.at.is_multiple_of(64) && self.successors().is_empty() {
                break;
            }
        }
        self.heal();
        let expected = !self.successors().is_empty();
        let (seen, begun) = (self.observer.outputs(), self.at);
        // A side that can still go on may end by itself, but then for a reason.
        while !self.successors().is_empty() {
            let goes_on = self.observer.outputs() >= seen + 3 && !self.has_stale();
            if goes_on && self.is_protected_since(begun) {
                break;
            }
            let late = self.at >= begun + RECOVERY;
            assert!(goes_on || !late, "P7: no fault is left, but the machine does not continue");
            assert!(!late, "P7: no fault is left, but the machine is not protected again");
            self.step();
        }
        self.observer.tally.recovered += u64::from(expected);
        if expected && self.random.one_in(3) {
            self.end_in_order();
        }
        if self.random.one_in(3) {
            trace!(self, "all power is lost");
            self.observer.tally.blackouts += 1;
            self.storage.lose_power(&mut self.random);
        }
        self.observer.tally
    }

    fn heal(&mut self) {
        trace!(self, "no fault is left");
        self.healing = true;
        self.plan.clear();
        self.parted = Default::default();
        self.cut = Default::default();
        self.register.down_until = 0;
        self.register.slow_until = 0;
        self.storage.full_until = 0;
        for node in &mut self.nodes {
            node.wake(self.now);
            node.hangs_until = 0;
            node.refuses_until = 0;
            node.stuck_until = 0;
            node.fuse = None;
        }
        for end in self.links.iter_mut().flat_map(|link| &mut link.ends) {
            end.stalled_until = 0;
        }
    }

    /// Whether a standby has acknowledged a checkpoint of the running machine since that step.
    fn is_protected_since(&self, step: u64) -> bool {
        let (last, _) = self.register.last();
        self.nodes.iter().any(|host| {
            let held = self.observer.held(host.process).filter(|held| held.term == last);
            matches!(host.role, Role::Passive(_)) && held.is_some_and(|held| held.at > step)
        })
    }

    /// P7: a guest that powers itself off does not go on.
    fn end_in_order(&mut self) {
        // Late faults show in this time: a link that carries nothing looks intact until then.
        (0..SETTLING).for_each(|_| self.step());
        let (_, holder) = self.register.last();
        let runs =
            (0..NODES).find(|node| self.is_active(*node) && self.nodes[*node].process == holder);
        let Some(node) = runs else { return };
        for node in 0..NODES {
            self.run_tasks(node);
        }
        if self.nodes.iter().any(|host| !host.tasks.is_empty()) {
            // A standby may be about to say that it lacks something.
            return;
        }
        let Role::Active(active) = &self.nodes[node].role else { return };
        let ready = |host: &Node| matches!(&host.role, Role::Passive(passive) if passive.core.phase() == StandbyPhase::Ready);
        if active.core.phase() != PrimaryPhase::Protected || !self.nodes.iter().any(ready) {
            // The sides have just lost each other: whichever is left may go on.
            return;
        }
        trace!(self, "the guest of {node} powers itself off");
        self.ending = true;
        let before = self.observer.tally.takeovers;
        let event = if self.random.one_in(2) { P::GuestPoweredOff } else { P::OperatorStop };
        self.give(node, Task::Primary(event));
        let end = self.at + RECOVERY / 4;
        while !self.successors().is_empty() {
            assert!(self.at < end, "P7: the guest is off, but its standby still waits");
            self.step();
        }
        assert!(
            self.observer.tally.takeovers == before,
            "P7: a standby continues a guest that was off"
        );
    }

    /// The processes that can go on with the guest: the holder of the last term, or, if it is dead,
    /// a standby with a checkpoint of that term.
    fn successors(&self) -> Vec<usize> {
        let (last, holder) = self.register.last();
        let can = |node: &usize| {
            let host = &self.nodes[*node];
            match &host.role {
                Role::Gone => false,
                Role::Active(_) => host.process == holder,
                // By its acknowledgement and not by its state, so that a standby that loses what it
                // has acknowledged is noticed.
                Role::Passive(_) => self
                    .observer
                    .held(host.process)
                    .is_some_and(|held| held.term == last || host.process == holder),
            }
        };
        (0..NODES).filter(can).collect()
    }

    /// Whether a machine that was replaced still acts: it must find out (P2).
    fn has_stale(&self) -> bool {
        let (_, holder) = self.register.last();
        self.nodes.iter().any(|host| matches!(host.role, Role::Active(_)) && host.process != holder)
    }

    fn step(&mut self) {
        let begun = self.now;
        self.at += 1;
        self.random = Random::new(mix(self.seed, self.at));
        self.now += self.random.below(3 * MS / 2);
        while self.plan.front().is_some_and(|planned| planned.step <= self.at) {
            if let Some(planned) = self.plan.pop_front() {
                self.fail(planned.fault);
            }
        }
        let node = self.random.index(NODES);
        match self.random.below(100) {
            0..38 => self.deliver(),
            38..50 => self.when_awake(node, Self::tick),
            50..84 => self.when_awake(node, Self::work),
            // Lanes are threads of their own: they run between the steps of the engine.
            84..94 if self.is_awake(node) => self.perform(node),
            94..96 => self.now += self.random.below(20 * MS),
            96..98 if self.healing => self.when_awake(node, Self::decide_waiting),
            _ => {}
        }
        // The arbiter's client is a thread of its own, and timers are punctual.
        let node = self.random.index(NODES);
        if self.is_awake(node) && self.nodes[node].tasks.is_empty() {
            self.ask_arbiter(node);
            if self.random.one_in(2) {
                self.tick(node);
            }
        }
        self.land();
        self.serve();
        self.look(self.now - begun);
    }

    /// Finishes pending tasks before anything else.
    fn when_awake(&mut self, node: usize, then: fn(&mut Self, usize)) {
        if !self.is_awake(node) {
            return;
        }
        self.run_tasks(node);
        if self.is_awake(node) && self.nodes[node].tasks.is_empty() {
            then(self, node);
        }
    }

    fn tick(&mut self, node: usize) {
        let now = self.now;
        if let Role::Active(active) = &mut self.nodes[node].role
            && let Some((_, event)) = active.dials.take_if(|(due, _)| *due <= now)
        {
            return self.give(node, Task::Primary(event));
        }
        match &self.nodes[node].role {
            Role::Active(active) => {
                let (stuck, stalled) =
                    (self.nodes[node].stuck_until > self.now, active.core.is_stalled());
                let due = self.is_due(node, active.core.next_deadline());
                let event = match (stuck, stalled) {
                    (false, false) | (true, true) if !due => return,
                    (true, false) => P::Stalled { reason: "stuck".into() },
                    (false, true) => P::Recovered,
                    _ => P::Tick,
                };
                self.give(node, Task::Primary(event));
            }
            // As in the product: a standby in the middle of a check gets no ticks, and it gets
            // pending frames before a tick. Without this rule the simulation would demand more of
            // the core than the product does.
            Role::Passive(passive)
                if passive.check.is_some() && self.nodes[node].hangs_until > self.now => {}
            Role::Passive(_) if self.ending && self.has_mail(node) => {}
            Role::Passive(passive) => {
                if self.is_due(node, passive.core.next_deadline()) {
                    self.give(node, Task::Standby(S::Tick));
                }
            }
            Role::Gone => {}
        }
    }

    fn is_due(&self, node: usize, deadline: Option<Time>) -> bool {
        let now = self.nodes[node].core_time(self.now);
        !self.punctual || deadline.is_some_and(|time| time <= now)
    }

    fn has_mail(&self, node: usize) -> bool {
        let mut ends = self.links.iter().flat_map(|link| &link.ends);
        ends.any(|end| end.node == node && end.open && !end.incoming.is_empty())
    }

    // ---- the arbiter ----

    fn serve(&mut self) {
        let served = self.register.serve(self.now, &self.cut, &mut self.random);
        for number in served {
            let waits = self.nodes.iter().any(|host| host.client.asked() == Some(number));
            self.observer.tally.late_claims += u64::from(!waits);
        }
    }

    fn ask_arbiter(&mut self, node: usize) {
        let now = self.nodes[node].boot_time(self.now);
        if matches!(self.nodes[node].role, Role::Gone) {
            return;
        }
        if let Role::Passive(passive) = &mut self.nodes[node].role
            && let Some(term) = passive.opens.take()
        {
            return self.has_opened(node, term);
        }
        let asked = self.nodes[node].client.asked();
        let reply = asked.and_then(|number| self.register.take_reply(number, self.now, &self.cut));
        let client = &mut self.nodes[node].client;
        let (outcome, question) = match reply {
            Some(reply) => client.take(reply, now),
            None => client.tick(now),
        };
        if let Some(question) = question {
            let due = self.now + self.register.delay(self.now, &mut self.random);
            let from = (node, self.nodes[node].process);
            let number = self.register.ask(from, question, due);
            self.nodes[node].client.has_asked(number, now);
        }
        if let Some(outcome) = outcome {
            self.answer(node, outcome);
        }
    }

    fn answer(&mut self, node: usize, outcome: Outcome) {
        let reason = || "no answer".to_string();
        let holder = || "somebody else".to_string();
        let task = match (self.is_active(node), outcome) {
            (true, Outcome::Granted(term)) => Task::Primary(P::ArbiterGranted { term: Term(term) }),
            (true, Outcome::Denied(term)) => {
                Task::Primary(P::ArbiterDenied { term: Term(term), holder: holder() })
            }
            (true, Outcome::Unreachable) => {
                Task::Primary(P::ArbiterUnreachable { reason: reason() })
            }
            (false, Outcome::Granted(term)) => {
                Task::Standby(S::ArbiterGranted { term: Term(term) })
            }
            (false, Outcome::Denied(term)) => {
                let heard = &mut self.passive(node).heard_term;
                *heard = (*heard).max(term);
                Task::Standby(S::ArbiterDenied { term: Term(term), holder: holder() })
            }
            (false, Outcome::Unreachable) => {
                Task::Standby(S::ArbiterUnreachable { reason: reason() })
            }
        };
        if outcome == Outcome::Unreachable {
            self.observer.tally.unreachable += 1;
        }
        self.give(node, task);
    }

    // ---- the operator ----

    fn decide_waiting(&mut self, node: usize) {
        match &self.nodes[node].role {
            Role::Gone if !self.nodes.iter().any(|host| matches!(host.role, Role::Passive(_))) => {
                self.start_standby(node);
            }
            Role::Active(active) if active.core.phase() == PrimaryPhase::WaitingForOperator => {
                self.decide(node);
            }
            // The operator has taken its standby away, and wants one again.
            Role::Active(active)
                if !active.searches
                    && !active.core.is_stalled()
                    && active.core.phase() == PrimaryPhase::Alone =>
            {
                self.protect(node);
            }
            Role::Passive(passive) if passive.core.phase() == StandbyPhase::WaitingForOperator => {
                self.decide(node);
            }
            Role::Passive(passive) if passive.core.lack().is_some() => {
                self.give(node, Task::Standby(S::Resources { lack: None }));
            }
            _ => {}
        }
    }

    fn operate(&mut self, node: usize, choice: u64) {
        match &self.nodes[node].role {
            Role::Active(active) => match (active.core.phase(), choice) {
                (PrimaryPhase::WaitingForOperator, _) => self.decide(node),
                (
                    PrimaryPhase::Alone
                    | PrimaryPhase::Joining
                    | PrimaryPhase::Copying
                    | PrimaryPhase::Sealing,
                    1..,
                ) if !active.core.is_stalled() => {
                    self.protect(node);
                }
                (
                    PrimaryPhase::Alone
                    | PrimaryPhase::Joining
                    | PrimaryPhase::Copying
                    | PrimaryPhase::Sealing
                    | PrimaryPhase::Arming
                    | PrimaryPhase::Protected,
                    0..3,
                ) => {
                    self.active(node).searches = false;
                    self.give(node, Task::Primary(P::OperatorRunAlone));
                }
                _ => {}
            },
            Role::Passive(passive) => match (passive.core.phase(), choice) {
                (StandbyPhase::WaitingForOperator, _) => self.decide(node),
                (_, 4..) => {
                    let lack = passive.core.lack().is_none();
                    let lack = lack.then(|| Lack { reason: "no disk".into(), blocks: choice == 4 });
                    self.give(node, Task::Standby(S::Resources { lack }));
                }
                // The core refuses this while the standby lacks what the guest could not run
                // without.
                (StandbyPhase::Ready, 0..3)
                    if self.kind != Kind::None
                        && passive.core.lack().is_none_or(|lack| !lack.blocks) =>
                {
                    self.passive(node).check = None;
                    self.give(node, Task::Standby(S::OperatorTakeOver));
                }
                (StandbyPhase::Ready | StandbyPhase::Filling, 3) => {
                    self.passive(node).may_stop = true;
                    self.give(node, Task::Standby(S::OperatorStop));
                }
                _ => {}
            },
            Role::Gone => {}
        }
    }

    fn protect(&mut self, node: usize) {
        self.active(node).searches = true;
        self.give(node, Task::Primary(P::OperatorProtect));
    }

    /// Without an arbiter: the operator chooses one side, after turning the other off.
    fn decide(&mut self, node: usize) {
        if let Role::Passive(passive) = &self.nodes[node].role
            && passive.core.lack().is_some_and(|lack| lack.blocks)
        {
            // The core would refuse: the operator first provides what is missing.
            return self.give(node, Task::Standby(S::Resources { lack: None }));
        }
        let (term, primary) = match &self.nodes[node].role {
            Role::Active(active) => (active.core.term().0 + 1, true),
            Role::Passive(passive) => (passive.held_term + 1, false),
            Role::Gone => return,
        };
        let process = self.nodes[node].process;
        if self.register.claim(term, process) != process {
            let task = if primary {
                Task::Primary(P::OperatorStop)
            } else {
                Task::Standby(S::OperatorDiscard)
            };
            return self.give(node, task);
        }
        if primary {
            return self.give(node, Task::Primary(P::OperatorRunAlone));
        }
        for other in 0..NODES {
            if self.is_active(other) {
                self.kill(other, true);
            }
        }
        self.give(node, Task::Standby(S::OperatorTakeOver));
    }

    fn kill(&mut self, node: usize, silent: bool) {
        if matches!(self.nodes[node].role, Role::Gone) {
            return;
        }
        self.observer.tally.crashes += 1;
        self.observer.no_longer_holds(self.nodes[node].process);
        let cache = match &mut self.nodes[node].role {
            Role::Active(active) => std::mem::take(&mut active.host_cache),
            _ => Default::default(),
        };
        if !silent {
            // A kernel that survives writes its cache out.
            for (sector, (tag, serial)) in cache {
                let write = Operation::Write { sector, tag, serial };
                self.storage.take(self.now, u64::MAX, &write);
            }
        }
        let host = &mut self.nodes[node];
        host.role = Role::Gone;
        host.tasks.clear();
        host.fuse = None;
        host.wake(self.now);
        host.hangs_until = 0;
        host.stuck_until = 0;
        for link in &mut self.links {
            for end in 0..2 {
                if link.ends[end].node == node {
                    if silent && link.ends[end].open {
                        link.ends[1 - end].silent = true;
                    }
                    link.close(end, false);
                }
            }
        }
    }
}
