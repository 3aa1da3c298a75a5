//! Transitions, legal and not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::format;

mod disks;
mod table;

use super::*;
use crate::handshake::{BootSource, ImageId};
use crate::pages::{Compression, PAGE_SIZE, PageFrame};
use crate::testing::{MS, SESSION, STANDBY_SESSION, decode, frame, hello};
use crate::wire::{Data, End, EpochDigest, Header, Heartbeat, Kind};

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

#[test]
fn the_way_to_a_checkpoint() {
    let mut pair = Pair::waiting(true);
    assert!(pair.give(Event::Connected { link: LINK }).is_empty());
    assert_eq!(pair.phase(), Phase::Greeting);
    assert_eq!(effects(&pair.say(0, Message::Hello(hello()))), ["describe"]);
    assert_eq!(effects(&pair.give(Event::Described { ours: hello() })), ["send Welcome"]);
    assert_eq!(pair.phase(), Phase::Filling);
    let bulk = pair.pages(Kind::Bulk, 0);
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    let [Action::ApplyBulk(pages)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(pages.pages(), 2);
    pair.checkpoint(5);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Filling, None));
    let out = pair.give(Event::Applicable { epoch: Epoch(5) });
    assert_eq!(effects(&out), ["send Ack", "apply 5"]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Ready, Some(Epoch(5))));
    pair.checkpoint(6);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)), "not before it can be applied");
    let out = pair.give(Event::Applicable { epoch: Epoch(6) });
    let Some(Action::Apply(checkpoint)) = out.last() else { panic!("{out:?}") };
    let mut seen = Vec::new();
    checkpoint
        .for_each_piece(|address, page| {
            seen.push((address, page[0]));
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(seen, [(4096, 6), (8192, 6)]);
    assert_eq!(checkpoint.state().collect::<Vec<_>>(), [&[6]]);
}

#[test]
fn p7_what_the_guest_boots_comes_before_a_checkpoint_is_held() {
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[1, 2])), ["store [1, 2]"]);
    let bulk = pair.pages(Kind::Bulk, 0);
    pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&pair.image(&[3, 4, 5])), ["store [3, 4, 5]"]);
    pair.checkpoint(5);
    assert_eq!(effects(&pair.give(Event::Applicable { epoch: Epoch(5) })), ["send Ack", "apply 5"]);

    let mut pair = Pair::filling_with(&[KERNEL]);
    assert_eq!(effects(&pair.image(&[4, 5])), ["store [4, 5]"]);
    pair.checkpoint(5);

    // The first checkpoint is not acknowledged while a byte is missing.
    let mut pair = Pair::filling_with(&[]);
    pair.image(&[1, 2, 3, 4]);
    let end = pair.data(5);
    let out = pair.say(5, Message::End(end));
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    assert!(pair.standby.reason().unwrap().contains("1 bytes of kernel and initrd are missing"));
}

#[test]
fn p9_no_more_of_images_is_stored_than_was_announced_and_none_later() {
    let refused = ["send Refuse", "close", "discard"];
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[0; 6])), refused);
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[])), refused, "frames without end that bring nothing");
    let mut pair = Pair::filling_with(&[KERNEL, INITRD]);
    assert_eq!(effects(&pair.image(&[1])), refused);
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.image(&[1])), ["send Refuse", "close", "ask 2"]);
}

#[test]
fn p4_before_the_first_checkpoint_a_lost_link_leaves_nothing() {
    let mut pair = Pair::filling(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
    let mut pair = Pair::filling(true);
    pair.checkpoint(5);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    pair.refused(Event::Applicable { epoch: Epoch(5) });
}

#[test]
fn p2_after_it_the_next_term_must_be_won() {
    let mut pair = Pair::doubting();
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);
    assert_eq!(pair.phase(), Phase::Active);
    pair.refused(Event::Tick);
    let mut pair = Pair::doubting();
    let out = pair.give(Event::ArbiterDenied { term: Term(2), holder: "a".into() });
    assert_eq!(effects(&out), ["discard"]);
    assert_eq!(
        (pair.phase(), pair.standby.term(), pair.standby.epoch()),
        (Phase::Waiting, Term(2), None)
    );
}

