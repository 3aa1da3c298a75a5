//! The network between the hosts.

use std::collections::VecDeque;

use ft_core::LinkId;
use ft_core::primary::Event as P;
use ft_core::standby::Event as S;
use ft_core::wire::{ByeReason, Frame, HEADER_LEN, Header, Message, Outgoing, WireError};

use super::{MS, NODES, World, trace};
use crate::link::{Chunk, Link};
use crate::node::{Role, Task};

/// Number of frames that the network remembers.
const CAPTURED: usize = 64;
/// Number of sessions that it remembers, and number of frames of each.
const SESSIONS: usize = 6;
const RECORDED: usize = 96;

/// A frame, and the end that sent it.
#[derive(Clone)]
pub(super) struct Captured {
    pub(super) from: LinkId,
    pub(super) bytes: Vec<u8>,
}

/// One session as its standby heard it.
pub(super) struct Recorded {
    link: LinkId,
    frames: Vec<Vec<u8>>,
}

/// The process number of a stranger.
const NOBODY: u64 = 0;

enum News {
    Frame(Frame),
    Progress,
    Garbled(WireError),
    Lost,
}

fn task(side: usize, link: LinkId, news: News) -> Task {
    let reason = || "closed".to_string();
    match (side, news) {
        (0, News::Frame(frame)) => Task::Primary(P::Frame { link, frame }),
        (0, News::Progress) => Task::Primary(P::Progress { link }),
        (0, News::Garbled(error)) => Task::Primary(P::Garbled { link, error }),
        (0, News::Lost) => Task::Primary(P::LinkLost { link, reason: reason() }),
        (_, News::Frame(frame)) => Task::Standby(S::Frame { link, frame }),
        (_, News::Progress) => Task::Standby(S::Progress { link }),
        (_, News::Garbled(error)) => Task::Standby(S::Garbled { link, error }),
        (_, News::Lost) => Task::Standby(S::LinkLost { link, reason: reason() }),
    }
}

impl World {
    pub(super) fn connect(&mut self, node: usize) -> P {
        let targets: Vec<usize> = (0..NODES)
            .filter(|at| matches!(self.nodes[*at].role, Role::Passive(_)))
            .filter(|at| self.parted[*at][node] <= self.now && self.parted[node][*at] <= self.now)
            .collect();
        if targets.is_empty() || self.random.one_in(6) {
            return P::ConnectFailed { reason: "connection refused".into() };
        }
        let target = targets[self.random.index(targets.len())];
        let ids = [LinkId(self.next_link), LinkId(self.next_link + 1)];
        self.next_link += 2;
        let processes = [self.nodes[node].process, self.nodes[target].process];
        let mut link = Link::new([node, target], processes, ids);
        let hello = self.hello(node);
        link.of_primary = hello.session;
        self.links.push(link);
        self.echo(ids[0], false);
        P::StandbyConnected { link: ids[0], hello }
    }

    /// Whether the process does not know of this connection yet.
    fn is_dialling(&self, node: usize, id: LinkId) -> bool {
        let Role::Active(active) = &self.nodes[node].role else { return false };
        matches!(active.dials, Some((_, P::StandbyConnected { link, .. })) if link == id)
    }

    fn find(&self, id: LinkId) -> Option<(usize, usize)> {
        self.links.iter().enumerate().find_map(|(at, link)| {
            link.ends.iter().position(|end| end.open && end.id == id).map(|end| (at, end))
        })
    }

