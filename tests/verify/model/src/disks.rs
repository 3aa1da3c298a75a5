//! The model of own disks: which image may be started, and who says so (rules R6 and R7).
//!
//! A guest is the list of its logged writes, each with the generation in which it was written. An
//! outsider is told such a list. A write is durable on the primary at once; on the standby, after a
//! sync. Processes die, hosts lose power, and claims are carried out late, at any time.

use stateright::{Model, Property};

/// A rule that the exploration can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A claim or a start needs an image that the set names.
    Named,
    /// Outputs are held before the set is enlarged.
    HeldFirst,
    /// The standby is durable up to the covering checkpoint before the set is enlarged.
    DurableFirst,
    /// Once the set may be enlarged, a standby's Bye does not suffice to run alone.
    NewTerm,
    /// The same from the covering checkpoint on: the standby's image may have this generation.
    NewGeneration,
    /// The generation is in the sidecar before the arbiter is asked.
    PendingFirst,
    /// A start keeps or adopts the generation of an earlier claim.
    PendingKept,
    /// The target of a resync is durably inconsistent before its first block.
    InconsistentFirst,
    /// What is told under protection is durable on both sides.
    DurableOnBoth,
    /// After a takeover or a start, what is told is durable here first.
    DurableHere,
    /// An image that the primary's does not continue is not overwritten.
    Continues,
    /// A generation that may have been won counts as the image's.
    PendingCounts,
}

impl Rule {
    pub(crate) const ALL: [Self; 12] = [
        Self::Named,
        Self::HeldFirst,
        Self::DurableFirst,
        Self::NewTerm,
        Self::NewGeneration,
        Self::PendingFirst,
        Self::PendingKept,
        Self::InconsistentFirst,
        Self::DurableOnBoth,
        Self::DurableHere,
        Self::Continues,
        Self::PendingCounts,
    ];
}

/// The writes of a guest, as the generation of each.
type Content = Vec<u8>;

/// The content of an image that is half overwritten.
const HALF: u8 = u8::MAX;

/// A generation: the term, the host, and which of two random numbers it drew.
fn generation(term: u8, host: usize, other: bool) -> u8 {
    term * 8 + u8::try_from(host).expect("three hosts") * 2 + u8::from(other)
}

fn term_of(generation: u8) -> u8 {
    generation / 8
}

/// What a power loss leaves.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Image {
    content: Content,
    /// The newest last.
    lineage: Vec<u8>,
    pending: Option<u8>,
    whole: bool,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Phase {
    // Of a primary.
    Alone,
    Copying,
    Arming,
    /// The arbiter may have been asked to enlarge the set.
    Asked,
    Protected,
    DoubtingAsPrimary,
    // Of a standby.
    Filling,
    Ready,
    /// The set may name it.
    Covered,
    DoubtingAsStandby,
    // Of a process without a machine.
    Waiting,
    Beginning,
    Off,
}

impl Phase {
    fn is_primary(self) -> bool {
        use Phase::*;
        matches!(self, Alone | Copying | Arming | Asked | Protected | DoubtingAsPrimary)
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Host {
    image: Image,
    /// What a read finds.
    content: Content,
    phase: Phase,
    /// The primary's term, or that of the primary that a standby follows.
    term: u8,
    /// What the sidecar is to have as its lineage.
    lineage: Vec<u8>,
    peer: Option<usize>,
    /// The primary's last checkpoint.
    sealed: Content,
    /// The standby's number of durable writes, as reported.
    durable: Option<usize>,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Claim,
    /// The operator's start, from a record that was read with this term and these members.
    Begin {
        seen: (u8, u8),
        force: bool,
    },
    Enlarge(usize),
}

/// A question on its way to the arbiter, or its answer.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    host: usize,
    kind: Kind,
    /// The term that is claimed, or in which the set is enlarged.
    term: u8,
    generation: u8,
    /// The process that has asked is gone.
    orphan: bool,
    answer: Option<bool>,
}

/// The arbiter's record.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Record {
    term: u8,
    /// The process that has won; `None` when it is gone.
    holder: Option<usize>,
    generation: u8,
    members: u8,
}