#[test]
fn an_arbiter_that_does_not_answer_is_asked_again() {
    let mut pair = Pair::doubting();
    assert!(effects(&pair.give(Event::ArbiterUnreachable { reason: "timeout".into() })).is_empty());
    assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    pair.refused(Event::ArbiterGranted { term: Term(3) });
}

fn lacks(blocks: bool) -> Event {
    Event::Resources { lack: Some(Lack { reason: "disk: gone".into(), blocks }) }
}

/// P7: a standby that could not continue the guest reports that while it lasts.
#[test]
fn what_it_lacks_is_said_to_the_primary() {
    let mut pair = Pair::ready(true);
    let out = pair.give(lacks(true));
    let lack = Some("disk: gone".into());
    let said = Message::Readiness { lack, session: SESSION, from: STANDBY_SESSION };
    assert!(
        matches!(&out[..], [Action::Report(_), Action::Send { frame, .. }] if frame.message == said),
        "{out:?}"
    );
    assert!(pair.give(lacks(true)).is_empty(), "once");
    // It continues to receive.
    pair.checkpoint(6);
    assert_eq!(effects(&pair.give(Event::Applicable { epoch: Epoch(6) })), ["send Ack", "apply 6"]);
    pair.refused(Event::OperatorTakeOver);
    assert_eq!(effects(&pair.give(Event::Resources { lack: None })), ["send Readiness"]);

    // From the start of a session on. If the guest could not run without what is missing, there is
    // no session.
    let mut pair = Pair::waiting(true);
    assert!(effects(&pair.give(lacks(false))).is_empty());
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let out = pair.give(Event::Described { ours: hello() });
    assert_eq!(effects(&out), ["send Welcome", "send Readiness"]);
    let mut pair = Pair::waiting(true);
    pair.give(lacks(true));
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let out = pair.give(Event::Described { ours: hello() });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(pair.standby.reason().unwrap().contains("disk: gone"));
}

/// P7: it must not take the right from a primary that may be alive, if it cannot use the right.
#[test]
fn without_its_disk_it_does_not_ask_for_the_right() {
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    assert_eq!(effects(&pair.give(lost())), ["close"]);
    assert_eq!(pair.phase(), Phase::Doubting);
    assert!(pair.standby.is_held_back() && pair.standby.next_deadline().is_none());
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&pair.give(Event::Resources { lack: None })), ["ask 2"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);

    // The primary was alive, and returns in a later term: the held checkpoint is of no more use.
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    pair.give(lost());
    let link = LinkId(2);
    assert!(pair.give(Event::Connected { link }).is_empty());
    let mut later = hello();
    later.term = Term(2);
    let frame = frame(0, 2, Message::Hello(later.clone()));
    assert_eq!(effects(&pair.give(Event::Frame { link, frame })), ["discard", "describe"]);
    assert!(!pair.standby.is_held_back());
    assert_eq!(effects(&pair.give(Event::Described { ours: later })), ["send Refuse", "close"]);
    assert_eq!(pair.phase(), Phase::Waiting);

    // A lack that the guest can run with does not prevent the question.
    let mut pair = Pair::ready(true);
    pair.give(lacks(false));
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
}

#[test]
fn p4_a_torn_epoch_changes_nothing_acknowledged() {
    let mut pair = Pair::ready(true);
    pair.data(6);
    assert!(pair.standby.staged_bytes() > 8192);
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
    let out = pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&out), ["take over 2 at 5"]);
}

