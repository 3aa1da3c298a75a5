//! The model of the protocol. Its states have the names of `ft-core`.
//!
//! A machine's guest is the list of the terms in which its epochs ran: two guests are equal as far
//! as their lists are equal. The output that was seen outside is such a list, too. Any machine may
//! be slow for any time, and may suspect another at any time, so pauses and lost heartbeats need no
//! state.

use stateright::{Model, Property};

/// A rule that the exploration can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Only acknowledged epochs are released.
    Acknowledged,
    /// From Arming on, the primary asks the arbiter before it runs alone.
    AskToRunAlone,
    /// The standby asks the arbiter before it takes over.
    AskToTakeOver,
    /// The winner of a claim acts in the next term.
    NextTerm,
    /// The fence is asked before each effect.
    Fence,
    /// A side that renounces drops its checkpoint.
    Discard,
    /// The standby claims the term after its checkpoint's term, and no later term.
    ClaimNext,
    /// The gate holds from the first seal on.
    Hold,
    /// The standby takes checkpoints only in order, and only those of its own session.
    InOrder,
}

impl Rule {
    pub(crate) const ALL: [Self; 9] = [
        Self::Acknowledged,
        Self::AskToRunAlone,
        Self::AskToTakeOver,
        Self::NextTerm,
        Self::Fence,
        Self::Discard,
        Self::ClaimNext,
        Self::Hold,
        Self::InOrder,
    ];
}

/// A guest, as the term of each of its epochs.
type History = Vec<u8>;

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Phase {
    // The phases of a primary.
    Alone,
    Copying,
    Arming,
    Protected,
    Detaching,
    DoubtingAsPrimary,
    Stopped,
    // The phases of a standby.
    Waiting,
    Filling,
    Ready,
    DoubtingAsStandby,
    // A dead machine.
    Dead,
}

impl Phase {
    fn is_primary(self) -> bool {
        use Phase::*;
        matches!(self, Alone | Copying | Arming | Protected | Detaching | DoubtingAsPrimary)
    }

