//! Connections between hosts: frames of the wire, and messages about disks, in one order.

use std::collections::VecDeque;

use ft_core::LinkId;
use ft_core::disks::Message;
use ft_core::primary::Event as P;
use ft_core::standby::Event as S;
use ft_core::wire::{Decoder, Frame, Outgoing};

use super::{MS, Role, World};

enum Packet {
    Frame(Vec<u8>),
    Disks(Vec<u8>),
}

pub(super) struct End {
    pub(super) node: usize,
    process: u64,
    pub(super) id: LinkId,
    open: bool,
    incoming: VecDeque<(u64, Packet)>,
}

/// A connection: end 0 is the primary's.
pub(super) struct Wire {
    pub(super) ends: [End; 2],
    pub(super) broken: bool,
    /// A side has lost power.
    silent: bool,
    accepted: bool,
}

impl World {
    /// Connects a primary to a standby.
    pub(super) fn connect(&mut self, node: usize, target: usize) -> LinkId {
        let ids = [LinkId(self.next_link), LinkId(self.next_link + 1)];
        self.next_link += 2;
        let end = |at: usize, node: usize| End {
            node,
            process: self.hosts[node].process,
            id: ids[at],
            open: true,
            incoming: VecDeque::new(),
        };
        let ends = [end(0, node), end(1, target)];
        self.wires.push(Wire { ends, broken: false, silent: false, accepted: false });
        ids[0]
    }

    fn find(&self, id: LinkId) -> Option<(usize, usize)> {
        self.wires.iter().enumerate().find_map(|(at, wire)| {
            wire.ends.iter().position(|end| end.open && end.id == id).map(|end| (at, end))
        })
    }

    /// The host at the other end.
    pub(super) fn peer(&self, id: LinkId) -> Option<usize> {
        self.find(id).map(|(wire, end)| self.wires[wire].ends[1 - end].node)
    }

    /// The process at the other end.
    pub(super) fn peer_process(&self, id: LinkId) -> Option<u64> {
        self.find(id).map(|(wire, end)| self.wires[wire].ends[1 - end].process)
    }

    fn put(&mut self, id: LinkId, packet: Packet) {
        let Some((at, end)) = self.find(id) else { return };
        let slow = if self.random.one_in(20) { 30 } else { 3 };
        let arrives = self.now + self.random.below(slow * MS);
        let wire = &mut self.wires[at];
        let other = &mut wire.ends[1 - end];
        if wire.broken || !other.open {
            return;
        }
        let arrives = other.incoming.back().map_or(arrives, |(last, _)| arrives.max(*last));
        other.incoming.push_back((arrives, packet));
    }

    pub(super) fn send(&mut self, id: LinkId, frame: &Outgoing) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).expect("a frame within its limits");
        self.put(id, Packet::Frame(bytes));
    }

    pub(super) fn send_bytes(&mut self, id: LinkId, bytes: Vec<u8>) {
        self.put(id, Packet::Frame(bytes));
    }

    pub(super) fn say(&mut self, id: LinkId, message: &Message) {
        self.put(id, Packet::Disks(message.encode()));
    }

    pub(super) fn close(&mut self, id: LinkId) {
        if let Some((wire, end)) = self.find(id) {
            self.wires[wire].ends[end].open = false;
            self.wires[wire].ends[end].incoming.clear();
        }
    }

    /// A process is gone; after a power loss its peers get no notice.
    pub(super) fn close_all(&mut self, node: usize, notice: bool) {
        for wire in &mut self.wires {
            for end in wire.ends.iter_mut().filter(|end| end.node == node && end.open) {
                end.open = false;
                end.incoming.clear();
                wire.silent |= !notice;
            }
        }
    }

    /// Delivers what has arrived.
    pub(super) fn deliver(&mut self) {
        self.wires.retain(|wire| wire.ends.iter().any(|end| end.open));
        for at in 0..self.wires.len() {
            for side in 0..2 {
                // A handler may add or close connections; it removes none from the list.
                self.deliver_to(at, side);
            }
        }
    }

    fn deliver_to(&mut self, at: usize, side: usize) {
        let wire = &mut self.wires[at];
        let (node, other) = (wire.ends[side].node, wire.ends[1 - side].node);
        if !wire.ends[side].open {
            return;
        }
        if self.hosts[node].process != wire.ends[side].process
            || self.hosts[node].asleep_until > self.now
        {
            return;
        }
        if self.parted[node][other] > self.now {
            return;
        }
        let id = wire.ends[side].id;
        if side == 1 && !wire.accepted {
            wire.accepted = true;
            if matches!(self.hosts[node].role, Role::Passive(_)) {
                self.give_standby(node, S::Connected { link: id });
            } else {
                wire.ends[1].open = false;
            }
            return;
        }
        for _ in 0..4 {
            let Some((at, side)) = self.find(id) else { return };
            let wire = &mut self.wires[at];
            match wire.ends[side].incoming.front() {
                Some((arrives, _)) if *arrives > self.now => return,
                Some(_) => {}
                None => {
                    if wire.broken || !wire.ends[1 - side].open && !wire.silent {
                        self.lost(node, side, id);
                    }
                    return;
                }
            }
            let Some((_, packet)) = wire.ends[side].incoming.pop_front() else { return };
            match packet {
                Packet::Frame(bytes) => {
                    let mut decoder = Decoder::default();
                    let mut rest = bytes.as_slice();
                    while let Some(frame) = decoder.decode(&mut rest).expect("a whole frame") {
                        self.frame(node, side, id, frame);
                    }
                }
                Packet::Disks(bytes) => {
                    let message = Message::decode(&bytes).expect("a message as it was sent");
                    self.progress(node, side, id);
                    if side == 0 {
                        self.primary_hears(node, id, message);
                    } else {
                        self.standby_hears(node, id, message);
                    }
                }
            }
        }
    }

    fn frame(&mut self, node: usize, side: usize, link: LinkId, frame: Frame) {
        if side == 0 {
            self.give_primary(node, P::Frame { link, frame });
        } else {
            self.give_standby(node, S::Frame { link, frame });
        }
    }

    fn progress(&mut self, node: usize, side: usize, link: LinkId) {
        if side == 0 {
            self.give_primary(node, P::Progress { link });
        } else {
            self.give_standby(node, S::Progress { link });
        }
    }

    fn lost(&mut self, node: usize, side: usize, link: LinkId) {
        self.close(link);
        let reason = "reset".into();
        if side == 0 {
            self.give_primary(node, P::LinkLost { link, reason });
        } else {
            self.give_standby(node, S::LinkLost { link, reason });
        }
    }
}