#[test]
fn p4_a_stream_that_does_not_add_up_is_a_lost_link() {
    let broken = ["send Refuse", "close", "ask 2"];
    type Change = fn(&mut End);
    let changes: [Change; 4] = [
        |end| end.pages += 1,
        |end| end.digest ^= 1,
        |end| end.previous = None,
        |end| end.previous = Some(Epoch(4)),
    ];
    for change in changes {
        let mut pair = Pair::ready(true);
        let mut end = pair.data(6);
        change(&mut end);
        assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
        assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
    }
    // An epoch is skipped or repeated.
    for epoch in [5, 7] {
        let mut pair = Pair::ready(true);
        let state = pair.state(epoch);
        assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: state })), broken);
    }
    // A frame twice.
    let mut pair = Pair::ready(true);
    let state = pair.state(6);
    pair.give(Event::Frame { link: LINK, frame: state.clone() });
    pair.give(Event::Frame { link: LINK, frame: state });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
    // No state.
    let mut pair = Pair::ready(true);
    let pages = pair.pages(Kind::Pages, 6);
    pair.give(Event::Frame { link: LINK, frame: pages });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
    // Memory sent as for a first checkpoint would damage the held one.
    let mut pair = Pair::ready(true);
    let bulk = pair.pages(Kind::Bulk, 6);
    assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: bulk })), broken);
    // Pages that are invalid.
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.say(6, Message::Pages(Data(Vec::from([1; 9]))))), broken);
    // Another term.
    let mut pair = Pair::ready(true);
    let other = frame(6, 2, Message::State(Data(Vec::new())));
    assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: other })), broken);
}

#[test]
fn p4_lines_change_what_is_held_and_nothing_before_it() {
    let lines = |kind| {
        let mut bytes = Vec::new();
        let at = Header::reserve(&mut bytes);
        // The second line and the third of the page at 4096.
        [4096 | 3, 0b110_u64].iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.extend_from_slice(&[7; 128]);
        let header = Header::finish(&mut bytes, at, kind, Epoch(6), Term(1)).unwrap();
        (header, decode(&bytes))
    };
    let mut pair = Pair::filling(true);
    let (_, bulk) = lines(Kind::Bulk);
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    assert!(pair.standby.reason().unwrap().contains("before a whole copy of memory"));

    let mut pair = Pair::ready(true);
    let (header, pages) = lines(Kind::Pages);
    pair.digest.add(&header, 1);
    assert!(pair.give(Event::Frame { link: LINK, frame: pages }).is_empty());
    let state = pair.state(6);
    pair.give(Event::Frame { link: LINK, frame: state });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), ["check 6"]);
    let out = pair.give(Event::Applicable { epoch: Epoch(6) });
    let Some(Action::Apply(checkpoint)) = out.last() else { panic!("{out:?}") };
    let mut seen = Vec::new();
    checkpoint
        .for_each_piece(|address, piece| {
            seen.push((address, piece.to_vec()));
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(seen, [(4096 + 64, alloc::vec![7; 128])]);
}

#[test]
fn p4_what_cannot_be_applied_is_not_acknowledged() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    pair.refused(Event::Applicable { epoch: Epoch(5) });
    let out = pair.give(Event::NotApplicable { epoch: Epoch(6), reason: "unknown field".into() });
    assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
}

#[test]
fn a_check_is_answered_before_more_data() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    let state = pair.state(7);
    pair.refused(Event::Frame { link: LINK, frame: state.clone() });
    let beat = Heartbeat { sequence: 1, sent: 0 };
    assert_eq!(effects(&pair.say(0, Message::Heartbeat(beat))), ["send HeartbeatReply"]);
    pair.give(Event::Applicable { epoch: Epoch(6) });
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
}

#[test]
fn what_is_staged_is_bounded() {
    let mut pair = Pair::waiting(true);
    pair.standby.options.staging_slack = 32 << 10;
    let mut pair = pair.welcomes().holds();
    let part = Data(alloc::vec![0; 40 << 10]);
    let limit = hello().layout.memory_size() + (32 << 10) + 4096;
    let mut out = Vec::new();
    for _ in 0..3 {
        out = pair.say(6, Message::State(part.clone()));
        assert!(pair.standby.staged_bytes() <= limit);
    }
    assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
    assert!(pair.standby.reason().unwrap().contains("expected a checkpoint of at most"));
}

#[test]
fn p2_an_older_primary_is_turned_away() {
    let mut pair = Pair::doubting();
    pair.give(Event::ArbiterDenied { term: Term(2), holder: "a".into() });
    let link = LinkId(2);
    pair.give(Event::Connected { link });
    let out = pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello())) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(
        pair.standby.reason().unwrap().contains("runs in term 1, but this standby knows of term 2")
    );
    assert_eq!(pair.phase(), Phase::Waiting);
    let link = LinkId(3);
    pair.give(Event::Connected { link });
    let mut newer = hello();
    newer.term = Term(2);
    let out = pair.give(Event::Frame { link, frame: frame(0, 2, Message::Hello(newer)) });
    assert_eq!(effects(&out), ["describe"]);
}

