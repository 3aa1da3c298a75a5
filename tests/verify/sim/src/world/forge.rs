//! Messages that were never sent, or not in this session: a link without authentication carries
//! them like all others.

use ft_core::wire::{ByeReason, Message, Outgoing};
use ft_core::{Epoch, Term};

use super::World;
use crate::link::Chunk;
use crate::node::Role;

impl World {
    pub(super) fn forge(&mut self, link: usize, what: u64) {
        if self.links.is_empty() {
            return;
        }
        let at = link % self.links.len();
        let Role::Active(active) = &self.nodes[self.links[at].ends[0].node].role else { return };
        let term = active.core.term();
        match what {
            2 => self.forge_frame(at, 1, term, bye(ByeReason::Detach, (0, 0))),
            3 => self.forge_word(at, term),
            4 => self.forge_last_word(at, term),
            later => self.forge_ack(at, later),
        }
    }

    fn forge_frame(&mut self, at: usize, side: usize, term: Term, message: Message) {
        self.forge_frame_of(at, side, (Epoch(0), term), message);
    }

    fn forge_frame_of(
        &mut self,
        at: usize,
        side: usize,
        (epoch, term): (Epoch, Term),
        message: Message,
    ) {
        let mut bytes = Vec::new();
        Outgoing { epoch, term, message }.encode(&mut bytes).unwrap();
        let arrives = self.now;
        self.links[at].ends[side].incoming.push_front(Chunk { arrives, bytes });
    }

    /// An acknowledgement that no standby sent, in another term than the primary's.
    fn forge_ack(&mut self, at: usize, later: u64) {
        let Role::Active(active) = &self.nodes[self.links[at].ends[0].node].role else { return };
        let waiting = active.core.in_flight() as u64;
        let (Some(sealed), 1..) = (active.core.sealed(), waiting) else { return };
        let term = Term((active.core.term().0 + 2 * later).saturating_sub(1));
        let epoch = Epoch(sealed.0 + 1 - waiting);
        self.forge_frame_of(at, 0, (epoch, term), Message::Ack);
    }

    /// A standby's message from an earlier session with this primary, or from another standby (P1).
    fn forge_word(&mut self, at: usize, term: Term) {
        let (session, from) = self.other_numbers(at, 0);
        let message = match self.random.below(4) {
            0 => Message::Readiness { lack: None, session, from },
            1 => Message::Readiness { lack: Some("no disk".into()), session, from },
            2 => bye(ByeReason::Stopped, (session, from)),
            _ => bye(ByeReason::Detached, (session, from)),
        };
        self.forge_frame(at, 0, term, message);
    }

    /// The last message of an earlier session with this standby, or of another primary (P4).
    fn forge_last_word(&mut self, at: usize, term: Term) {
        let numbers = self.other_numbers(at, 1);
        let reason = [ByeReason::Detach, ByeReason::Stopped, ByeReason::PoweredOff];
        let reason = reason[self.random.index(3)];
        self.forge_frame(at, 1, term, bye(reason, numbers));
    }

    /// The session numbers as that side expects them, its own first, with one of them replaced.
    fn other_numbers(&mut self, at: usize, side: usize) -> (u64, u64) {
        let link = &self.links[at];
        let numbers = [link.of_primary, link.session.unwrap_or(0)];
        let other = self.random.next().max(1);
        match self.random.one_in(2) {
            true => (other, numbers[1 - side]),
            false => (numbers[side], other),
        }
    }
}

fn bye(reason: ByeReason, (session, from): (u64, u64)) -> Message {
    Message::Bye { reason, session, from, why: String::new() }
}
