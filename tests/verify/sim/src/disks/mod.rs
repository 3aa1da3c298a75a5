//! A world of its own for own disks: hosts with an image each, a volatile cache, a sidecar and
//! marks; power losses, failing and hanging storage, cold starts. See `docs/simulation.md`.

mod fault;
mod faults;
mod guest;
mod host;
mod image;
mod judge;
mod network;
mod primary;
mod register;
mod standby;

use std::time::Duration;

use ft_core::disks::set::{self, Member, SetRecord};
use ft_core::disks::{Generation, Operation, Sidecar, State};
use ft_core::handshake::{ArbiterView, Hello, MachineLayout, MemoryRegion, SessionOptions};
use ft_core::primary::{Phase, PrimaryOptions};
use ft_core::standby::StandbyOptions;
use ft_core::wire::PROTOCOL;
use ft_core::{Backoff, Term, Time};

use crate::plan::Planned;
use crate::random::{Random, mix};
use crate::tally::Tally;
use crate::world::trace;
pub use fault::DiskFault;
pub(crate) use faults::plan;
use host::{Disk, Engine};
use image::Content;
use judge::Judge;
use network::Wire;
use primary::Active;
use register::{Question, Register};
use standby::Passive;

pub(crate) const NODES: usize = 3;
const MS: u64 = 1_000_000;
/// Steps that a world has to recover once nothing fails any more.
const RECOVERY: u64 = 12_000;

enum Role {
    /// Without power, or without a process.
    Off,
    Active(Box<Active>),
    Passive(Box<Passive>),
}

struct Host {
    disk: Disk,
    role: Role,
    process: u64,
    /// When a host without a process starts one.
    starts_at: u64,
    asleep_until: u64,
    /// The operator has found that its image cannot be used, and replaces it.
    replace_at: Option<u64>,
    /// It loses power at the end of this many more writes; or all hosts do.
    fuse: Option<(u32, bool)>,
    /// An earlier state of its storage.
    copy: Option<Box<Disk>>,
    /// When it is off and the set does not name its image, the image is replaced, or set back.
    tampers: Option<Tamper>,
}

/// What an operator does to an image, by mistake.
#[derive(Clone, Copy)]
enum Tamper {
    Swap,
    SetBack,
}

pub(crate) struct World {
    plan: Vec<Planned>,
    trace: bool,
    random: Random,
    seed: u64,
    at: u64,
    now: u64,
    ack_timeout: Duration,
    hosts: Vec<Host>,
    wires: Vec<Wire>,
    next_link: u64,
    next_process: u64,
    register: Register,
    parted: [[u64; NODES]; NODES],
    cut: [u64; NODES],
    judge: Judge,
    healing: bool,
    /// The guest writes mostly to a part of its disk.
    local: bool,
    /// Steps without a machine.
    dead: u64,
    tally: Tally,
}

const fn backoff(first: u64, longest: u64) -> Backoff {
    Backoff { first: Duration::from_millis(first), longest: Duration::from_millis(longest) }
}

/// A question to the arbiter under way: a claim waits for the sidecar first (R6).
struct Ask {
    term: u64,
    next: Generation,
    /// The letter, and when it was sent.
    asked: Option<(u64, u64)>,
}

const PATIENCE: u64 = 60 * MS;