/// P2: an arbiter whose data went back grants a term again.
#[test]
fn p2_a_second_primary_of_the_same_term_is_turned_away() {
    let mut pair = Pair::filling(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    let mut other = hello();
    other.holder = "another".into();
    let link = LinkId(2);
    let say = |pair: &mut Pair, hello| {
        pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello)) })
    };
    pair.give(Event::Connected { link });
    let out = say(&mut pair, other.clone());
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(format!("{out:?}").contains("primary another runs in term 1"), "{out:?}");
    // Without an arbiter the numbers of terms mean nothing.
    let mut pair = Pair::waiting(false);
    for (link, holder) in [(LINK, "one"), (link, "another")] {
        let mut hello = hello();
        hello.holder = holder.into();
        hello.arbiter = handshake::ArbiterView::none();
        pair.give(Event::Connected { link });
        pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello.clone())) });
        let out = pair.give(Event::Described { ours: hello });
        assert_eq!(effects(&out), ["send Welcome"]);
        pair.give(Event::LinkLost { link, reason: String::new() });
    }
}

#[test]
fn machines_that_do_not_fit_are_refused() {
    let greeting = || {
        let mut pair = Pair::waiting(true);
        pair.give(Event::Connected { link: LINK });
        pair.say(0, Message::Hello(hello()));
        pair
    };
    let mut pair = greeting();
    let mut ours = hello();
    ours.layout.cpus = 2;
    assert_eq!(effects(&pair.give(Event::Described { ours })), ["send Refuse", "close"]);
    assert!(pair.standby.reason().unwrap().contains("cpus: primary 1, standby 2"));
    let mut pair = greeting();
    let out = pair.give(Event::CannotHost { reason: "memory: 8 GiB of 4 GiB".into() });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    let mut pair = Pair::waiting(true);
    pair.refused(Event::Described { ours: hello() });
    // A release with another protocol is told so.
    pair.give(Event::Connected { link: LINK });
    let error = WireError::Version { found: 10 };
    let out = pair.give(Event::Garbled { link: LINK, error });
    let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
    let Message::Refuse { reason } = &frame.message else { panic!("{frame:?}") };
    assert!(reason.contains("version 9, the other 10: run the same release"), "{reason}");
}

#[test]
fn one_primary_at_a_time() {
    let mut pair = Pair::ready(true);
    let out = pair.give(Event::Connected { link: LinkId(2) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(matches!(out[0], Action::Send { link: LinkId(2), .. }));
    assert_eq!(pair.phase(), Phase::Ready);
    pair.refused(Event::Connected { link: LINK });
}

#[test]
fn silence_is_suspicious_and_signs_of_life_are_not() {
    let mut pair = Pair::ready(true);
    for sequence in 0..20 {
        pair.now += 400 * MS;
        assert!(pair.give(Event::Tick).is_empty());
        let beat = Heartbeat { sequence, sent: 3 };
        let out = pair.say(0, Message::Heartbeat(beat));
        assert!(matches!(&out[..], [Action::Send { frame, .. }]
            if frame.message == Message::HeartbeatReply(beat)));
    }
    pair.now += 500 * MS + 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    let mut pair = Pair::filling(true);
    pair.now += 10_000 * MS + 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "discard"]);
}

