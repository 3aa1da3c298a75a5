//! The history of all clients' operations, and each contradiction in it. Judges P1 and P3 from
//! outside.
//!
//! Each answer is checked against the answers that were known when its operation was first sent.
//! The count of applied operations never falls behind (nothing acknowledged is lost or rolled
//! back). No number is given twice (nothing is applied twice). The hash chain over all operations
//! equals the one recomputed here.

use kemari_workload::{CHAIN_START, OpCode, Reply, Status, chain_after};

use crate::findings::{Finding, Kind};

/// A state-changing operation that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The client.
    pub client: u32,
    /// The client's sequence number of the operation.
    pub seq: u64,
    /// The kind of operation.
    pub op: OpCode,
    /// The hash of the payload in the guest's log.
    pub payload_hash: u64,
    /// The hash chain after the operation.
    pub chain: u64,
}

/// The highest answers to any client before an operation was first sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    applied: u64,
    clock_ns: u64,
    dirty_pages: u64,
    disk_fails: bool,
}

/// A request, as the history records it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client.
    pub client: u32,
    /// The client's sequence number of the request.
    pub seq: u64,
    /// The kind of operation.
    pub op: OpCode,
    /// The hash of the payload that the guest is to log.
    pub payload_hash: u64,
    /// The highest answers before the request was first sent.
    pub floor: Floor,
    /// The value that a get must answer: the last value that this client put, or `Some(None)` if it
    /// never put one. `None` for a shared key and for other operations.
    pub expected: Option<Option<u64>>,
}

/// The history of all clients of one guest.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// Index `n` holds operation `n + 1`.
    applied: Vec<Option<Applied>>,
    /// Number of operations, from the first on, that are known and were compared with the chain.
    verified: u64,
    boot_id: Option<u64>,
    /// Whether the guest may answer with a new boot ID, because the harness ordered it to reset
    /// itself.
    may_reset: bool,
    /// The guest's boot IDs before each reset.
    former: Vec<u64>,
    highest: Floor,
    faults: u64,
    /// Number of failed writes.
    disk_errors: u64,
    disk_fails: bool,
    findings: Vec<Finding>,
}

impl History {
    /// The highest answers so far.
    pub fn floor(&self) -> Floor {
        Floor { disk_fails: self.disk_fails, ..self.highest }
    }

    /// The highest number of an acknowledged operation.
    pub fn acknowledged(&self) -> u64 {
        self.applied.len() as u64
    }

    /// The acknowledged operation number `index`, which counts from 1.
    pub fn applied(&self, index: u64) -> Option<Applied> {
        *self.applied.get(usize::try_from(index.checked_sub(1)?).ok()?)?
    }

    /// The guest's boot ID; `None` before its first answer.
    pub fn boot_id(&self) -> Option<u64> {
        self.boot_id
    }

    /// Sets whether the guest may reset itself from now on.
    pub fn may_reset(&mut self, may: bool) {
        self.may_reset = may;
    }

    /// Whether `reply` comes from a guest that has reset itself, as permitted. Its memory begins
    /// anew.
    pub fn is_reset_by(&self, reply: &Reply) -> bool {
        self.may_reset
            && self.boot_id.is_some_and(|known| known != reply.boot_id)
            && !self.former.contains(&reply.boot_id)
    }

    /// Starts an empty history after a reset of the guest. Records the former boot ID, which must
    /// not appear again.
    pub fn begin_anew(&mut self) {
        let mut old = std::mem::take(self);
        old.former.extend(old.boot_id);
        let Self { may_reset, former, disk_fails, disk_errors, findings, .. } = old;
        *self = Self { may_reset, former, disk_fails, disk_errors, findings, ..Self::default() };
    }

    /// Sets whether writes may fail from now on. A request that was sent while they could may still
    /// report a failure.
    pub fn disk_fails(&mut self, fails: bool) {
        self.disk_fails = fails;
    }

    /// The number of failed writes.
    pub fn disk_errors(&self) -> u64 {
        self.disk_errors
    }

