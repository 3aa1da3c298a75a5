//! Transitions, legal and not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod arbiter;
mod checkpoints;
mod disks;
mod hashes;
mod joining;
mod link;
mod operator;
mod readiness;
mod table;

use core::time::Duration;
use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use io_gate::host::{Epoch, Term};

use super::*;
use crate::handshake::{self, BootSource, Hello, ImageId};
use crate::pages::{Compression, PAGE_SIZE, PageFrame};
use crate::testing::{MS, SESSION, STANDBY_SESSION, decode, frame, hello};
use crate::wire::{
    ByeReason, Data, End, EpochDigest, Frame, Hashes, Header, Heartbeat, Kind, Message, PROTOCOL,
    WireError,
};
use crate::{Illegal, LinkId, Time};

extern crate std;

const LINK: LinkId = LinkId(1);

struct Pair {
    standby: Standby,
    now: u64,
    /// The primary's side of the digest.
    digest: EpochDigest,
}

impl Pair {
    fn waiting(arbiter: bool) -> Self {
        let standby = Standby::new(StandbyOptions { arbiter, ..StandbyOptions::default() });
        Self { standby, now: 0, digest: EpochDigest::new(STANDBY_SESSION) }
    }

    fn filling(arbiter: bool) -> Self {
        Self::waiting(arbiter).welcomes()
    }

    fn welcomes(mut self) -> Self {
        self.give(Event::Connected { link: LINK });
        self.say(0, Message::Hello(hello()));
        let out = self.give(Event::Described { ours: hello() });
        assert_eq!(effects(&out), ["send Welcome"]);
        self
    }

    /// Holds epoch 5 of term 1.
    fn ready(arbiter: bool) -> Self {
        Self::filling(arbiter).holds()
    }

    fn holds(mut self) -> Self {
        self.checkpoint(5);
        let out = self.give(Event::Applicable { epoch: Epoch(5) });
        assert_eq!(effects(&out), ["send Ack", "apply 5"]);
        self
    }

    fn doubting() -> Self {
        let mut pair = Self::ready(true);
        assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
        pair
    }

    /// The primary boots a kernel of three bytes and an initrd of two; this side already has
    /// `images`.
    fn filling_with(images: &[ImageId]) -> Self {
        let mut pair = Self::waiting(true);
        pair.give(Event::Connected { link: LINK });
        pair.say(0, Message::Hello(booting()));
        let ours = Box::new(Hello { boot: None, images: images.to_vec(), ..*booting() });
        assert_eq!(effects(&pair.give(Event::Described { ours })), ["send Welcome"]);
        pair
    }

    fn image(&mut self, bytes: &[u8]) -> Vec<Action> {
        let frame = frame(0, 1, Message::Image(Data(bytes.to_vec())));
        self.digest.add(&frame.header, 0);
        self.give(Event::Frame { link: LINK, frame })
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        self.standby.handle(Time(self.now), event).unwrap()
    }

    fn say(&mut self, epoch: u64, message: Message) -> Vec<Action> {
        self.give(Event::Frame { link: LINK, frame: frame(epoch, 1, message) })
    }

    fn pages(&mut self, kind: Kind, epoch: u64) -> Frame {
        let mut bytes = Vec::new();
        let mut pages =
            PageFrame::begin(&mut bytes, kind, Epoch(epoch), Term(1), Compression::None);
        for page in [1, 2] {
            let fill = |to: &mut [u8; PAGE_SIZE]| {
                to.fill(u8::try_from(epoch).unwrap());
                Ok::<_, ()>(())
            };
            pages.push(page * PAGE_SIZE as u64, fill).unwrap();
        }
        let header = pages.finish().unwrap();
        self.digest.add(&header, 2);
        decode(&bytes)
    }

    fn state(&mut self, epoch: u64) -> Frame {
        let frame = frame(epoch, 1, Message::State(Data(Vec::from([epoch as u8]))));
        self.digest.add(&frame.header, 0);
        frame
    }

    /// Sends the data of a checkpoint, and returns its end.
    fn data(&mut self, epoch: u64) -> End {
        let pages = self.pages(Kind::Pages, epoch);
        assert!(self.give(Event::Frame { link: LINK, frame: pages }).is_empty());
        let state = self.state(epoch);
        assert!(self.give(Event::Frame { link: LINK, frame: state }).is_empty());
        let hashes = Hashes { memory: epoch, state: epoch };
        self.digest.end(Epoch(epoch), Some(hashes))
    }

    /// Sends a whole checkpoint.
    fn checkpoint(&mut self, epoch: u64) {
        let end = self.data(epoch);
        assert_eq!(effects(&self.say(epoch, Message::End(end))), [format!("check {epoch}")]);
    }

    fn refused(&mut self, event: Event) -> Illegal {
        let before = self.standby.phase();
        let illegal = self.standby.handle(Time(self.now), event).unwrap_err();
        assert_eq!(self.standby.phase(), before);
        assert_eq!(illegal.state, before.name());
        illegal
    }

    fn phase(&self) -> Phase {
        self.standby.phase()
    }
}

const KERNEL: ImageId = ImageId { size: 3, sha256: [1; 32] };

const INITRD: ImageId = ImageId { size: 2, sha256: [2; 32] };

fn booting() -> Box<Hello> {
    let boot = BootSource { kernel: KERNEL, initrd: Some(INITRD), cmdline: String::new() };
    Box::new(Hello { boot: Some(boot), ..*hello() })
}

fn lost() -> Event {
    Event::LinkLost { link: LINK, reason: "reset by peer".into() }
}

fn effects(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .filter_map(|action| {
            Some(match action {
                Action::Describe { .. } => "describe".into(),
                Action::Send { frame, .. } => format!("send {}", frame.message.kind().name()),
                Action::CloseLink { .. } => "close".into(),
                Action::ApplyBulk(_) => "bulk".into(),
                Action::StoreImages(bytes) => format!("store {:?}", bytes.0),
                Action::Check(checkpoint) => format!("check {}", checkpoint.epoch()),
                Action::Apply(checkpoint) => format!("apply {}", checkpoint.epoch()),
                Action::AskArbiter { term, .. } => format!("ask {term}"),
                Action::TakeOver { taken, .. } => {
                    format!("take over {} at {}", taken.term(), taken.epoch())
                }
                Action::Discard { .. } => "discard".into(),
                Action::Stop { .. } => "stop".into(),
                Action::Report(_) => return None,
            })
        })
        .collect()
}

fn lacks(blocks: bool) -> Event {
    Event::Resources { lack: Some(Lack { reason: "disk: gone".into(), blocks }) }
}

fn bye(reason: ByeReason) -> Message {
    Message::Bye { reason, session: STANDBY_SESSION, from: SESSION, why: String::new() }
}

fn not_ready() -> Event {
    Event::NotReady { reason: "tap0 is busy".into() }
}