/// Over a slow link a frame takes longer than the timeout, and heartbeats wait behind it.
#[test]
fn while_bytes_come_both_sides_live() {
    let mut pair = Pair::ready(true);
    for beat in 1..=20 {
        pair.now += 60 * MS;
        let out = pair.give(Event::Progress { link: LINK });
        let [Action::Send { frame, .. }] = &out[..] else { panic!("{out:?}") };
        let heartbeat = Heartbeat { sequence: beat, sent: pair.now };
        assert_eq!(frame.message, Message::Heartbeat(heartbeat));
        // Not more often than the interval.
        assert!(pair.give(Event::Progress { link: LINK }).is_empty());
        assert!(pair.give(Event::Tick).is_empty());
    }
    // Whole frames of data show that the primary is alive, too.
    pair.now += 60 * MS;
    let state = pair.state(6);
    let out = pair.give(Event::Frame { link: LINK, frame: state });
    assert_eq!(effects(&out), ["send Heartbeat"]);
    pair.now += 501 * MS;
    assert!(pair.give(Event::Progress { link: LinkId(9) }).is_empty());
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    assert_eq!(Pair::waiting(true).standby.sign_of_life(Time(0)), None);
}

#[test]
fn p2_who_leaves_on_purpose_is_not_replaced() {
    for reason in [ByeReason::PoweredOff, ByeReason::Stopped] {
        let mut pair = Pair::ready(true);
        assert_eq!(effects(&pair.say(0, bye(reason))), ["close", "stop"]);
    }
    let mut pair = Pair::ready(true);
    let out = pair.say(0, bye(ByeReason::Detach));
    assert_eq!(effects(&out), ["send Bye", "close", "discard"]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Waiting, None));
    assert!(pair.give(lost()).is_empty());
}

#[test]
fn p2_without_an_arbiter_the_operator_decides() {
    let mut pair = Pair::ready(false);
    pair.refused(Event::OperatorTakeOver);
    assert_eq!(effects(&pair.give(lost())), ["close"]);
    assert_eq!(pair.phase(), Phase::WaitingForOperator);
    let out = pair.give(Event::OperatorTakeOver);
    assert_eq!(effects(&out), ["take over 2 at 5"]);
    let mut pair = Pair::ready(false);
    pair.give(lost());
    assert_eq!(effects(&pair.give(Event::OperatorDiscard)), ["discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
    Pair::ready(true).refused(Event::OperatorDiscard);
}

#[test]
fn p2_while_the_operator_is_awaited_only_a_newer_primary_of_this_machine_may_join() {
    let join = |term: u64, name: &str| {
        let mut pair = Pair::ready(false);
        pair.give(lost());
        let link = LinkId(2);
        assert!(pair.give(Event::Connected { link }).is_empty());
        let mut newer = hello();
        newer.term = Term(term);
        newer.name = name.into();
        let out = pair.give(Event::Frame { link, frame: frame(0, term, Message::Hello(newer)) });
        (effects(&out), pair.phase(), pair.standby.epoch())
    };
    let held = (
        ["send Refuse", "close"].map(String::from).to_vec(),
        Phase::WaitingForOperator,
        Some(Epoch(5)),
    );
    assert_eq!(join(1, "vm"), held);
    assert_eq!(join(2, "web"), held);
    let joined = (["discard", "describe"].map(String::from).to_vec(), Phase::Greeting, None);
    assert_eq!(join(2, "vm"), joined);
}

#[test]
fn a_planned_move_acknowledges_nothing_more() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["ask 2"]);
    pair.refused(Event::Applicable { epoch: Epoch(6) });
    let beat = Heartbeat { sequence: 1, sent: 0 };
    assert_eq!(effects(&pair.say(0, Message::Heartbeat(beat))), ["send HeartbeatReply"]);
    let state = pair.state(7);
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
    assert!(pair.say(0, bye(ByeReason::Detach)).is_empty(), "too late to renounce");
    let out = pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&out), ["close", "take over 2 at 5"]);
}

#[test]
fn hashes_are_compared() {
    for (hash, agree) in [(5, true), (4, false)] {
        let mut pair = Pair::ready(true);
        pair.refused(Event::Hashed { epoch: Epoch(4), hashes: Hashes { memory: 5, state: 5 } });
        let hashes = Hashes { memory: hash, state: 5 };
        let out = pair.give(Event::Hashed { epoch: Epoch(5), hashes });
        let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
        let Message::Verified(verified) = frame.message else { panic!("{frame:?}") };
        assert_eq!((verified.agree, frame.epoch), (agree, Epoch(5)));
        pair.refused(Event::Hashed { epoch: Epoch(5), hashes });
    }
}

