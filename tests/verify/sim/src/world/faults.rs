//! Carries out the planned faults.

use ft_core::LinkId;

use super::network::Captured;
use super::{MS, NODES, World, trace};
use crate::link::Chunk;
use crate::node::{Fate, Node, Role};
use crate::plan::Fault;

impl World {
    pub(super) fn fail(&mut self, fault: Fault) {
        trace!(self, "FAULT {fault:?}");
        match fault {
            Fault::Disks(_) => {}
            Fault::Crash(node) => self.kill(node, false),
            Fault::CrashAfter(node, steps) => self.nodes[node].fuse = Some((steps, Fate::Dies)),
            Fault::PowerOff(node) => self.kill(node, true),
            Fault::Pause(node, time) => self.sleep(node, time * MS, false),
            Fault::PauseAfter(node, steps, time) => {
                let fate = Fate::Sleeps { time: time * MS, suspended: false };
                self.nodes[node].fuse = Some((steps, fate));
            }
            Fault::Nap(node, time, suspended) => {
                self.nodes[node].nap = Some(Fate::Sleeps { time: time * MS, suspended });
            }
            Fault::Hang(which, time) => {
                let until = self.now + time * MS;
                if let Some(node) =
                    self.one_of(which, |host| self.observer.held(host.process).is_some())
                {
                    self.nodes[node].hangs_until = until;
                }
            }
            Fault::Stuck(node, time) => self.nodes[node].stuck_until = self.now + time * MS,
            Fault::Suspend(node, time) => self.sleep(node, time * MS, true),
            Fault::Jump(node, time) => self.nodes[node].added += (time * MS) as i64,
            Fault::Break(link) => self.break_link(link),
            Fault::Isolate(which, time) => self.isolate(which, self.now + time * MS),
            Fault::Partition(from, to, time) => self.parted[from][to] = self.now + time * MS,
            Fault::Refuse(node, time) => self.nodes[node].refuses_until = self.now + time * MS,
            Fault::ArbiterSlow(time) => self.register.slow_until = self.now + time * MS,
            Fault::ArbiterDown(time) => self.register.down_until = self.now + time * MS,
            Fault::ArbiterCut(node, time) => self.cut[node] = self.now + time * MS,
            Fault::Full(time) => self.storage.full_until = self.now + time * MS,
            Fault::Detach => {
                let held = |node: &usize| self.is_active(*node) && self.may_operate(*node);
                if let Some(node) = (0..NODES).find(held) {
                    self.operate(node, 0);
                }
            }
            Fault::Operator(which, choice) => {
                let runs = |host: &Node| !matches!(host.role, Role::Gone);
                if let Some(node) = self.one_of(which, runs).filter(|node| self.may_operate(*node))
                {
                    self.operate(node, choice);
                }
            }
            Fault::Start(node) => {
                if matches!(self.nodes[node].role, Role::Gone) {
                    self.start_standby(node);
                }
            }
            Fault::Forge(link, what) => self.forge(link, what),
            Fault::Echo(which, late) => self.echo = Some((which, late)),
            Fault::Impostor(node, which) => self.impersonate(node, which),
            Fault::Stall(link, side, time) => {
                let until = self.now + time * MS;
                self.on_wire(link, side, |_, end| end.stalled_until = until);
            }
            _ => self.tamper(fault),
        }
    }

    pub(super) fn sleep(&mut self, node: usize, time: u64, suspended: bool) {
        let host = &mut self.nodes[node];
        if suspended {
            host.wake(self.now);
            host.suspended_until = self.now + time;
            host.added -= (time / 1_000_000 * host.rate) as i64;
        }
        host.asleep_until = host.suspended_until.max(self.now + time);
    }

    /// One of the hosts for which this holds.
    fn one_of(&self, which: usize, is: impl Fn(&Node) -> bool) -> Option<usize> {
        let hosts: Vec<usize> = (0..NODES).filter(|node| is(&self.nodes[*node])).collect();
        hosts.get(which % hosts.len().max(1)).copied()
    }

    fn isolate(&mut self, which: usize, until: u64) {
        let primary = || (0..NODES).find(|node| self.is_active(*node));
        let node = if which < NODES { which } else { primary().unwrap_or(which % NODES) };
        for other in 0..NODES {
            self.parted[node][other] = until;
            self.parted[other][node] = until;
        }
        self.cut[node] = until;
    }

    fn may_operate(&self, node: usize) -> bool {
        self.is_awake(node) && self.nodes[node].tasks.is_empty()
    }

    fn break_link(&mut self, link: usize) {
        if self.links.is_empty() {
            return;
        }
        let at = link % self.links.len();
        self.links[at].broken = true;
        for end in 0..2 {
            // Data in transit may still arrive, complete or cut.
            let incoming = &mut self.links[at].ends[end].incoming;
            let rest = self.random.index(incoming.len() + 1);
            incoming.truncate(rest);
            if let Some(last) = incoming.back_mut() {
                let rest = self.random.index(last.bytes.len() + 1);
                last.bytes.truncate(rest);
            }
        }
    }

    fn on_wire(
        &mut self,
        link: usize,
        side: usize,
        change: impl FnOnce(&mut crate::random::Random, &mut crate::link::End),
    ) {
        if !self.links.is_empty() {
            let at = link % self.links.len();
            change(&mut self.random, &mut self.links[at].ends[side]);
        }
    }

    /// Marks a link whose messages may be lost, or repeated in the same session.
    fn is_tampered(&mut self, link: usize, by: Option<(usize, LinkId)>) {
        let at = link % self.links.len().max(1);
        if let Some(link) = self.links.get_mut(at) {
            link.tampered |= by.is_none_or(|(side, from)| link.ends[1 - side].id == from);
        }
    }

    /// What a hostile or faulty network does to its messages.
    fn tamper(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Flip(link, side) => self.on_wire(link, side, |random, end| {
                if let Some(chunk) = end.incoming.front_mut().filter(|one| !one.bytes.is_empty()) {
                    let at = random.index(chunk.bytes.len());
                    chunk.bytes[at] ^= 1 << random.below(8);
                }
            }),
            Fault::Truncate(link, side) => self.on_wire(link, side, |random, end| {
                if let Some(chunk) = end.incoming.front_mut() {
                    let len = random.index(chunk.bytes.len() + 1);
                    chunk.bytes.truncate(len);
                }
            }),
            Fault::Drop(link, side, count) => {
                self.is_tampered(link, None);
                self.on_wire(link, side, |_, end| {
                    if count == 0 {
                        end.incoming.pop_back();
                    }
                    for _ in 0..count {
                        end.incoming.pop_front();
                    }
                });
            }
            Fault::Double(link, side) => self.on_wire(link, side, |_, end| {
                if let Some(chunk) = end.incoming.front().cloned() {
                    end.incoming.push_front(chunk);
                }
            }),
            Fault::Swap(link, side) => self.on_wire(link, side, |_, end| {
                if end.incoming.len() > 1 {
                    end.incoming.swap(0, 1);
                }
            }),
            Fault::Replay(link, side, which) => {
                let words = &self.words[side];
                let from =
                    if which % 2 == 0 && !words.is_empty() { words } else { &self.captured[side] };
                let word = from.get(which / 2 % from.len().max(1)).cloned();
                if let Some(Captured { from, bytes }) = word {
                    self.is_tampered(link, Some((side, from)));
                    self.on_wire(link, side, |_, end| {
                        end.incoming.push_front(Chunk { arrives: now, bytes });
                    });
                }
            }
            _ => unreachable!("handled before"),
        }
    }
}
