//! The lanes that perform the effects, one for packets and console and one for the disk, and the
//! storage.

use ft_core::arbiter::Right;
use ft_core::primary::Event as P;
use io_gate::Outcome;
use io_gate::host::{EffectOp, InputOp, Origin, Performable, Request};

use super::{MS, World, trace};
use crate::guest::Output;
use crate::node::{Role, Task};
use crate::storage::{Landing, Operation, StorageAnswer};

fn operation(item: &Performable) -> Option<Operation> {
    match &item.record().request {
        Request::Effect(EffectOp::BlockWrite { sector, data, .. }) => {
            let bytes = data.inline_bytes().unwrap();
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            Some(Operation::Write { sector: *sector as usize, tag: word(0), serial: word(8) })
        }
        Request::Effect(EffectOp::BlockFlush { .. }) => Some(Operation::Flush),
        Request::Input(InputOp::BlockRead { sector, .. }) => {
            Some(Operation::Read { sector: *sector as usize })
        }
        _ => None,
    }
}

/// The outputs in an effect: waiting bytes of a console are one effect with several outputs.
fn outputs(item: &Performable) -> Vec<Output> {
    let bytes = match &item.record().request {
        Request::Effect(EffectOp::ConsoleTx { bytes, .. }) => bytes,
        Request::Effect(EffectOp::NetTx { frame, .. }) => frame,
        other => panic!("not an output: {other:?}"),
    };
    let (mut rest, mut outputs) = (bytes.inline_bytes().unwrap(), Vec::new());
    while !rest.is_empty() {
        let (output, after) = postcard::take_from_bytes(rest).unwrap();
        outputs.push(output);
        rest = after;
    }
    outputs
}

impl World {
    /// Puts released effects into their lanes.
    pub(super) fn enqueue(&mut self, node: usize, mut items: Vec<Performable>) {
        let replays = items.iter().filter(|item| item.is_replay()).count();
        if replays > 1 && deliberate!(ReplayBackwards) {
            items.reverse();
        }
        let active = self.active(node);
        for item in items {
            match operation(&item) {
                Some(_) => active.disk.push_back(item),
                None => active.net.push_back(item),
            }
        }
    }

    /// The fence, asked right before each effect (P2).
    fn may_perform(&mut self, node: usize) -> Right {
        let (host, readable) = (&self.nodes[node], self.register.down_until <= self.now);
        let Role::Active(active) = &host.role else { return Right::Lost };
        let register = (readable && self.cut[node] <= self.now).then_some(&self.register);
        let now = host.boot_time(self.now);
        let right = host.client.may_perform(now, active.core.term().0, register);
        if deliberate!(PerformWithoutFence) {
            return Right::Held;
        }
        match right {
            Right::Held => {}
            Right::Lapsed => self.observer.tally.fence_unknown += 1,
            Right::Lost => self.fenced(node),
        }
        right
    }

    fn fenced(&mut self, node: usize) {
        let active = self.active(node);
        if std::mem::replace(&mut active.fenced_off, true) {
            return;
        }
        trace!(self, "{node} is fenced off");
        let active = self.active(node);
        active.ledger.cancel_held();
        active.net.clear();
        active.disk.clear();
        let reason = "another machine has the right".to_string();
        self.give(node, Task::Primary(P::Fenced { reason }));
    }

    /// One step of one lane.
    pub(super) fn perform(&mut self, node: usize) {
        if !self.is_active(node) || self.active(node).fenced_off || !self.burn(node) {
            return;
        }
        if self.random.one_in(2) {
            self.perform_net(node);
        } else {
            self.perform_disk(node);
        }
    }

    fn perform_net(&mut self, node: usize) {
        if self.active(node).net.is_empty() {
            return;
        }
        let right = self.may_perform(node);
        let unperformed = right == Right::Lapsed && deliberate!(TellUnperformed);
        if right != Right::Held && !unperformed {
            return;
        }
        let Some(item) = self.active(node).net.pop_front() else { return };
        self.nodes[node].waits = 0;
        if !unperformed {
            let term = self.active(node).core.term().0;
            let process = self.nodes[node].process;
            self.watch(process, term, &item);
            for output in outputs(&item) {
                self.observer.sees(output, item.is_replay());
            }
        }
        let active = self.active(node);
        match item.record().origin {
            Origin::Detached { .. } => active.ledger.settle(item),
            Origin::Chain { .. } => {
                active.performed.push_back((item, Outcome::Success(0), None));
            }
        }
    }