/// P8: a checkpoint that differs between the sides is never continued from, whatever happens to the
/// link.
#[test]
fn p8_a_checkpoint_that_differs_is_given_up() {
    let mut pair = Pair::ready(true);
    let out = pair.give(Event::Hashed { epoch: Epoch(5), hashes: Hashes { memory: 4, state: 5 } });
    assert_eq!(effects(&out), ["send Verified", "send Bye", "close", "discard"]);
    assert_eq!((pair.standby.epoch(), pair.standby.phase()), (None, Phase::Waiting));
    let reason = pair.standby.reason().unwrap();
    assert!(reason.contains("epoch 5 is not the same on both sides"), "{reason}");
    let Some(Action::Send { frame, .. }) = out.get(2) else { panic!("{out:?}") };
    let Message::Bye { reason, session, from, why } = &frame.message else { panic!("{frame:?}") };
    let expected = (ByeReason::Detached, SESSION, STANDBY_SESSION);
    assert_eq!((*reason, *session, *from), expected);
    assert!(why.contains("0000000000000004"), "{why}");
}

#[test]
fn the_operator_stops_it() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(Event::OperatorStop)), ["send Bye", "close", "stop"]);
    pair.refused(Event::OperatorStop);
}

fn bye(reason: ByeReason) -> Message {
    Message::Bye { reason, session: STANDBY_SESSION, from: SESSION, why: String::new() }
}

/// P4: a Bye of another session does not give up a checkpoint.
#[test]
fn p4_a_bye_to_another_session_discards_nothing() {
    for reason in [ByeReason::Detach, ByeReason::PoweredOff, ByeReason::Stopped] {
        for (session, from) in [(SESSION, SESSION), (STANDBY_SESSION, SESSION + 1)] {
            let mut pair = Pair::ready(true);
            let out = pair.say(0, Message::Bye { reason, session, from, why: String::new() });
            assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
            assert!(pair.standby.epoch().is_some());
        }
    }
}

/// P1: on a link without authentication a whole session can be replayed to a waiting standby. It
/// contains exactly what a primary of this machine sent, and must not become a checkpoint to take
/// over from.
#[test]
fn p1_a_session_played_again_leads_to_no_checkpoint() {
    let mut pair = Pair::filling(true);
    pair.digest = EpochDigest::new(STANDBY_SESSION + 1);
    let end = pair.data(5);
    assert_eq!(effects(&pair.say(5, Message::End(end))), ["send Refuse", "close", "discard"]);
    assert!(
        pair.standby.reason().unwrap().contains("End: expected session 0x58, found session 0x59")
    );
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Waiting, None));
}

/// A primary that leaves before it has received this side's number names none: that ends only its
/// session.
#[test]
fn a_bye_before_the_welcome_was_heard_ends_the_session() {
    let mut pair = Pair::filling(true);
    let (reason, why) = (ByeReason::PoweredOff, String::new());
    let out = pair.say(0, Message::Bye { reason, session: 0, from: SESSION, why });
    assert_eq!(effects(&out), ["close", "discard"]);
    assert_eq!(pair.standby.phase(), Phase::Waiting);
}

/// P2, P4: a side that cannot continue does not win a term.
#[test]
fn p4_who_cannot_go_on_does_not_take_the_term() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
    let cannot = || Event::CannotGoOn { reason: "KVM refuses it".into() };
    assert_eq!(effects(&pair.give(cannot())), ["discard"]);
    assert_eq!((pair.standby.epoch(), pair.standby.phase()), (None, Phase::Waiting));
    assert!(pair.standby.reason().unwrap().contains("KVM refuses it"));
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.refused(cannot());

    // Without an arbiter the checkpoint is kept: no other machine may have the guest.
    let mut pair = Pair::ready(false);
    pair.give(lost());
    assert_eq!(effects(&pair.give(cannot())), [""; 0]);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["take over 2 at 5"]);
}

fn not_ready() -> Event {
    Event::NotReady { reason: "tap0 is busy".into() }
}

