//! Transitions, legal and not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod arbiter;
mod disks;
mod epochs;
mod joining;
mod leaving;
mod link;
mod search;
mod stall;
mod table;

use core::time::Duration;
use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use io_gate::host::{Epoch, Term, new_gate};

use super::*;
use crate::handshake::{BootSource, Hello, ImageId};
use crate::testing::{MS, SESSION, STANDBY_SESSION, frame, hello};
use crate::wire::{Hashes, Heartbeat, Message, PROTOCOL, Verified, WireError};
use crate::{Illegal, LinkId, Time};

extern crate std;

const LINK: LinkId = LinkId(1);

struct Pair {
    primary: Primary,
    now: u64,
}

fn options(arbiter: bool) -> PrimaryOptions {
    PrimaryOptions { arbiter, max_in_flight: 2, ..PrimaryOptions::default() }
}

impl Pair {
    fn alone(arbiter: bool) -> Self {
        let (_ledger, authority) = new_gate();
        let (primary, actions) = Primary::begin(authority, options(arbiter), Term(1), Time(0));
        assert!(matches!(&actions[..], [Action::RunAlone(proof), Action::Connect]
            if proof.term() == Term(1)));
        Self { primary, now: 0 }
    }

    fn at(arbiter: bool, phase: Phase) -> Self {
        let mut pair = Self::alone(arbiter);
        let mut steps = [
            Phase::Joining,
            Phase::Copying,
            Phase::Sealing,
            Phase::Arming,
            Phase::Protected,
            Phase::Detaching,
        ]
        .into_iter();
        while pair.primary.phase() != phase {
            match steps.next().expect("a phase on the way") {
                Phase::Joining => {
                    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
                }
                Phase::Copying => {
                    pair.say(0, Message::Welcome(hello()));
                }
                Phase::Sealing => {
                    pair.give(Event::PrecopyDone { link: LINK });
                }
                Phase::Arming => {
                    pair.give(Event::Sealed { link: LINK, epoch: Epoch(5) });
                }
                Phase::Protected => {
                    pair.say(5, Message::Ack);
                }
                _ => {
                    pair.give(Event::OperatorRunAlone);
                }
            }
        }
        pair
    }

    fn doubting() -> Self {
        let mut pair = Self::at(true, Phase::Protected);
        pair.give(lost());
        pair
    }

    fn waiting() -> Self {
        let mut pair = Self::at(false, Phase::Protected);
        pair.give(lost());
        pair
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        self.primary.handle(Time(self.now), event).unwrap()
    }

    fn say(&mut self, epoch: u64, message: Message) -> Vec<Action> {
        let term = self.primary.term().0;
        self.give(Event::Frame { link: LINK, frame: frame(epoch, term, message) })
    }

    fn refused(&mut self, event: Event) -> Illegal {
        let before = self.primary.phase();
        let illegal = self.primary.handle(Time(self.now), event).unwrap_err();
        assert_eq!(self.primary.phase(), before);
        assert_eq!(illegal.state, before.name());
        illegal
    }

    fn phase(&self) -> Phase {
        self.primary.phase()
    }
}

fn lost() -> Event {
    Event::LinkLost { link: LINK, reason: "reset by peer".into() }
}

fn names(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Send { frame, .. } => format!("send {}", frame.message.kind().name()),
            Action::Release { proof, .. } => format!("release {}", proof.epoch()),
            Action::RunAlone(proof) => format!("alone {}", proof.term()),
            Action::AskArbiter { term, .. } => format!("ask {term}"),
            Action::Stop { fenced, .. } => format!("stop fenced={fenced}"),
            Action::CloseLink { .. } => "close".into(),
            Action::Connect => "connect".into(),
            Action::StartPrecopy { images, .. } if images.is_empty() => "precopy".into(),
            Action::StartPrecopy { images, .. } => format!("precopy and {} images", images.len()),
            Action::SealFirst { .. } => "seal first".into(),
            Action::Hold => "hold".into(),
            Action::Report(_) => "report".into(),
        })
        .collect()
}

fn effects(actions: &[Action]) -> Vec<String> {
    names(actions).into_iter().filter(|name| name != "report").collect()
}

fn bye(reason: ByeReason) -> Message {
    Message::Bye { reason, session: SESSION, from: STANDBY_SESSION, why: String::new() }
}

fn stalled() -> Event {
    Event::Stalled { reason: "the device thread is stuck".into() }
}
