//! Checks after each step, whatever has failed: who may perform (P2), whether a gate is as its
//! machine says (P1), and how long pending work has made no progress (P7).
//!
//! Deadlines count only time without an excuse: the process is awake and makes progress, the
//! arbiter can be reached and owes it no answer, and the operator need not act.

use ft_core::primary::Phase;
use ft_core::standby::Phase as StandbyPhase;

use super::{MS, NODES, World};
use crate::arbiter::Kind;
use crate::node::{Active, Passive, Role, Search};

/// Time that the lanes and the engine may take for one thing, because their turns are random.
const SLACK: u64 = 600 * MS;

impl World {
    pub(super) fn look(&mut self, passed: u64) {
        self.look_at_rights();
        for node in 0..NODES {
            self.look_at_gate(node);
            self.look_at_waits(node, passed);
            self.look_at_detach(node, passed);
            self.look_at_words(node, passed);
            self.look_at_reasons(node);
            self.look_at_search(node, passed);
        }
    }

    /// P2: however the clocks drift, a lease is over, and every answer made from it is too old,
    /// before the next lease begins.
    fn look_at_rights(&mut self) {
        if self.kind != Kind::Lease {
            return;
        }
        for node in 0..NODES {
            if self.is_awake(node) {
                let now = self.nodes[node].boot_time(self.now);
                self.nodes[node].client.note_right(now);
            }
        }
        let may = |node: &usize| {
            let host = &self.nodes[*node];
            !matches!(host.role, Role::Gone) && host.client.may_act(host.boot_time(self.now))
        };
        let who: Vec<usize> = (0..NODES).filter(may).collect();
        assert!(who.len() < 2, "P2: {who:?} may perform at the same time");
    }

    /// P7: a side suspects the other only after a fault.
    pub(super) fn suspects(&self) {
        assert!(
            self.ending || !self.calm,
            "P7: nothing has failed, but one side suspects the other"
        );
    }

    /// P1, P7: nothing is held when there is no standby, and nothing is let out past a standby that
    /// may take over.
    fn look_at_gate(&self, node: usize) {
        let host = &self.nodes[node];
        let Role::Active(active) = &host.role else { return };
        if !host.tasks.is_empty() || active.fenced_off {
            return;
        }
        let phase = active.core.phase();
        let open = matches!(phase, Phase::Alone | Phase::Joining | Phase::Copying);
        assert!(
            active.ledger.holds() != open,
            "P1, P7: a machine that is {} has its gate {}",
            phase.name(),
            if open { "closed" } else { "open" }
        );
    }

    fn look_at_waits(&mut self, node: usize, passed: u64) {
        let (last, holder) = self.register.last();
        let alive = |process: u64| {
            let is = |host: &crate::node::Node| host.process == process;
            self.nodes.iter().any(|host| is(host) && !matches!(host.role, Role::Gone))
        };
        let process = self.nodes[node].process;
        let (what, limit) = match &self.nodes[node].role {
            Role::Active(active) if active.fenced_off => return,
            Role::Active(_) if process != holder => {
                ("a machine that was replaced continues", self.patience())
            }
            Role::Active(active) if active.guest.outputs() > self.observer.outputs() => {
                ("the guest's output is not released", self.patience())
            }
            Role::Passive(_)
                if !alive(holder)
                    && self.observer.held(process).is_some_and(|held| held.term == last) =>
            {
                ("the primary is dead, and its standby does not ask", self.patience_of_standby())
            }
            _ => return self.nodes[node].waits = 0,
        };
        if !self.has_excuse(node) {
            self.nodes[node].waits += passed;
        }
        let waits = self.nodes[node].waits;
        assert!(waits < limit, "P7: {what} for {} ms", limit / MS);
    }

    /// P7, P9: a standby that does not give its checkpoint up in time is given up; a machine
    /// without progress keeps no standby.
    fn look_at_detach(&mut self, node: usize, passed: u64) {
        let limit = self.primary_options().setup_timeout.as_nanos() as u64 + SLACK;
        let (awake, busy) = (self.is_awake(node), !self.nodes[node].tasks.is_empty());
        let Role::Active(active) = &mut self.nodes[node].role else { return };
        let kept = active.core.is_stalled() && active.core.link().is_some();
        assert!(busy || !kept, "P7: a machine that makes no progress keeps its standby");
        if let Some(waits) = active.detaches.as_mut().filter(|_| awake) {
            *waits += passed;
            assert!(
                *waits < limit,
                "P9: a machine waits for a standby that must discard its checkpoint"
            );
        }
    }

    /// P9: a machine that is becoming protected, or is protected, reports no reason why it is not.
    /// It never has more epochs in flight than it was configured for.
    fn look_at_reasons(&self, node: usize) {
        let host = &self.nodes[node];
        let (phase, said) = match &host.role {
            _ if !host.tasks.is_empty() => return,
            Role::Active(active) => {
                let in_flight = active.core.in_flight();
                let most = self.primary_options().max_in_flight;
                assert!(
                    in_flight <= most,
                    "P9: {in_flight} epochs are unacknowledged, at most {most} may be"
                );
                let phase = active.core.phase();
                let waits = matches!(
                    phase,
                    Phase::Alone | Phase::Detaching | Phase::Doubting | Phase::WaitingForOperator
                );
                if waits || active.core.is_stalled() {
                    return;
                }
                (phase.name(), [active.core.reason(), active.core.refusal()])
            }
            Role::Passive(passive) => {
                let phase = passive.core.phase();
                if !matches!(phase, StandbyPhase::Filling | StandbyPhase::Ready) {
                    return;
                }
                (phase.name(), [passive.core.reason(), None])
            }
            Role::Gone => return,
        };
        assert!(said == [None, None], "P9: a machine that is {phase} gives a reason: {said:?}");
    }