/// P9: the side neither asks nor gives up. It tries again, and meanwhile a primary that was allowed
/// to continue may connect.
#[test]
fn p9_who_is_not_ready_tries_again() {
    let mut pair = Pair::doubting();
    assert_eq!(effects(&pair.give(not_ready())), [""; 0]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Doubting, Some(Epoch(5))));
    assert!(pair.standby.is_held_back());
    assert!(pair.standby.reason().unwrap().contains("tap0 is busy"));
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    pair.give(not_ready());
    pair.give(Event::Connected { link: LinkId(2) });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    // P2: until there is an answer no primary is let in. It could make this side give up its
    // checkpoint, and the term would then be won in vain.
    assert!(!pair.standby.is_held_back());
    let out = pair.give(Event::Connected { link: LinkId(3) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);
}

/// P7: an operator's move that this side cannot make leaves the guest where it is.
#[test]
fn p7_a_move_to_who_is_not_ready_is_given_up() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["ask 2"]);
    assert!(pair.refused(Event::OperatorTakeOver).expected.contains("already asked the arbiter"));
    assert_eq!(effects(&pair.give(not_ready())), ["send Bye", "close", "discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
}

/// P7: the same without an arbiter.
#[test]
fn p7_the_operator_is_refused_what_this_side_lacks() {
    for arbiter in [true, false] {
        let mut pair = Pair::ready(arbiter);
        if !arbiter {
            pair.give(lost());
        }
        let lack = Lack { reason: "no disk".into(), blocks: true };
        pair.give(Event::Resources { lack: Some(lack) });
        pair.refused(Event::OperatorTakeOver);
        pair.give(Event::Resources { lack: None });
        assert!(!effects(&pair.give(Event::OperatorTakeOver)).is_empty());
    }
}

/// P8: data that could not be compared counts as different.
#[test]
fn p8_a_checkpoint_that_cannot_be_compared_is_given_up() {
    let mut pair = Pair::ready(true);
    pair.refused(Event::CannotHash { epoch: Epoch(4), reason: "?".into() });
    let out = pair.give(Event::CannotHash { epoch: Epoch(5), reason: "a device refuses".into() });
    assert_eq!(effects(&out), ["send Bye", "close", "discard"]);
}

/// The reason of the last session does not apply to this one.
#[test]
fn a_session_begins_with_nothing_to_say() {
    let mut pair = Pair::filling(true);
    pair.give(lost());
    assert!(pair.standby.reason().is_some());
    let link = LinkId(2);
    pair.give(Event::Connected { link });
    pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello())) });
    pair.give(Event::Described { ours: hello() });
    assert_eq!((pair.phase(), pair.standby.reason()), (Phase::Filling, None));
}

/// P2: in a known term only its holder may connect again; in a later term any primary may.
#[test]
fn p2_a_primary_comes_again_and_another_one_in_a_later_term() {
    for (term, holder, welcome) in
        [(1, "primary", true), (1, "another", false), (2, "primary", true), (2, "another", true)]
    {
        let mut pair = Pair::filling(true);
        pair.give(lost());
        let link = LinkId(2);
        pair.give(Event::Connected { link });
        let hello = Box::new(Hello { term: Term(term), holder: holder.into(), ..*hello() });
        let frame = frame(0, term, Message::Hello(hello));
        let out = effects(&pair.give(Event::Frame { link, frame }));
        assert_eq!(out == ["describe"], welcome, "{term}, {holder}: {out:?}");
    }
}

/// The driver describes this side's machine; the session is the primary's.
#[test]
fn a_welcome_is_of_this_protocol_and_of_the_primarys_session() {
    let mut pair = Pair::waiting(true);
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let options = handshake::SessionOptions { verify: false };
    let (protocol, term) = (PROTOCOL + 1, Term(7));
    let ours = Box::new(Hello { protocol, term, session: 5, options, ..*hello() });
    let out = pair.give(Event::Described { ours });
    let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
    assert_eq!(frame.message, Message::Welcome(hello()));
}