    /// The contradictions since the last call.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Records a finding.
    pub fn note(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Records the first answer to `asked`.
    pub fn answered(&mut self, asked: &Asked, reply: &Reply) {
        self.check_guest(asked, reply);
        self.check_order(asked, reply);
        self.check_result(asked, reply);
        if asked.op.changes_state() && reply.status == Status::Ok {
            self.record(asked, reply);
        }
        self.highest.applied = self.highest.applied.max(reply.applied);
        self.highest.clock_ns = self.highest.clock_ns.max(reply.clock_ns);
        self.highest.dirty_pages = self.highest.dirty_pages.max(reply.dirty_pages);
    }

    /// Checks that a further answer to an answered request agrees with the first.
    pub fn answered_again(&mut self, reply: &Reply) {
        // Answers of a guest before its reset were checked before the reset.
        let is_former = self.former.contains(&reply.boot_id);
        if is_former || !reply.op.changes_state() || reply.status != Status::Ok {
            return;
        }
        let same = self.applied(reply.applied).is_some_and(|known| {
            (known.client, known.seq, known.chain) == (reply.client, reply.seq, reply.chain)
        });
        if !same {
            self.note(Finding::new(
                Kind::Duplicated,
                format!(
                    "request {} of client {} is answered again, now as operation {}",
                    reply.seq, reply.client, reply.applied
                ),
            ));
        }
    }

    /// Records a finding if an acknowledged operation is missing. The result is exact only when no
    /// request is outstanding.
    pub fn check_complete(&mut self) {
        if self.verified < self.acknowledged() {
            let missing = self.verified + 1;
            let total = self.acknowledged();
            self.note(Finding::new(
                Kind::Lost,
                format!(
                    "{total} operations are counted, but no client got an answer for number {missing}"
                ),
            ));
        }
    }

    fn check_guest(&mut self, asked: &Asked, reply: &Reply) {
        let first = *self.boot_id.get_or_insert(reply.boot_id);
        if self.former.contains(&reply.boot_id) {
            let found = reply.boot_id;
            let what = format!("boot id {found:#x} came back, which was reset to {first:#x}");
            self.note(Finding::new(Kind::RolledBack, what));
        } else if first != reply.boot_id {
            let found = reply.boot_id;
            self.boot_id = Some(found);
            self.note(Finding::new(Kind::Lost, format!("boot id {first:#x} became {found:#x}")));
        }
        if reply.faults > self.faults {
            self.faults = reply.faults;
            let (faults, seq) = (reply.faults, asked.seq);
            self.note(Finding::new(
                Kind::Corrupt,
                format!("it counts {faults} when it answers request {seq}"),
            ));
        }
    }

    fn check_order(&mut self, asked: &Asked, reply: &Reply) {
        let Asked { client, seq, op, floor, .. } = *asked;
        let least = floor.applied + u64::from(op.changes_state() && reply.status == Status::Ok);
        if reply.applied < least {
            let found = reply.applied;
            self.note(Finding::new(Kind::RolledBack, format!(
                "request {seq} of client {client} was sent after operation {} was acknowledged; \
                 expected to be answered at {least} or later, found {found}",
                floor.applied
            )));
        }
        if reply.clock_ns < floor.clock_ns {
            let back = floor.clock_ns - reply.clock_ns;
            self.note(Finding::new(
                Kind::RolledBack,
                format!("by {back} ns at request {seq} of client {client}"),
            ));
        }
        if reply.dirty_pages < floor.dirty_pages {
            let (before, found) = (floor.dirty_pages, reply.dirty_pages);
            self.note(Finding::new(
                Kind::RolledBack,
                format!("{before} pages dirtied became {found}"),
            ));
        }
    }

    fn check_result(&mut self, asked: &Asked, reply: &Reply) {
        let Asked { client, seq, op, .. } = *asked;
        let found = (reply.status, reply.value);
        if reply.status == Status::DiskError && op.changes_state() {
            self.disk_errors += 1;
            if asked.floor.disk_fails || self.disk_fails {
                return;
            }
        }
        let right = match asked.expected {
            Some(Some(value)) => found == (Status::Ok, value),
            Some(None) => reply.status == Status::NotFound,
            // A key that all clients share: the linearizability judge checks its values.
            None if op == OpCode::Get => matches!(reply.status, Status::Ok | Status::NotFound),
            None => reply.status == Status::Ok,
        };
        if !right {
            let expected = asked.expected;
            self.note(Finding::new(Kind::Behaviour, format!(
                "{op:?}, request {seq} of client {client}: {found:?}, expected value {expected:?}"
            )));
        }
        if op == OpCode::Verify && reply.status == Status::Ok && reply.value != 0 {
            self.note(Finding::new(
                Kind::Corrupt,
                format!("its own check finds {} faults", reply.value),
            ));
        }
    }

    fn record(&mut self, asked: &Asked, reply: &Reply) {
        let Asked { client, seq, op, payload_hash, .. } = *asked;
        let entry = Applied { client, seq, op, payload_hash, chain: reply.chain };
        let Some(place) =
            reply.applied.checked_sub(1).and_then(|place| usize::try_from(place).ok())
        else {
            return self.note(Finding::new(
                Kind::Behaviour,
                format!("request {seq}: applied as operation 0"),
            ));
        };
        // A number this far out of sequence is an error, not a gap that later answers fill.
        if place > self.applied.len() + kemari_workload::MAX_CLIENTS {
            let expected = self.applied.len() + 1;
            return self.note(Finding::new(
                Kind::Behaviour,
                format!("expected about operation {expected}, found {}", reply.applied),
            ));
        }
        if place >= self.applied.len() {
            self.applied.resize(place + 1, None);
        }
        if let Some(before) = self.applied[place].replace(entry) {
            self.note(Finding::new(Kind::RolledBack, format!(
                "operation {} was request {} of client {}, now it is request {seq} of client {client}",
                reply.applied, before.seq, before.client
            )));
        }
        self.verify_chain();
    }

    /// Recomputes the chain up to the first unknown operation.
    fn verify_chain(&mut self) {
        while let Some(next) = self.applied(self.verified + 1) {
            let before = self.applied(self.verified).map_or(CHAIN_START, |last| last.chain);
            let Applied { client, seq, op, payload_hash, chain } = next;
            let expected = chain_after(before, client, seq, op as u8, payload_hash);
            self.verified += 1;
            if chain != expected {
                let index = self.verified;
                self.note(Finding::new(Kind::Lost, format!(
                    "operation {index} does not follow its predecessor: expected chain {expected:#x}, found {chain:#x}"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(seq: u64, op: OpCode, floor: Floor) -> Asked {
        Asked { client: 1, seq, op, payload_hash: seq, floor, expected: None }
    }

    fn reply(asked: &Asked, applied: u64, before: u64) -> Reply {
        Reply {
            client: asked.client,
            seq: asked.seq,
            op: asked.op,
            status: Status::Ok,
            applied,
            chain: chain_after(before, asked.client, asked.seq, asked.op as u8, asked.payload_hash),
            clock_ns: 100 * applied,
            dirty_pages: 0,
            faults: 0,
            value: 0,
            boot_id: 7,
        }
    }

    /// A history of `count` correct answers.
    fn history(count: u64) -> (History, u64) {
        let (mut history, mut chain) = (History::default(), CHAIN_START);
        for seq in 1..=count {
            let asked = asked(seq, OpCode::Append, history.floor());
            let reply = reply(&asked, seq, chain);
            chain = reply.chain;
            history.answered(&asked, &reply);
        }
        (history, chain)
    }

    fn findings_of(change: impl FnOnce(&mut Reply)) -> Vec<Finding> {
        let (mut history, chain) = history(5);
        let asked = asked(6, OpCode::Append, history.floor());
        let mut reply = reply(&asked, 6, chain);
        change(&mut reply);
        history.answered(&asked, &reply);
        history.check_complete();
        history.take_findings()
    }

    #[test]
    fn a_right_history_has_no_violation() {
        assert_eq!(findings_of(|_| {}), []);
    }

    #[test]
    fn a_lost_operation_shows() {
        let found = findings_of(|reply| reply.applied = 5);
        assert!(matches!(found[0], Finding { kind: Kind::RolledBack, .. }), "{found:?}");
    }

    #[test]
    fn a_forked_history_shows() {
        let found = findings_of(|reply| reply.chain ^= 1);
        assert!(matches!(found[..], [Finding { kind: Kind::Lost, .. }]), "{found:?}");
    }

    #[test]
    fn an_operation_of_no_client_is_found() {
        let found = findings_of(|reply| reply.applied = 7);
        assert!(matches!(found[..], [Finding { kind: Kind::Lost, .. }]), "{found:?}");
    }

    #[test]
    fn clock_restart_fault_and_error_show() {
        let found = findings_of(|reply| reply.clock_ns = 1);
        assert!(matches!(found[..], [Finding { kind: Kind::RolledBack, .. }]), "{found:?}");
        let found = findings_of(|reply| reply.boot_id = 8);
        assert!(matches!(found[..], [Finding { kind: Kind::Lost, .. }]), "{found:?}");
        let found = findings_of(|reply| reply.faults = 1);
        assert!(matches!(found[..], [Finding { kind: Kind::Corrupt, .. }]), "{found:?}");
        let found = findings_of(|reply| reply.status = Status::Stale);
        assert!(matches!(found[..], [Finding { kind: Kind::Behaviour, .. }]), "{found:?}");
    }

    /// P1: a guest that was reset does not come back, and a reset without an order is a finding.
    #[test]
    fn a_guest_that_was_reset_begins_anew_and_does_not_come_back() {
        let answer = |history: &mut History, seq: u64, boot_id: u64, applied: u64| {
            let asked = asked(seq, OpCode::Append, history.floor());
            let reply = Reply { boot_id, ..reply(&asked, applied, CHAIN_START) };
            let reset = history.is_reset_by(&reply);
            if reset {
                history.begin_anew();
            }
            let asked = Asked { floor: history.floor(), ..asked };
            history.answered(&asked, &reply);
            reset
        };
        let (mut history, _) = history(5);
        history.may_reset(true);
        assert!(answer(&mut history, 6, 8, 1));
        history.check_complete();
        assert_eq!((history.take_findings(), history.acknowledged()), (vec![], 1));
        assert!(!answer(&mut history, 7, 7, 6));
        let found = history.take_findings();
        assert!(
            found
                .iter()
                .any(|found| found.kind == Kind::RolledBack && found.what.contains("came back")),
            "{found:?}"
        );
        history.may_reset(false);
        assert!(!answer(&mut history, 8, 9, 1));
        assert!(!history.take_findings().is_empty());
    }

    #[test]
    fn the_same_answer_again_is_no_second_effect() {
        let (mut history, chain) = history(5);
        let asked = asked(6, OpCode::Append, history.floor());
        let first = reply(&asked, 6, chain);
        history.answered(&asked, &first);
        history.answered_again(&first);
        assert_eq!(history.take_findings(), []);
        history.answered_again(&Reply { applied: 7, ..first });
        assert!(matches!(history.take_findings()[..], [Finding { kind: Kind::Duplicated, .. }]));
    }

    #[test]
    fn a_get_must_answer_what_was_put() {
        let mut history = History::default();
        let mut get = asked(1, OpCode::Get, history.floor());
        get.expected = Some(Some(5));
        let mut answer = reply(&get, 0, 0);
        answer.value = 4;
        history.answered(&get, &answer);
        assert!(matches!(history.take_findings()[..], [Finding { kind: Kind::Behaviour, .. }]));
    }

    #[test]
    fn a_write_may_fail_while_the_disk_does_and_at_no_other_time() {
        let failed = |asked_then: bool, answered_then: bool| {
            let (mut history, _) = history(5);
            history.disk_fails(asked_then);
            let asked = asked(6, OpCode::Append, history.floor());
            history.disk_fails(answered_then);
            let reply = Reply { status: Status::DiskError, ..reply(&asked, 5, 0) };
            history.answered(&asked, &reply);
            assert_eq!(history.disk_errors(), 1);
            history.take_findings().len()
        };
        assert_eq!([failed(true, false), failed(false, true), failed(false, false)], [0, 0, 1]);
    }
}