    pub(super) fn send(&mut self, id: LinkId, frame: &Outgoing) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        let found = self.find(id);
        if let (Message::Bye { reason, .. }, Some((link, 0))) = (&frame.message, found) {
            self.links[link].ends_machine |= *reason != ByeReason::Detach;
        }
        match (&frame.message, found) {
            (Message::Bye { .. } | Message::Refuse { .. }, Some((_, end))) => {
                remember(&mut self.words[1 - end], id, &bytes);
            }
            (Message::Welcome(_) | Message::Readiness { .. }, Some(_)) => {
                remember(&mut self.greetings, id, &bytes);
            }
            _ => {}
        }
        self.send_bytes(id, bytes);
    }

    /// Sends one frame.
    pub(super) fn send_bytes(&mut self, id: LinkId, bytes: Vec<u8>) {
        let Some((link, end)) = self.find(id) else { return };
        let slow = if self.random.one_in(20) { 30 } else { 3 };
        let arrives = self.now + self.random.below(slow * MS);
        remember(&mut self.captured[1 - end], id, &bytes);
        if end == 0 {
            self.record(id, &bytes);
        }
        self.links[link].send(end, bytes, arrives);
    }

    /// Delivers a message of an earlier session in this one.
    pub(super) fn echo(&mut self, id: LinkId, welcomed: bool) {
        let Some((which, _)) = self.echo.filter(|(_, late)| *late == welcomed) else { return };
        self.echo = None;
        let from = if which % 2 == 0 { &self.greetings } else { &self.words[0] };
        let word = from.get(which / 2 % from.len().max(1)).cloned();
        if let (Some(word), Some((link, end))) = (word, self.find(id)) {
            let chunk = Chunk { arrives: self.now, bytes: word.bytes };
            self.links[link].tampered |= word.from == self.links[link].ends[1 - end].id;
            self.links[link].ends[end].incoming.push_front(chunk);
        }
    }

    /// Records that a standby opens a session: the number that the primary chose, and the standby's
    /// own.
    pub(super) fn note_welcome(&mut self, id: LinkId, (of_primary, own): (u64, u64)) {
        self.welcomed.insert((of_primary, own));
        if let Some((link, _)) = self.find(id) {
            self.links[link].session = Some(own);
        }
    }

    /// Whether a standby has opened this session. It need not be the standby at the other end: a
    /// network that carries the primary's greeting to another standby, and that standby's answer
    /// back, repeats real messages.
    pub(super) fn has_welcomed(&self, id: LinkId, session: u64) -> bool {
        let opened = |link: &Link| self.welcomed.contains(&(link.of_primary, session));
        self.find(id).is_some_and(|(link, _)| opened(&self.links[link]))
    }

    fn record(&mut self, link: LinkId, bytes: &[u8]) {
        if let Some(session) = self.recorded.iter_mut().find(|session| session.link == link) {
            if session.frames.len() < RECORDED {
                session.frames.push(bytes.to_vec());
            }
            return;
        }
        self.recorded.push_back(Recorded { link, frames: vec![bytes.to_vec()] });
        if self.recorded.len() > SESSIONS {
            self.recorded.pop_front();
        }
    }

    /// A stranger connects to a standby and repeats what a primary sent in an earlier session. It
    /// either sends everything and closes, or sends a part and stays silent.
    pub(super) fn impersonate(&mut self, node: usize, which: usize) {
        let listens = matches!(self.nodes[node].role, Role::Passive(_));
        let count = self.recorded.len();
        if !listens || count == 0 {
            return;
        }
        let ids = [LinkId(self.next_link), LinkId(self.next_link + 1)];
        self.next_link += 2;
        let mut link = Link::new([node, node], [NOBODY, self.nodes[node].process], ids);
        let frames = &self.recorded[which % count].frames;
        let stays = self.random.one_in(3);
        let said = if stays { self.random.index(frames.len()) } else { frames.len() };
        for bytes in &frames[..said] {
            link.send(0, bytes.clone(), self.now);
        }
        link.ends[1].silent = stays;
        link.close(0, false);
        self.links.push(link);
        self.observer.tally.impostors += 1;
    }

    pub(super) fn close(&mut self, id: LinkId) {
        let lingers = self.random.one_in(3);
        if let Some((link, end)) = self.find(id) {
            self.links[link].close(end, lingers);
        }
    }

    /// Delivers bytes at one end, or the news that no more will come.
    pub(super) fn deliver(&mut self) {
        self.links.retain(|link| !link.is_over());
        if self.links.is_empty() {
            return;
        }
        let at = self.random.index(self.links.len());
        let mut side = self.random.index(2);
        let link = &mut self.links[at];
        if link.ends[side].incoming.is_empty() && !self.random.one_in(4) {
            side = 1 - side;
        }
        let other = &link.ends[1 - side];
        let (other_open, other_node) = (other.open, other.node);
        let end = &mut link.ends[side];
        let (node, id) = (end.node, end.id);
        let parted = self.parted[other_node][node] > self.now;
        if !(end.open || end.lingers) || end.stalled_until > self.now || parted {
            return;
        }
        if end.process != self.nodes[node].process || matches!(self.nodes[node].role, Role::Gone) {
            end.open = false;
            end.lingers = false;
            return;
        }
        if !self.is_awake(node) || self.is_dialling(node, id) {
            return;
        }
        self.run_tasks(node);
        if !self.is_ready(node) {
            return;
        }
        let link = &mut self.links[at];
        if side == 1 && !link.accepted {
            link.accepted = true;
            if matches!(self.nodes[node].role, Role::Passive(_)) {
                self.give(node, Task::Standby(S::Connected { link: id }));
            } else {
                link.close(1, false);
            }
            return;
        }
        let over = link.broken || !other_open;
        let end = &mut link.ends[side];
        if end.incoming.is_empty() {
            if !end.open {
                end.lingers = false;
            } else if over && !end.silent {
                link.close(side, false);
                self.give(node, task(side, id, News::Lost));
            }
            return;
        }
        self.take_chunk(at, side);
    }

    fn is_ready(&self, node: usize) -> bool {
        let checking =
            matches!(&self.nodes[node].role, Role::Passive(passive) if passive.check.is_some());
        self.is_awake(node) && self.nodes[node].tasks.is_empty() && !checking
    }

    fn take_chunk(&mut self, at: usize, side: usize) {
        let whole = !self.random.one_in(4);
        let now = self.now;
        let end = &mut self.links[at].ends[side];
        let (node, id, process) = (end.node, end.id, end.process);
        let Some(mut chunk) = end.incoming.pop_front() else { return };
        if chunk.arrives > now {
            end.incoming.push_front(chunk);
            return;
        }
        let len = if whole { chunk.bytes.len() } else { self.random.index(chunk.bytes.len() + 1) };
        let rest = chunk.bytes.split_off(len);
        let end = &mut self.links[at].ends[side];
        if !rest.is_empty() {
            end.incoming.push_front(Chunk { arrives: now, bytes: rest });
        }
        let mut bytes = chunk.bytes.as_slice();
        let mut frames = 0;
        while !bytes.is_empty() {
            let end = &mut self.links[at].ends[side];
            let stale = !end.open;
            if stale && !end.lingers {
                return;
            }
            match end.decoder.decode(&mut bytes) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    frames += 1;
                    self.observer.tally.stale_frames += u64::from(stale);
                    self.note_frame(node, (at, side), &frame);
                    self.give(node, task(side, id, News::Frame(frame)));
                }
                Err(error) => {
                    trace!(self, "{node} garbled: {error}");
                    self.observer.tally.garbled += 1;
                    self.links[at].close(side, false);
                    self.give(node, task(side, id, News::Garbled(error)));
                    return;
                }
            }
            if !self.is_ready(node) || self.nodes[node].process != process {
                if !bytes.is_empty() {
                    let rest = Chunk { arrives: now, bytes: bytes.to_vec() };
                    self.links[at].ends[side].incoming.push_front(rest);
                }
                return;
            }
        }
        if frames == 0 {
            self.give(node, task(side, id, News::Progress));
        }
    }

    fn note_frame(&mut self, node: usize, (at, side): (usize, usize), frame: &Frame) {
        if !matches!(frame.message, Message::Heartbeat(_) | Message::HeartbeatReply(_)) {
            let (kind, header) = (frame.message.kind().name(), frame.header);
            trace!(self, "{node} receives {kind}, epoch {}, term {}", header.epoch, header.term);
        }
        if side == 0 && matches!(frame.message, Message::Bye { .. }) {
            self.observer.tally.renounced += 1;
        }
        if let (1, Message::Bye { session, from, .. }) = (side, &frame.message) {
            let link = &self.links[at];
            let told =
                link.ends_machine && link.session == Some(*session) && link.of_primary == *from;
            if let Role::Passive(passive) = &mut self.nodes[node].role {
                passive.may_stop |= told;
            }
        }
    }
}

fn remember(captured: &mut VecDeque<Captured>, from: LinkId, bytes: &[u8]) {
    captured.push_back(Captured { from, bytes: bytes.to_vec() });
    if captured.len() > CAPTURED {
        captured.pop_front();
    }
}

/// The frames in a buffer.
pub(super) fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEADER_LEN>() {
        let len = HEADER_LEN + Header::parse(head).unwrap().body_len as usize;
        let (frame, rest) = bytes.split_at(len);
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}