/// P4: while a checkpoint is being checked, no data of any kind is staged after it.
#[test]
fn p4_no_data_is_given_while_a_check_is_under_way() {
    let data = || Data(Vec::from([1]));
    let end = End { session: STANDBY_SESSION, pages: 0, digest: 0, previous: None, hashes: None };
    for message in [
        Message::Image(data()),
        Message::Bulk(data()),
        Message::Pages(data()),
        Message::State(data()),
        Message::End(end),
    ] {
        let mut pair = Pair::filling(true);
        pair.checkpoint(5);
        pair.refused(Event::Frame { link: LINK, frame: frame(6, 1, message) });
    }
}

/// P9: an answer without a question is refused; and failures are retried at growing intervals.
#[test]
fn p9_a_standby_that_was_not_ready_asks_ever_later() {
    let mut pair = Pair::doubting();
    let mut delays = Vec::new();
    for _ in 0..3 {
        pair.give(not_ready());
        let retry = pair.standby.next_deadline().unwrap().0;
        delays.push((retry - pair.now) / MS);
        pair.now = retry;
        pair.give(Event::Tick);
    }
    assert_eq!(delays, [50, 100, 200]);

    let mut pair = Pair::ready(true);
    pair.give(Event::OperatorTakeOver);
    pair.give(not_ready());
    pair.refused(Event::ArbiterUnreachable { reason: "timeout".into() });

    let mut pair = Pair::ready(false);
    pair.give(lost());
    pair.give(Event::CannotGoOn { reason: "KVM refuses it".into() });
    assert!(pair.standby.reason().unwrap().contains("KVM refuses it"));
}

/// P9: an arbiter that does not answer is asked at growing intervals, and its failure is the reason
/// until it answers.
#[test]
fn p9_an_arbiter_that_does_not_answer_is_asked_ever_later() {
    let mut pair = Pair::doubting();
    let mut delays = Vec::new();
    for _ in 0..3 {
        pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
        assert!(pair.standby.reason().unwrap().ends_with("the arbiter is unreachable: timeout"));
        let retry = pair.standby.next_deadline().unwrap().0;
        delays.push((retry - pair.now) / MS);
        pair.now = retry;
        assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    }
    assert_eq!(delays, [50, 100, 200]);
    pair.give(Event::ArbiterGranted { term: Term(2) });
    assert!(!pair.standby.reason().unwrap().contains("timeout"));
}

/// P7: in a planned move the primary continues over the same link while the arbiter is asked again.
#[test]
fn p7_a_planned_move_keeps_its_link_while_the_arbiter_is_asked_again() {
    let mut pair = Pair::ready(true);
    pair.give(Event::OperatorTakeOver);
    pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
}

/// P7: something else that it needs is missing by now.
#[test]
fn p7_it_is_held_back_by_whatever_it_must_have() {
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    pair.give(lost());
    let lack = Some(Lack { reason: "tap0: gone".into(), blocks: true });
    assert_eq!(effects(&pair.give(Event::Resources { lack })), [""; 0]);
    assert!(pair.standby.is_held_back());
    pair.give(Event::OperatorStop);
    assert_eq!(pair.standby.reason(), Some("stopped by the operator"));
}

/// P4: memory for a first checkpoint is not mixed with another checkpoint, nor are two checkpoints
/// mixed.
#[test]
fn p4_a_first_checkpoint_is_of_one_epoch() {
    let mut pair = Pair::filling(true);
    let (state, bulk) = (pair.state(5), pair.pages(Kind::Bulk, 5));
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    let mut pair = Pair::filling(true);
    let (state, other) = (pair.state(5), pair.state(6));
    pair.give(Event::Frame { link: LINK, frame: state });
    let out = pair.give(Event::Frame { link: LINK, frame: other });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
}

/// P9: the bound is the size of guest memory, eight bytes per page, and the slack, to the byte.
#[test]
fn p9_what_is_staged_may_be_as_much_as_its_bound() {
    for (beyond, taken) in [(0, true), (1, false)] {
        let mut pair = Pair::waiting(true);
        pair.standby.options.staging_slack = 32 << 10;
        let mut pair = pair.welcomes();
        let limit = (64 << 10) + (64 << 10) / 512 + (32 << 10);
        let out = pair.say(5, Message::State(Data(alloc::vec![0; limit - 64 + beyond])));
        assert_eq!(out.is_empty(), taken, "{out:?}");
    }
}