impl World {
    pub(crate) fn new(seed: u64, plan: &[Planned], trace: bool) -> Self {
        let mut random = Random::new(mix(seed, u64::MAX - 1));
        let hosts = (0..NODES).map(|_| Host {
            disk: Disk::new(&mut random),
            role: Role::Off,
            process: 0,
            starts_at: 0,
            asleep_until: 0,
            replace_at: None,
            fuse: None,
            copy: None,
            tampers: None,
        });
        let hosts = hosts.collect();
        let ack_timeout = Duration::from_millis([400, 900][random.index(2)]);
        let mut world = Self {
            plan: plan.to_vec(),
            trace,
            random,
            seed,
            at: 0,
            now: 1000 * MS,
            ack_timeout,
            hosts,
            wires: Vec::new(),
            next_link: 1,
            next_process: 1,
            register: Register::default(),
            parted: Default::default(),
            cut: Default::default(),
            judge: Judge::new(),
            healing: false,
            local: seed.is_multiple_of(8) || seed % 8 == 1,
            dead: 0,
            tally: Tally::default(),
        };
        world.begin(0, None);
        world.start_standby(1);
        // A third host, now or later.
        world.hosts[2].starts_at = world.now + world.random.below(2000 * MS);
        world
    }

    fn primary_options(&self) -> PrimaryOptions {
        PrimaryOptions {
            arbiter: true,
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

    fn standby_options() -> StandbyOptions {
        StandbyOptions {
            arbiter: true,
            heartbeat_timeout: Duration::from_millis(200),
            heartbeat_interval: Duration::from_millis(20),
            setup_timeout: Duration::from_millis(600),
            arbiter_retry: backoff(20, 200),
            staging_slack: 64 << 10,
        }
    }

    fn hello(&mut self, node: usize) -> Box<Hello> {
        Box::new(Hello {
            protocol: PROTOCOL,
            release: String::new(),
            name: "vm".into(),
            term: Term(0),
            session: self.random.next().max(1),
            standby_session: 0,
            holder: self.hosts[node].process.to_string(),
            arbiter: ArbiterView { kind: "sim".into(), ..ArbiterView::default() },
            layout: MachineLayout {
                memory: vec![MemoryRegion { start: 0, len: 4096 }],
                cpus: 1,
                page_size: 4096,
                devices: Vec::new(),
            },
            facts: Vec::new(),
            disks: Vec::new(),
            boot: None,
            images: Vec::new(),
            options: SessionOptions { verify: false },
        })
    }

    fn time(&self) -> Time {
        Time(self.now)
    }

    fn new_process(&mut self, node: usize) -> u64 {
        self.hosts[node].process = self.next_process;
        self.next_process += 1;
        self.hosts[node].asleep_until = 0;
        self.hosts[node].process
    }

    fn member(&self, node: usize) -> Member {
        Member { host: node.to_string(), disk: self.hosts[node].disk.sidecar().disk }
    }

    fn next_generation(&mut self, term: u64) -> Generation {
        Generation { term, id: u128::from(self.random.next()) }
    }

    fn in_set(&self, node: usize) -> bool {
        let disk = self.hosts[node].disk.sidecar().disk;
        let named = |member: &Member| member.disk == disk;
        self.register.record.as_ref().is_some_and(|record| record.members.iter().any(named))
    }

    fn content(&self, node: usize) -> Content {
        self.hosts[node].disk.image.content
    }

    /// P3: what was told after a flush is durable on every image that the set names.
    fn check_set(&self) {
        for node in 0..NODES {
            if self.in_set(node) && !self.hosts[node].disk.is_swapped() {
                self.judge.in_set(node, &self.hosts[node].disk.image.durable);
            }
        }
    }

    // ---- starts ----

    /// The operator begins the machine on a host, which is refused unless its image is the newest.
    fn begin(&mut self, node: usize, force: Option<u64>) -> bool {
        let mut engine = match Engine::open(&self.hosts[node].disk) {
            Ok(engine) => engine,
            Err(error) => {
                trace!(self, "{node} does not begin: {error}");
                self.tally.refused_images += 1;
                self.replace_later(node);
                return false;
            }
        };
        let process = self.new_process(node);
        let first = self.register.record.is_none();
        let Some((record, next)) = self.begins(node, &mut engine, force) else { return false };
        let sidecar = engine.slots.sidecar();
        assert!(
            first || force.is_some() || self.in_set(node),
            "R6: {node} begins from an image that the set does not name: {:?}",
            self.register.record
        );
        assert!(
            sidecar.state == State::Whole,
            "R6: {node} begins from an image that is {:?}",
            sidecar.state
        );
        let term = record.term;
        self.register.record = Some(record);
        if force.is_some() {
            self.tally.forced += 1;
            self.judge.forced(&self.hosts[node].disk.image);
        }
        if self.random.one_in(10) && !self.healing && !first {
            trace!(self, "{node} loses power right after its claim");
            self.power_off(node);
            return true;
        }
        let content = self.content(node);
        self.judge.boots(node, &content);
        self.tally.cold_starts += u64::from(!first);
        engine.want = engine.want.won(next);
        self.check_set();
        let active = Active::boot(self, engine, term);
        trace!(self, "{node} begins in term {term}, process {process}");
        self.activate(node, active);
        true
    }

    /// Claims the next term for a start. The generation is in the sidecar before the arbiter is
    /// asked; meanwhile the host may lose power, or the arbiter carry out an earlier claim.
    fn begins(
        &mut self,
        node: usize,
        engine: &mut Engine,
        force: Option<u64>,
    ) -> Option<(SetRecord, Generation)> {
        let (member, holder) = (self.member(node), self.hosts[node].process.to_string());
        loop {
            let record = self.register.record.clone();
            let term = record.as_ref().map_or(1, |record| record.term + 1);
            let next = self.next_generation(term);
            let begins = |sidecar: &Sidecar, next| {
                set::begin(record.as_ref(), (&holder, &member), sidecar, next, force)
            };
            if let Err(error) = begins(engine.slots.sidecar(), next) {
                trace!(self, "{node} does not begin: {error}");
                self.tally.refused_starts += 1;
                return None;
            }
            let next = engine.claims(record.as_ref().map(|record| record.generation), next);
            while !engine.is_recorded() {
                self.now += MS;
                engine.write(&mut self.hosts[node].disk, self.now, &mut self.random);
            }
            if record.is_some() && !self.healing && self.random.one_in(10) {
                trace!(self, "{node} loses power right before its claim");
                self.power_off(node);
                return None;
            }
            if self.random.one_in(2) {
                self.serve();
            }
            if self.register.record == record {
                return begins(engine.slots.sidecar(), next).ok().map(|record| (record, next));
            }
        }
    }

    fn start_standby(&mut self, node: usize) {
        let process = self.new_process(node);
        match Engine::open(&self.hosts[node].disk) {
            Ok(engine) => {
                trace!(self, "{node} starts as a standby, process {process}");
                let core = ft_core::standby::Standby::with_disks(Self::standby_options());
                self.hosts[node].role = Role::Passive(Box::new(Passive::new(core, engine)));
            }
            Err(error) => {
                trace!(self, "{node} does not start: {error}");
                self.tally.refused_images += 1;
                self.replace_later(node);
            }
        }
    }

    /// An image that cannot be used: some time later the operator makes a new one.
    fn replace_later(&mut self, node: usize) {
        let later = self.now + self.random.below(1000 * MS);
        self.hosts[node].replace_at.get_or_insert(later);
    }

    fn end_process(&mut self, node: usize) {
        self.hosts[node].role = Role::Off;
        self.hosts[node].process = 0;
        self.hosts[node].starts_at = self.now + 20 * MS + self.random.below(600 * MS);
        let random = &mut self.random;
        self.hosts[node].disk.process_ends(random);
        if self.hosts[node].disk.sidecar().state == State::Failed {
            self.replace_later(node);
        }
    }

    /// A process dies; its kernel closes its connections, and keeps the cache.
    fn crash(&mut self, node: usize) {
        if !matches!(self.hosts[node].role, Role::Off) {
            trace!(self, "{node} crashes");
            self.tally.crashes += 1;
            self.close_all(node, true);
            self.end_process(node);
        }
    }

    fn power_off(&mut self, node: usize) {
        trace!(self, "{node} loses power");
        self.tally.power_losses += 1;
        self.close_all(node, false);
        self.hosts[node].disk.lose_power(&mut self.random);
        self.end_process(node);
    }

    fn replace_image(&mut self, node: usize) {
        match &self.hosts[node].role {
            Role::Off => {}
            Role::Passive(passive) if passive.is_idle() => {
                self.close_all(node, true);
                self.end_process(node);
            }
            _ => return,
        }
        trace!(self, "{node} gets a new image");
        self.tally.replaced_images += 1;
        self.hosts[node].disk = Disk::new(&mut self.random);
        self.hosts[node].replace_at = None;
        self.hosts[node].starts_at = self.now;
    }

    // ---- time ----

    pub(crate) fn run(mut self, steps: u64) -> Tally {
        while self.at < steps {
            self.step();
        }
        self.heal();
        let (begun, compared) = (self.at, self.tally.compared);
        let outputs = self.judge.outputs();
        let mut wait = RECOVERY;
        loop {
            let goes_on = self.judge.outputs() > outputs + 3 || self.judge.outputs() < outputs;
            if goes_on && self.tally.compared > compared && self.protected().is_some() {
                break;
            }
            wait -= 1;
            if wait == 0 {
                for host in &self.hosts {
                    match &host.role {
                        Role::Active(active) => trace!(self, "{}", active.status()),
                        Role::Passive(passive) => trace!(self, "{}", passive.status()),
                        Role::Off => {}
                    }
                }
            }
            assert!(
                wait > 0,
                "P7: no fault is left since step {begun}, but no machine is protected"
            );
            self.step();
        }
        self.tally.recovered += 1;
        self.tally
    }

    /// The images of all members of the set are gone or failed: no machine can begin.
    fn is_lost(&self) -> bool {
        let usable = |node: usize| {
            let disk = &self.hosts[node].disk;
            self.in_set(node) && !disk.is_swapped() && disk.sidecar().state == State::Whole
        };
        let lives = |host: &Host| matches!(host.role, Role::Active(_));
        !self.hosts.iter().any(lives) && !(0..NODES).any(usable)
    }

    fn heal(&mut self) {
        trace!(self, "no fault is left");
        self.healing = true;
        self.plan.clear();
        self.parted = Default::default();
        self.cut = Default::default();
        self.register.down_until = 0;
        for host in &mut self.hosts {
            host.asleep_until = 0;
            host.disk.hangs_until = 0;
            host.disk.image.failing = [0, 0];
        }
    }

    /// The host of a machine that is protected.
    fn protected(&self) -> Option<usize> {
        self.hosts.iter().position(|host| {
            matches!(&host.role, Role::Active(active) if active.core.phase() == Phase::Protected)
        })
    }

    fn step(&mut self) {
        self.at += 1;
        self.random = Random::new(mix(self.seed, self.at));
        self.now += self.random.below(2 * MS);
        while self.plan.first().is_some_and(|planned| planned.step <= self.at) {
            let planned = self.plan.remove(0);
            self.fault(planned.fault);
        }
        self.operate();
        let first = self.random.index(NODES);
        if self.random.one_in(40) {
            let disk = self.hosts[first].disk.clone();
            self.hosts[first].copy = Some(Box::new(disk));
        }
        for node in 0..NODES {
            self.work((first + node) % NODES);
        }
        self.deliver();
        self.serve();
        self.compare();
    }

    fn work(&mut self, node: usize) {
        if self.hosts[node].asleep_until > self.now {
            return;
        }
        match &self.hosts[node].role {
            Role::Active(_) => self.work_primary(node),
            Role::Passive(_) => self.work_standby(node),
            Role::Off => {}
        }
    }

    /// The arbiter carries out what has arrived. The judge looks at each change of the set.
    fn serve(&mut self) {
        let cut = self.cut;
        let carried_out = self.register.carry_out(self.now, &cut, &mut self.random);
        let Some((question, Ok(record))) = carried_out else { return };
        if self.register.record.as_ref() == Some(&record) {
            return;
        }
        trace!(self, "the arbiter carries out {question:?}");
        match question {
            Question::Claim(claim) => {
                let before = self.register.record.as_ref().expect("a record");
                assert!(
                    before.members.iter().any(|member| member.disk == claim.member.disk),
                    "R7: {} wins a term, and the set does not name its image",
                    claim.member.host
                );
            }
            Question::Enlarge { term, .. } => {
                self.tally.enlarged += 1;
                for host in &self.hosts {
                    if let Role::Active(active) = &host.role
                        && active.core.term().0 == term
                    {
                        assert!(!active.open, "R6: the set is enlarged before outputs are held");
                    }
                }
            }
        }
        self.register.record = Some(record);
        self.check_set();
    }

    /// The operator starts what does not run.
    fn operate(&mut self) {
        for node in 0..NODES {
            if self.hosts[node].replace_at.is_some_and(|at| at <= self.now) {
                self.replace_image(node);
            }
            let off = matches!(self.hosts[node].role, Role::Off);
            if off {
                self.tamper(node);
            }
            if off
                && self.hosts[node].starts_at <= self.now
                && self.hosts[node].replace_at.is_none()
            {
                self.start_standby(node);
            }
        }
        let lives = self.hosts.iter().any(|host| matches!(host.role, Role::Active(_)));
        self.dead = if lives { 0 } else { self.dead + 1 };
        if self.dead < 500 || !self.random.one_in(20) {
            return;
        }
        // A host that runs an idle standby, or nothing. Its former process is gone.
        let node = self.random.index(NODES);
        let idle = match &self.hosts[node].role {
            Role::Passive(passive) => passive.is_idle(),
            Role::Off => self.hosts[node].replace_at.is_none(),
            Role::Active(_) => false,
        };
        if idle {
            self.close_all(node, true);
            self.end_process(node);
            // The images of the set are lost: the operator gives up what only they had.
            let force = self.register.record.as_ref().map(|record| record.term);
            let force = force.filter(|_| self.is_lost());
            self.begin(node, force);
        }
    }

    /// Both images are equal when the machine says that it is protected, and both sides are at
    /// rest.
    fn compare(&mut self) {
        let Some(node) = self.protected() else { return };
        let Role::Active(active) = &self.hosts[node].role else { return };
        let Some(link) = active.core.link() else { return };
        let Some(peer) = self.peer(link) else { return };
        let record = self.register.record.as_ref();
        let replaced = record.is_none_or(|record| record.term != active.core.term().0);
        if replaced || self.peer_process(link) != Some(self.hosts[peer].process) {
            return;
        }
        assert!(
            self.in_set(peer),
            "R6: a machine says that it is protected, and the set does not name its standby"
        );
        let Role::Passive(passive) = &self.hosts[peer].role else { return };
        let rests = active.lane.is_empty() && passive.is_at(active.list.last());
        if rests {
            let (ours, theirs) = (self.content(node), self.content(peer));
            assert!(
                ours == theirs,
                "R1: protected and at rest, and the images differ: {ours:x?} {theirs:x?}"
            );
            self.tally.compared += 1;
        }
    }

    fn activate(
        &mut self,
        node: usize,
        (active, actions): (Active, Vec<ft_core::primary::Action>),
    ) {
        self.hosts[node].role = Role::Active(Box::new(active));
        for action in actions {
            self.primary_does(node, action);
        }
    }
}

/// What is read or written for an operation.
fn bytes_of(operation: &Operation) -> Option<Vec<u8>> {
    match operation {
        Operation::Write { payload: ft_core::disks::Payload::Inline(bytes), .. }
        | Operation::Copy { bytes, .. } => Some(bytes.clone()),
        Operation::Zero { extent } => Some(vec![0; extent.len as usize]),
        _ => None,
    }
}