    /// P1, P2: every standby that could take this machine's place has the state from which the
    /// effect comes.
    fn watch(&mut self, process: u64, term: u64, item: &Performable) {
        let epoch = item.record().epoch.0;
        self.observer.performs(process, term, epoch);
        self.observer.tally.replays += u64::from(item.is_replay());
        for host in &self.nodes {
            let held = self.observer.held(host.process).filter(|held| held.term == term);
            let Some(held) = held.map(|held| held.epoch) else { continue };
            assert!(
                item.is_replay() || epoch <= held,
                "P1: an effect of epoch {epoch}, term {term}, while a standby holds epoch {held}"
            );
        }
    }

    fn perform_disk(&mut self, node: usize) {
        let active = self.active(node);
        if active.disk_busy {
            return;
        }
        let Some(item) = active.disk.front() else { return };
        let effect = matches!(item.record().request, Request::Effect(_));
        let mut unperformed = false;
        if effect {
            let right = self.may_perform(node);
            unperformed = right == Right::Lapsed && deliberate!(TellUnperformed);
            if right != Right::Held && !unperformed {
                return;
            }
        }
        let active = self.active(node);
        let Some(item) = active.disk.pop_front() else { return };
        let operation = operation(&item).expect("only such are in this lane");
        let skipped = deliberate!(FlushSkipped) && matches!(operation, Operation::Flush);
        if unperformed || skipped {
            return active.performed.push_back((item, Outcome::Success(0), None));
        }
        if matches!(operation, Operation::Write { .. }) && deliberate!(CompleteEarly) {
            active.performed.push_back((item, Outcome::Success(0), None));
            let lands = self.now + self.random.below(20 * MS);
            return self.storage.late.push((lands, operation));
        }
        if deliberate!(WriteBackCache) {
            match operation {
                Operation::Write { sector, tag, serial } => {
                    active.host_cache.insert(sector, (tag, serial));
                    return active.performed.push_back((item, Outcome::Success(0), None));
                }
                Operation::Read { sector } if active.host_cache.contains_key(&sector) => {
                    let tag = active.host_cache.get(&sector).map(|cached| cached.0);
                    return active.performed.push_back((item, Outcome::Success(512), tag));
                }
                Operation::Flush => {
                    let cached = std::mem::take(&mut active.host_cache);
                    let now = self.now;
                    for (sector, (tag, serial)) in cached {
                        let write = Operation::Write { sector, tag, serial };
                        self.storage.take(now, u64::MAX, &write);
                    }
                }
                Operation::Read { .. } => {}
            }
        }
        let active = self.active(node);
        active.disk_busy = true;
        let term = active.core.term().0;
        let process = self.nodes[node].process;
        let slow = if self.random.one_in(12) { 400 } else { 4 };
        let lands = self.now + self.random.below(slow * MS);
        let landing = Landing { process, node, term, operation, request: item, lands };
        self.storage.landing.push(landing);
    }

    /// Requests reach the storage, even those of dead processes.
    pub(super) fn land(&mut self) {
        let now = self.now;
        while let Some(at) = self.storage.late.iter().position(|late| late.0 <= now) {
            let (_, write) = self.storage.late.swap_remove(at);
            self.storage.take(now, u64::MAX, &write);
        }
        let due = |landing: &Landing| landing.lands <= now;
        while let Some(at) = self.storage.landing.iter().position(due) {
            let landing = self.storage.landing.swap_remove(at);
            let answer = self.storage.take(now, landing.term, &landing.operation);
            let write = !matches!(landing.operation, Operation::Read { .. });
            let alive =
                self.nodes[landing.node].process == landing.process && self.is_active(landing.node);
            if write && answer == StorageAnswer::Done {
                // A machine that won its next term while the request was in transit is the same
                // machine.
                let term =
                    if alive { self.active(landing.node).core.term().0 } else { landing.term };
                self.watch(landing.process, term, &landing.request);
                let tally = &mut self.observer.tally;
                match landing.operation {
                    Operation::Flush => tally.flushes += 1,
                    _ => tally.writes += 1,
                }
            }
            if alive {
                self.landed(landing, answer);
            } else if answer == StorageAnswer::Fenced {
                self.observer.tally.storage_refused += 1;
            }
        }
    }

    fn landed(&mut self, landing: Landing, answer: StorageAnswer) {
        let node = landing.node;
        let active = self.active(node);
        active.disk_busy = false;
        let (outcome, data) = match answer {
            StorageAnswer::Done => (Outcome::Success(0), None),
            StorageAnswer::Read(tag) => (Outcome::Success(512), Some(tag)),
            StorageAnswer::Full => {
                self.observer.tally.disk_full += 1;
                (Outcome::Failed, None)
            }
            StorageAnswer::Fenced => {
                self.observer.tally.storage_refused += 1;
                return self.fenced(node);
            }
        };
        self.active(node).performed.push_back((landing.request, outcome, data));
    }
}