/// The whole state.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) struct State {
    hosts: Vec<Host>,
    record: Record,
    questions: Vec<Question>,
    told: Content,
    /// What had been told when the operator gave a term up.
    given_up: Content,
    connections: u8,
    ends: u8,
    broken: [bool; 2],
    happened: [bool; 5],
}

/// What is to happen at least once.
const HAPPENS: [&str; 5] = [
    "own disks: a takeover",
    "own disks: a primary wins against its standby",
    "own disks: a cold start",
    "own disks: a start by force",
    "own disks: a claim of a process that is gone is carried out",
];

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Action {
    PowerOff(usize),
    Crash(usize),
    Start(usize),
    Begin(usize, bool),
    Write(usize),
    Tell(usize),
    Sync(usize),
    Record(usize),
    Connect(usize, usize),
    Hold(usize),
    Apply(usize),
    Ask(usize),
    Seal(usize),
    Suspect(usize),
    /// A standby ends its session, and says so.
    Bye(usize),
    Claim(usize),
    Arbitrate(usize),
    Answer(usize),
    LoseAnswer(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Disks {
    pub(crate) hosts: usize,
    pub(crate) terms: u8,
    pub(crate) writes: usize,
    pub(crate) connections: u8,
    /// Processes that die, and power losses.
    pub(crate) ends: u8,
    pub(crate) broken: Option<Rule>,
}

impl State {
    fn names(&self, host: usize) -> bool {
        self.record.members >> host & 1 == 1
    }

    /// A process is gone, and what it had in memory.
    fn end(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        (host.phase, host.term, host.peer, host.durable) = (Phase::Off, 0, None, None);
        (host.sealed, host.lineage) = (Vec::new(), host.image.lineage.clone());
        if self.record.holder == Some(at) {
            self.record.holder = None;
        }
        for question in self.questions.iter_mut().filter(|question| question.host == at) {
            question.orphan = true;
        }
        self.questions.retain(|question| !(question.orphan && question.answer.is_some()));
        self.sort();
    }

    /// The order of questions says nothing.
    fn sort(&mut self) {
        self.questions.sort_unstable();
        self.questions.dedup();
    }

    fn asks(&mut self, question: Question) {
        self.questions.push(question);
        self.sort();
    }

    fn waits(&self, host: usize) -> bool {
        self.questions.iter().any(|question| question.host == host && !question.orphan)
    }

    /// Whether both ends of a session are there.
    fn is_joined(&self, primary: usize, standby: usize) -> bool {
        self.hosts[primary].peer == Some(standby) && self.hosts[standby].peer == Some(primary)
    }

    /// P3: a machine that goes on has all that was told.
    fn goes_on(&mut self, at: usize) {
        self.broken[0] |= !self.hosts[at].content.starts_with(&self.told);
    }
}

impl Disks {
    fn lacks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// The sidecar says which generation is about to be claimed.
    fn claims(&self, state: &mut State, at: usize, term: u8, start: bool) -> u8 {
        let won = state.record.generation;
        let image = &mut state.hosts[at].image;
        let before = image.pending;
        let keeps = !start || !self.lacks(Rule::PendingKept);
        if start && keeps && before == Some(won) {
            image.lineage.push(won);
            state.hosts[at].lineage.push(won);
        }
        let kept = before.filter(|pending| term_of(*pending) == term && keeps);
        let other = before == Some(generation(term, at, false));
        let next = kept.unwrap_or(generation(term, at, other));
        if !self.lacks(Rule::PendingFirst) {
            state.hosts[at].image.pending = Some(next);
        }
        next
    }

    /// Whether an image may be overwritten to be like a primary's.
    fn continues(&self, primary: &Image, standby: &Image) -> bool {
        let ours = &primary.lineage;
        let chains = standby.lineage.last().is_none_or(|theirs| ours.contains(theirs));
        let known = |pending: u8| ours.iter().any(|ours| term_of(*ours) == term_of(pending));
        let pending = standby.pending.is_none_or(known) || self.lacks(Rule::PendingCounts);
        chains && pending || self.lacks(Rule::Continues)
    }

    fn carry_out(&self, state: &mut State, at: usize) {
        let question = state.questions[at];
        let (record, host) = (state.record, question.host);
        let named = state.names(host) || self.lacks(Rule::Named);
        let alive = (!question.orphan).then_some(host);
        let again = record.term == question.term && record.holder == alive && alive.is_some();
        let next = match question.kind {
            Kind::Enlarge(standby) => {
                let holds = (again || question.orphan) && record.generation == question.generation;
                holds.then(|| Record { members: 1 << host | 1 << standby, ..record })
            }
            _ if again => Some(record),
            kind => {
                let (follows, force) = match kind {
                    Kind::Begin { seen, force } => (seen == (record.term, record.members), force),
                    _ => (true, false),
                };
                let wins = record.term + 1 == question.term && follows && (named || force);
                let Question { term, generation, .. } = question;
                wins.then_some(Record { term, generation, holder: alive, members: 1 << host })
            }
        };
        if let Some(next) = next.filter(|next| next.term != record.term) {
            state.happened[4] |= question.orphan;
            if let Kind::Begin { force: true, .. } = question.kind {
                state.given_up = std::mem::take(&mut state.told);
                state.told.clone_from(&state.hosts[host].image.content);
                state.happened[3] = true;
            }
            debug_assert_eq!(next.generation, question.generation);
        }
        state.record = next.unwrap_or(record);
        state.questions[at].answer = Some(next.is_some());
        if question.orphan {
            state.questions.remove(at);
        }
        state.sort();
    }

    fn answer(&self, state: &mut State, at: usize) {
        let question = state.questions.remove(at);
        let (host, won) = (question.host, question.answer == Some(true));
        let phase = state.hosts[host].phase;
        match (phase, question.kind, won) {
            (Phase::Asked, Kind::Enlarge(_), true) => state.hosts[host].phase = Phase::Protected,
            (_, Kind::Enlarge(_), true) => {}
            (_, Kind::Enlarge(_), false) => state.end(host),
            (Phase::Waiting | Phase::Off, ..) => {}
            (Phase::DoubtingAsPrimary | Phase::DoubtingAsStandby | Phase::Beginning, _, true) => {
                let takes = match phase {
                    Phase::DoubtingAsStandby => 0,
                    Phase::DoubtingAsPrimary => 1,
                    _ => 2,
                };
                state.happened[takes] = true;
                let generation = question.generation;
                let one = &mut state.hosts[host];
                (one.phase, one.term, one.peer) = (Phase::Alone, question.term, None);
                if one.lineage.last() != Some(&generation) {
                    one.lineage.push(generation);
                }
                state.goes_on(host);
            }
            (Phase::DoubtingAsPrimary, _, false) => state.end(host),
            (_, _, false) => {
                let one = &mut state.hosts[host];
                (one.phase, one.term, one.peer) = (Phase::Waiting, 0, None);
            }
            other => panic!("an answer to nothing: {other:?}"),
        }
    }

    fn suspect(state: &mut State, at: usize) {
        let one = &mut state.hosts[at];
        one.peer = None;
        match one.phase {
            Phase::Copying => one.phase = Phase::Alone,
            Phase::Arming | Phase::Asked | Phase::Protected => {
                one.phase = Phase::DoubtingAsPrimary;
            }
            Phase::Filling | Phase::Ready => Self::leaves(one),
            Phase::Covered => one.phase = Phase::DoubtingAsStandby,
            _ => {}
        }
    }

    /// A standby gives its session up.
    fn leaves(one: &mut Host) {
        (one.phase, one.term, one.peer) = (Phase::Waiting, 0, None);
        one.lineage.clone_from(&one.image.lineage);
    }

    fn bye(&self, state: &mut State, at: usize) -> Option<()> {
        let primary = state.hosts[at].peer.filter(|primary| state.is_joined(*primary, at))?;
        Self::leaves(&mut state.hosts[at]);
        let suffices = match state.hosts[primary].phase {
            Phase::Arming => self.lacks(Rule::NewGeneration),
            Phase::Asked | Phase::Protected => self.lacks(Rule::NewTerm),
            _ => false,
        };
        Self::suspect(state, primary);
        if suffices {
            state.hosts[primary].phase = Phase::Alone;
            state.questions.retain(|question| question.host != primary);
        }
        Some(())
    }

    fn host_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let host = &state.hosts[at];
        let waits = state.waits(at);
        if host.phase == Phase::Off {
            actions.push(Action::Start(at));
        } else if state.ends < self.ends {
            actions.push(Action::PowerOff(at));
            if host.content != host.image.content {
                actions.push(Action::Crash(at));
            }
        }
        if host.phase == Phase::Waiting && !waits && host.image.whole {
            let lives = state.hosts.iter().any(|host| host.phase.is_primary());
            let away = |other: &Host| other.phase == Phase::Off;
            let lost =
                (0..self.hosts).all(|other| !state.names(other) || away(&state.hosts[other]));
            let image = &host.image;
            let known = [image.lineage.last().copied(), image.pending];
            let ours = known.contains(&Some(state.record.generation));
            if state.names(at) && ours || self.lacks(Rule::Named) {
                actions.push(Action::Begin(at, false));
            } else if !lives && lost && state.given_up.is_empty() && !state.told.is_empty() {
                actions.push(Action::Begin(at, true));
            }
        }
        if host.phase.is_primary() {
            if host.content.len() < self.writes {
                actions.push(Action::Write(at));
            }
            actions.push(Action::Tell(at));
            if host.lineage != host.image.lineage {
                actions.push(Action::Record(at));
            }
        }
        if host.content != host.image.content
            && (host.phase.is_primary() || matches!(host.phase, Phase::Covered))
            || host.phase == Phase::Ready
        {
            actions.push(Action::Sync(at));
        }
        match host.phase {
            Phase::Alone if host.lineage == host.image.lineage => {
                let free = |other: &usize| state.hosts[*other].phase == Phase::Waiting;
                let others = (0..self.hosts).filter(|other| *other != at).filter(free);
                actions.extend(others.map(|other| Action::Connect(at, other)));
            }
            Phase::Copying => actions.push(Action::Hold(at)),
            Phase::Arming => actions.push(Action::Ask(at)),
            Phase::Asked | Phase::Protected if host.sealed != host.content => {
                actions.push(Action::Seal(at));
            }
            Phase::Filling | Phase::Ready | Phase::Covered => actions.push(Action::Apply(at)),
            Phase::DoubtingAsPrimary | Phase::DoubtingAsStandby if !waits => {
                actions.push(Action::Claim(at));
            }
            _ => {}
        }
        if host.phase == Phase::Asked && !waits {
            actions.push(Action::Ask(at));
        }
        if host.peer.is_some() {
            actions.push(Action::Suspect(at));
            if matches!(host.phase, Phase::Ready | Phase::Covered) {
                actions.push(Action::Bye(at));
            }
        }
    }

    fn tell(&self, state: &mut State, at: usize) -> Option<()> {
        let host = &state.hosts[at];
        // P2: the fence. The other model has it.
        if state.record.term != host.term || state.record.holder != Some(at) {
            return None;
        }
        if host.content != host.image.content && !self.lacks(Rule::DurableHere) {
            return None;
        }
        let told = match host.phase {
            Phase::Alone | Phase::Copying => host.content.len(),
            Phase::Arming | Phase::Asked if self.lacks(Rule::HeldFirst) => host.content.len(),
            Phase::Protected if self.lacks(Rule::DurableOnBoth) => {
                let standby = &state.hosts[host.peer?];
                standby.content.len().min(host.sealed.len())
            }
            Phase::Protected => host.durable?,
            _ => return None,
        };
        let told = host.content[..told.min(host.content.len())].to_vec();
        if told.len() <= state.told.len() {
            return None;
        }
        state.broken[0] |= !told.starts_with(&state.told);
        state.told = told;
        Some(())
    }

    fn connect(&self, state: &mut State, primary: usize, standby: usize) -> Option<()> {
        let (ours, theirs) = (&state.hosts[primary], &state.hosts[standby]);
        if state.connections == self.connections || !self.continues(&ours.image, &theirs.image) {
            return None;
        }
        // R6: what an operator gave up is not overwritten without an operator.
        let given_up = &state.given_up;
        let has = |content: &Content| !given_up.is_empty() && content.starts_with(given_up);
        state.broken[1] |= has(&theirs.image.content) && !has(&ours.content);
        let (term, lineage) = (ours.term, ours.lineage.clone());
        state.connections += 1;
        let one = &mut state.hosts[primary];
        (one.phase, one.peer, one.durable) = (Phase::Copying, Some(standby), None);
        let one = &mut state.hosts[standby];
        (one.phase, one.peer, one.term, one.lineage) =
            (Phase::Filling, Some(primary), term, lineage);
        // The first block follows at once.
        (one.content, one.image.content) = (vec![HALF], vec![HALF]);
        one.image.whole = self.lacks(Rule::InconsistentFirst);
        Some(())
    }
}

impl Model for Disks {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let image = Image { content: Vec::new(), lineage: Vec::new(), pending: None, whole: true };
        let host = Host {
            image,
            content: Vec::new(),
            phase: Phase::Waiting,
            term: 0,
            lineage: Vec::new(),
            peer: None,
            sealed: Vec::new(),
            durable: None,
        };
        let mut hosts = vec![host; self.hosts];
        let first = generation(1, 0, false);
        (hosts[0].phase, hosts[0].term) = (Phase::Alone, 1);
        (hosts[0].lineage, hosts[0].image.lineage) = (vec![first], vec![first]);
        vec![State {
            hosts,
            record: Record { term: 1, holder: Some(0), generation: first, members: 1 },
            questions: Vec::new(),
            told: Vec::new(),
            given_up: Vec::new(),
            connections: 0,
            ends: 0,
            broken: [false; 2],
            happened: [false; 5],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in 0..self.hosts {
            self.host_actions(state, at, actions);
        }
        for (at, question) in state.questions.iter().enumerate() {
            if question.answer.is_none() {
                actions.push(Action::Arbitrate(at));
            } else {
                actions.push(Action::Answer(at));
                actions.push(Action::LoseAnswer(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let new = |host, kind, term, generation| Question {
            host,
            kind,
            term,
            generation,
            orphan: false,
            answer: None,
        };
        match action {
            Action::PowerOff(at) => {
                state.end(at);
                state.ends += 1;
                let host = &mut state.hosts[at];
                host.content.clone_from(&host.image.content);
            }
            Action::Crash(at) => {
                state.end(at);
                state.ends += 1;
            }
            Action::Start(at) => state.hosts[at].phase = Phase::Waiting,
            Action::Begin(at, force) => {
                let term = state.record.term + 1;
                if term > self.terms {
                    return None;
                }
                let seen = (state.record.term, state.record.members);
                let generation = self.claims(&mut state, at, term, true);
                state.hosts[at].phase = Phase::Beginning;
                state.asks(new(at, Kind::Begin { seen, force }, term, generation));
            }
            Action::Write(at) => {
                let host = &mut state.hosts[at];
                host.content.push(*host.lineage.last()?);
                host.image.content.clone_from(&host.content);
            }
            Action::Tell(at) => self.tell(&mut state, at)?,
            Action::Sync(at) => {
                let host = &mut state.hosts[at];
                host.image.content.clone_from(&host.content);
                if !host.phase.is_primary() {
                    host.image.lineage.clone_from(&host.lineage);
                    (host.image.whole, host.image.pending) = (true, None);
                    host.phase = Phase::Covered;
                    let (primary, durable) = (host.peer?, host.content.len());
                    if state.is_joined(primary, at) {
                        state.hosts[primary].durable = Some(durable);
                    }
                }
            }
            Action::Record(at) => {
                let host = &mut state.hosts[at];
                host.image.lineage.clone_from(&host.lineage);
                host.image.pending = None;
            }
            Action::Connect(primary, standby) => self.connect(&mut state, primary, standby)?,
            Action::Hold(at) => {
                let host = &mut state.hosts[at];
                (host.phase, host.sealed) = (Phase::Arming, host.content.clone());
            }
            Action::Apply(at) => {
                let primary = state.hosts[at].peer?;
                let sealed = state.hosts[primary].sealed.clone();
                let arms = state.hosts[primary].phase != Phase::Copying;
                if !state.is_joined(primary, at) || !arms || sealed == state.hosts[at].content {
                    return None;
                }
                let host = &mut state.hosts[at];
                host.content = sealed;
                if host.phase == Phase::Filling {
                    host.phase = Phase::Ready;
                }
            }
            Action::Ask(at) => {
                let host = &state.hosts[at];
                let standby = host.peer?;
                let applied = self.lacks(Rule::DurableFirst)
                    && state.hosts[standby].phase == Phase::Ready
                    && state.is_joined(at, standby);
                if host.durable.is_none() && !applied {
                    return None;
                }
                let (term, generation) = (host.term, *host.lineage.last()?);
                state.hosts[at].phase = Phase::Asked;
                state.asks(new(at, Kind::Enlarge(standby), term, generation));
            }
            Action::Seal(at) => {
                let host = &mut state.hosts[at];
                host.sealed.clone_from(&host.content);
            }
            Action::Suspect(at) => Self::suspect(&mut state, at),
            Action::Bye(at) => self.bye(&mut state, at)?,
            Action::Claim(at) => {
                let term = state.hosts[at].term + 1;
                if term > self.terms {
                    return None;
                }
                let generation = self.claims(&mut state, at, term, false);
                state.asks(new(at, Kind::Claim, term, generation));
            }
            Action::Arbitrate(at) => self.carry_out(&mut state, at),
            Action::Answer(at) => self.answer(&mut state, at),
            Action::LoseAnswer(at) => {
                let question = state.questions.remove(at);
                if question.kind != Kind::Claim && !matches!(question.kind, Kind::Enlarge(_)) {
                    // The operator starts it again.
                    state.hosts[question.host].phase = Phase::Waiting;
                    if state.record.holder == Some(question.host) {
                        state.record.holder = None;
                    }
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("P3: a machine goes on with all that was told", |_, state: &State| {
                !state.broken[0]
            }),
            Property::always("P3: each image in the set has it", |_: &Self, state: &State| {
                let has = |at: &usize| {
                    !state.names(*at) || state.hosts[*at].image.content.starts_with(&state.told)
                };
                (0..state.hosts.len()).all(|at| has(&at))
            }),
            Property::always("R6: each image in the set can be started", |_, state: &State| {
                (0..state.hosts.len()).filter(|at| state.names(*at)).all(|at| {
                    let image = &state.hosts[at].image;
                    let known = [image.lineage.last().copied(), image.pending];
                    image.whole && known.contains(&Some(state.record.generation))
                })
            }),
            Property::always("R6: what was given up is not overwritten", |_, state: &State| {
                !state.broken[1]
            }),
            Property::always("R7: who goes on is not half overwritten", |_, state: &State| {
                let whole = |host: &Host| !host.phase.is_primary() || !host.content.contains(&HALF);
                state.hosts.iter().all(whole)
            }),
        ];
        macro_rules! sometimes {
            ($($at:literal),*) => {
                $(all.push(Property::sometimes(HAPPENS[$at], |_, state: &State| state.happened[$at]));)*
            };
        }
        sometimes!(0, 1, 2, 3, 4);
        all
    }
}