    fn is_sealing(self) -> bool {
        matches!(self, Self::Arming | Self::Protected | Self::Detaching)
    }
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Claim {
    Asked(u8),
    Answered(u8, bool),
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Machine {
    phase: Phase,
    /// The primary's own term, or the term of the held checkpoint.
    term: u8,
    /// The highest term that a standby has heard of.
    heard: u8,
    guest: History,
    acknowledged: usize,
    /// Number of epochs that may be performed.
    released: usize,
    /// Number of released epochs that this machine has performed.
    performed: usize,
    link: Option<u8>,
    claim: Option<Claim>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
enum Message {
    Checkpoint(History),
    Ack(usize),
    Detach,
    Detached,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Link {
    id: u8,
    term: u8,
    ends: [usize; 2],
    /// Messages in transit to the primary, and to the standby.
    to: [Vec<Message>; 2],
}

/// The whole state.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) struct State {
    machines: Vec<Machine>,
    links: Vec<Link>,
    next_link: u8,
    /// The winners of terms 1, 2, ...
    winners: Vec<usize>,
    seen: History,
    /// The term of the last performed effect, and its machine.
    performed: (u8, usize),
    takeovers: u8,
    broken: [bool; 3],
    reprotected: bool,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Action {
    Crash(usize),
    Restart(usize),
    Connect(usize, usize),
    Seal(usize),
    /// Runs one epoch with the gate open.
    Run(usize),
    Perform(usize),
    Deliver(u8, usize),
    /// From this message on, all messages in transit on one direction of a link are lost.
    Lose(u8, usize),
    Suspect(usize),
    Detach(usize),
    Arbitrate(usize),
    Answer(usize),
    LoseAnswer(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) machines: usize,
    pub(crate) terms: u8,
    pub(crate) epochs: usize,
    pub(crate) links: u8,
    pub(crate) broken: Option<Rule>,
}

impl Protocol {
    fn lacks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }
}

fn is_prefix(short: &[u8], long: &[u8]) -> bool {
    long.starts_with(short)
}

impl State {
    /// P2: the fence permits effects if no other machine has won a later term.
    fn permitted(&self, machine: usize) -> bool {
        let term = usize::from(self.machines[machine].term);
        self.winners.iter().skip(term).all(|winner| *winner == machine)
    }

    /// Performs all effects of the first `epochs` epochs of a machine's guest.
    fn perform(&mut self, machine: usize, epochs: usize) {
        self.machines[machine].performed = epochs;
        let one = &self.machines[machine];
        let shown = &one.guest[..epochs];
        // P1: no output that was seen is taken back.
        if shown.len() < self.seen.len() {
            self.broken[0] |= !is_prefix(shown, &self.seen);
        } else {
            self.broken[0] |= !is_prefix(&self.seen, shown);
            self.seen = shown.to_vec();
        }
        // P2: terms never go back, and each term belongs to one machine.
        let (last, by) = self.performed;
        let won = self.winners.get(usize::from(one.term) - 1) == Some(&machine);
        self.broken[1] |= !won || one.term < last || (one.term == last && by != machine && by < 9);
        self.performed = (last.max(one.term), machine);
    }

    /// P1: a machine that continues the guest has everything that was seen.
    fn goes_on(&mut self, machine: usize) {
        let guest = &self.machines[machine].guest;
        self.broken[0] |= !is_prefix(&self.seen, guest);
    }

    fn close(&mut self, machine: usize) {
        self.machines[machine].link = None;
        let open = |id: u8| self.machines.iter().any(|one| one.link == Some(id));
        let gone: Vec<u8> = self.links.iter().map(|link| link.id).filter(|id| !open(*id)).collect();
        self.links.retain(|link| !gone.contains(&link.id));
    }

    fn send(&mut self, machine: usize, to: usize, message: Message) {
        let id = self.machines[machine].link;
        if let Some(link) = self.links.iter_mut().find(|link| Some(link.id) == id) {
            // No machine reads messages to a closed end.
            if self.machines[link.ends[to]].link == id {
                link.to[to].push(message);
            }
        }
    }

    fn alone(&mut self, machine: usize) {
        let one = &mut self.machines[machine];
        one.phase = Phase::Alone;
        one.claim = None;
        one.released = one.guest.len();
        one.acknowledged = one.guest.len();
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let standby = Machine {
            phase: Phase::Waiting,
            term: 0,
            heard: 0,
            guest: Vec::new(),
            acknowledged: 0,
            released: 0,
            performed: 0,
            link: None,
            claim: None,
        };
        let mut machines = vec![standby; self.machines];
        machines[0].phase = Phase::Alone;
        machines[0].term = 1;
        vec![State {
            machines,
            links: Vec::new(),
            next_link: 1,
            winners: vec![0],
            seen: Vec::new(),
            performed: (0, 9),
            takeovers: 0,
            broken: [false; 3],
            reprotected: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (at, one) in state.machines.iter().enumerate() {
            match one.phase {
                Phase::Dead | Phase::Stopped => actions.push(Action::Restart(at)),
                _ => actions.push(Action::Crash(at)),
            }
            let may_run = one.guest.len() < self.epochs;
            if matches!(one.phase, Phase::Alone | Phase::Copying) && may_run && state.permitted(at)
            {
                actions.push(Action::Run(at));
            }
            let flying = one.guest.len() - one.acknowledged.min(one.guest.len());
            let first = one.phase == Phase::Copying;
            if may_run && (first || (one.phase.is_sealing() && flying < 2)) {
                actions.push(Action::Seal(at));
            }
            if one.phase.is_primary() && one.released > one.performed {
                actions.push(Action::Perform(at));
            }
            if one.link.is_some() {
                actions.push(Action::Suspect(at));
            }
            if matches!(one.phase, Phase::Arming | Phase::Protected) {
                actions.push(Action::Detach(at));
            }
            match one.claim {
                Some(Claim::Asked(term)) if term <= self.terms => {
                    actions.push(Action::Arbitrate(at));
                }
                Some(Claim::Answered(..)) => {
                    actions.push(Action::Answer(at));
                    actions.push(Action::LoseAnswer(at));
                }
                _ => {}
            }
            if one.phase == Phase::Alone && state.next_link <= self.links {
                let waits = |other: &usize| state.machines[*other].phase == Phase::Waiting;
                actions.extend(
                    (0..self.machines).filter(waits).map(|other| Action::Connect(at, other)),
                );
            }
        }
        for link in &state.links {
            for to in 0..2 {
                if !link.to[to].is_empty() {
                    actions.push(Action::Deliver(link.id, to));
                    actions.push(Action::Lose(link.id, to));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Crash(at) => {
                state.close(at);
                let one = &mut state.machines[at];
                *one = Machine {
                    phase: Phase::Dead,
                    term: 0,
                    heard: 0,
                    guest: Vec::new(),
                    acknowledged: 0,
                    released: 0,
                    performed: 0,
                    link: None,
                    claim: None,
                };
            }
            Action::Restart(at) => {
                let one = &mut state.machines[at];
                let empty = Machine { phase: Phase::Waiting, ..one.clone() };
                *one = Machine {
                    term: 0,
                    guest: Vec::new(),
                    released: 0,
                    performed: 0,
                    acknowledged: 0,
                    ..empty
                };
                // A new process has won no term.
                for winner in &mut state.winners {
                    if *winner == at {
                        *winner = 9;
                    }
                }
                if state.performed.1 == at {
                    state.performed.1 = 9;
                }
            }
            Action::Connect(primary, standby) => {
                let term = state.machines[primary].term;
                if state.machines[standby].heard > term {
                    return None;
                }
                let id = state.next_link;
                state.next_link += 1;
                state.links.push(Link {
                    id,
                    term,
                    ends: [primary, standby],
                    to: Default::default(),
                });
                state.machines[primary].link = Some(id);
                state.machines[primary].phase = Phase::Copying;
                let one = &mut state.machines[standby];
                (one.link, one.phase, one.heard) = (Some(id), Phase::Filling, term);
            }
            Action::Seal(at) => {
                let one = &mut state.machines[at];
                if one.phase == Phase::Copying {
                    one.phase = Phase::Arming;
                    one.acknowledged = one.guest.len();
                }
                one.guest.push(one.term);
                let guest = one.guest.clone();
                if self.lacks(Rule::Acknowledged) {
                    one.released = guest.len();
                }
                if self.lacks(Rule::Hold) && one.phase == Phase::Arming && state.permitted(at) {
                    state.perform(at, guest.len());
                }
                state.send(at, 1, Message::Checkpoint(guest));
            }
            Action::Run(at) => {
                let one = &mut state.machines[at];
                one.guest.push(one.term);
                (one.released, one.acknowledged) = (one.guest.len(), one.guest.len());
                let epochs = one.guest.len();
                state.perform(at, epochs);
            }
            Action::Perform(at) => {
                if !state.permitted(at) && !self.lacks(Rule::Fence) {
                    return None;
                }
                let epochs = state.machines[at].released;
                state.perform(at, epochs);
            }
            Action::Deliver(id, to) => self.deliver(&mut state, id, to)?,
            Action::Lose(id, to) => {
                let link = state.links.iter_mut().find(|link| link.id == id)?;
                if self.lacks(Rule::InOrder) {
                    link.to[to].remove(0);
                } else {
                    link.to[to].clear();
                    // Later messages are not read, because the stream has a hole.
                    let end = link.ends[to];
                    self.suspect(&mut state, end);
                }
            }
            Action::Suspect(at) => self.suspect(&mut state, at),
            Action::Detach(at) => {
                state.machines[at].phase = Phase::Detaching;
                state.send(at, 1, Message::Detach);
            }
            Action::Arbitrate(at) => {
                let Some(Claim::Asked(term)) = state.machines[at].claim else { return None };
                let term_at = usize::from(term) - 1;
                if state.winners.len() == term_at {
                    state.winners.push(at);
                }
                let won = state.winners.get(term_at) == Some(&at);
                state.machines[at].claim = Some(Claim::Answered(term, won));
            }
            Action::LoseAnswer(at) => {
                let Some(Claim::Answered(term, _)) = state.machines[at].claim else { return None };
                state.machines[at].claim = Some(Claim::Asked(term));
            }
            Action::Answer(at) => self.answer(&mut state, at)?,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("P1: nothing seen is taken back", |_, state: &State| !state.broken[0]),
            Property::always("P2: one machine performs", |_, state: &State| !state.broken[1]),
            Property::always("P3: nothing seen is lost at a takeover", |_, state: &State| {
                !state.broken[2]
            }),
            Property::sometimes("a takeover", |_, state: &State| state.takeovers > 0),
            Property::sometimes("a second takeover", |_, state: &State| state.takeovers > 1),
            Property::sometimes("protected again after a takeover", |_, state: &State| {
                state.reprotected
            }),
            Property::sometimes("a primary that was replaced stops", |_, state: &State| {
                state.machines.iter().any(|one| one.phase == Phase::Stopped)
            }),
            Property::sometimes("a primary wins against its standby", |_, state: &State| {
                state.winners.len() > 1 && state.winners[0] == state.winners[1]
            }),
        ]
    }
}

impl Protocol {
    fn suspect(&self, state: &mut State, at: usize) {
        let phase = state.machines[at].phase;
        state.close(at);
        let one = &mut state.machines[at];
        match phase {
            Phase::Copying => one.phase = Phase::Alone,
            Phase::Arming | Phase::Protected | Phase::Detaching => {
                one.phase = Phase::DoubtingAsPrimary;
                one.claim = Some(Claim::Asked(one.term + 1));
                if self.lacks(Rule::AskToRunAlone) {
                    state.alone(at);
                }
            }
            Phase::Filling => one.phase = Phase::Waiting,
            Phase::Ready => {
                one.phase = Phase::DoubtingAsStandby;
                let next = if self.lacks(Rule::ClaimNext) {
                    u8::try_from(state.winners.len()).unwrap_or(u8::MAX) + 1
                } else {
                    one.term + 1
                };
                one.claim = Some(Claim::Asked(next));
                if self.lacks(Rule::AskToTakeOver) {
                    self.take_over(state, at, next);
                }
            }
            _ => {}
        }
    }

    fn take_over(&self, state: &mut State, at: usize, term: u8) {
        state.takeovers += 1;
        let one = &mut state.machines[at];
        one.term = if self.lacks(Rule::NextTerm) { term - 1 } else { term };
        state.broken[2] |= !is_prefix(&state.seen, &state.machines[at].guest);
        state.goes_on(at);
        state.alone(at);
    }

    fn answer(&self, state: &mut State, at: usize) -> Option<()> {
        let Some(Claim::Answered(term, won)) = state.machines[at].claim.take() else { return None };
        let one = &mut state.machines[at];
        match (one.phase, won) {
            (Phase::DoubtingAsPrimary, true) => {
                if !self.lacks(Rule::NextTerm) {
                    one.term = term;
                }
                state.alone(at);
            }
            (Phase::DoubtingAsPrimary, false) => {
                (one.phase, one.released) = (Phase::Stopped, 0);
            }
            (Phase::DoubtingAsStandby, true) => self.take_over(state, at, term),
            (Phase::DoubtingAsStandby, false) => {
                (one.phase, one.guest, one.term) = (Phase::Waiting, Vec::new(), 0);
            }
            _ => return None,
        }
        Some(())
    }

    fn deliver(&self, state: &mut State, id: u8, to: usize) -> Option<()> {
        let link = state.links.iter_mut().find(|link| link.id == id)?;
        let (at, term) = (link.ends[to], link.term);
        let message = link.to[to].remove(0);
        if state.machines[at].link != Some(id) {
            return None;
        }
        let one = &mut state.machines[at];
        match (one.phase, message) {
            (Phase::Filling | Phase::Ready, Message::Checkpoint(guest)) => {
                let follows = one.phase == Phase::Filling || guest.len() == one.guest.len() + 1;
                if !follows && !self.lacks(Rule::InOrder) {
                    return None;
                }
                let skipped = one.phase == Phase::Ready && guest.len() != one.guest.len() + 1;
                let epoch = guest.len();
                // Without the preceding checkpoint, the pages of this checkpoint give a different
                // machine.
                one.guest = if skipped { vec![0; epoch] } else { guest };
                (one.phase, one.term) = (Phase::Ready, term);
                state.send(at, 0, Message::Ack(epoch));
            }
            (Phase::Filling | Phase::Ready, Message::Detach) => {
                state.send(at, 0, Message::Detached);
                let keeps = self.lacks(Rule::Discard) && state.machines[at].phase == Phase::Ready;
                let one = &mut state.machines[at];
                one.link = None;
                if keeps {
                    one.phase = Phase::DoubtingAsStandby;
                    one.claim = Some(Claim::Asked(one.term + 1));
                } else {
                    (one.phase, one.guest, one.term) = (Phase::Waiting, Vec::new(), 0);
                }
            }
            (Phase::Arming | Phase::Protected | Phase::Detaching, Message::Ack(epoch)) => {
                (one.acknowledged, one.released) = (epoch, epoch);
                if one.phase == Phase::Arming {
                    one.phase = Phase::Protected;
                    state.reprotected |= state.takeovers > 0;
                }
            }
            (Phase::Detaching, Message::Detached) => {
                state.close(at);
                state.alone(at);
            }
            _ => return None,
        }
        Some(())
    }
}