    /// P7: a machine that runs alone, and has to be protected, looks for a standby, and waits for
    /// no answer forever, even while things fail.
    fn look_at_search(&mut self, node: usize, passed: u64) {
        let options = self.primary_options();
        let (awake, busy) = (self.is_awake(node), !self.nodes[node].tasks.is_empty());
        let stuck = self.nodes[node].stuck_until > self.now;
        let Role::Active(active) = &mut self.nodes[node].role else { return };
        let phase = active.core.phase();
        let may_look = active.searches && !active.core.is_stalled() && active.dials.is_none();
        let [idle, joins] = [phase == Phase::Alone && may_look, phase == Phase::Joining];
        let Search { idle: idles, joins: waits } = &mut active.search;
        for (is, time, limit) in [
            (idle, &mut *idles, options.connect_retry.longest),
            (joins, &mut *waits, options.setup_timeout),
        ] {
            let excused = !awake || busy || stuck;
            *time = if is { *time + if excused { 0 } else { passed } } else { 0 };
            let limit = limit.as_nanos() as u64 + SLACK;
            assert!(
                *time < limit,
                "P7: a machine that is {} and wants a standby does nothing to get one for {} ms",
                phase.name(),
                limit / MS
            );
        }
    }

    /// P9: a machine's report on its protection agrees with its standby's report on itself.
    fn look_at_words(&mut self, node: usize, passed: u64) {
        let host = &self.nodes[node];
        let Role::Active(active) = &host.role else { return };
        let lacks = active.core.link().and_then(|link| self.lacks(link));
        let agrees = match (active.says_protected, lacks) {
            (Some(said), Some(lacks)) => said != lacks,
            _ => true,
        };
        let awake = self.nodes.iter().all(|host| host.asleep_until <= self.now);
        let limit = self.primary_options().heartbeat_timeout.as_nanos() as u64 + SLACK;
        let active = self.active(node);
        if agrees {
            active.lies = 0;
        } else if awake {
            active.lies += passed;
        }
        assert!(
            active.lies < limit,
            "P9: a machine says that it is protected: {:?}, although its standby lacks something: {lacks:?}",
            active.says_protected
        );
    }

    /// Whether the standby at the other end lacks something; none if the primary cannot know, or
    /// the standby's message may be lost.
    fn lacks(&self, link: ft_core::LinkId) -> Option<bool> {
        let link = self.links.iter().find(|one| one.ends[0].id == link)?;
        let [near, far] = &link.ends;
        let parted = self.parted[far.node][near.node].max(self.parted[near.node][far.node]);
        let stalled = near.stalled_until.max(far.stalled_until).max(parted) > self.now;
        let host = &self.nodes[far.node];
        let carries = far.open && !far.silent && !link.broken && !link.tampered && !stalled;
        match &host.role {
            Role::Passive(passive) if carries && host.process == far.process => {
                Some(passive.core.lack().is_some())
            }
            _ => None,
        }
    }

    /// The longest wait that it may have: for an acknowledgement, or for a standby that has to give
    /// its checkpoint up. The time starts anew with whatever it does or hears after such a wait.
    fn patience(&self) -> u64 {
        let options = self.primary_options();
        let longest = options.ack_timeout.max(options.setup_timeout);
        longest.as_nanos() as u64 + SLACK
    }

    fn patience_of_standby(&self) -> u64 {
        let options = self.standby_options();
        let longest = options.heartbeat_timeout.max(options.arbiter_retry.longest);
        // With the smallest slack that randomness permits, because a takeover begins with
        // suspicion.
        longest.as_nanos() as u64 + 380 * MS
    }

    fn has_excuse(&self, node: usize) -> bool {
        let host = &self.nodes[node];
        let unreached = self.register.down_until > self.now || self.cut[node] > self.now;
        let asks = host.client.wanted.is_some() || host.client.asked().is_some();
        let own = match &host.role {
            Role::Active(active) => active.waits_for_others(host.stuck_until > self.now),
            Role::Passive(passive) => passive.waits_for_others(),
            Role::Gone => true,
        };
        !self.is_awake(node) || (self.kind != Kind::None && (unreached || asks)) || own
    }
}

impl Active {
    fn waits_for_others(&self, stuck: bool) -> bool {
        stuck || self.core.is_stalled() || self.asks_operator || self.taken.is_some()
    }
}

impl Passive {
    fn waits_for_others(&self) -> bool {
        let blocked = self.core.lack().is_some_and(|lack| lack.blocks);
        blocked || self.asks_operator || self.opens.is_some() || self.check.is_some()
    }
}
