//! A hostile primary against the standby, and a hostile standby against the primary. The frames are
//! often valid one by one, and come in any order, with any contents, from any session.

use std::collections::VecDeque;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ft_core::pages::{Compression, PageBatch};
use ft_core::primary::{self, Primary, PrimaryOptions};
use ft_core::standby::{self, Standby, StandbyOptions};
use ft_core::wire::{
    ByeReason, Data, Decoder, End, EpochDigest, Frame, Hashes, Heartbeat, Kind, Message, Outgoing,
    Verified, WireError,
};
use ft_core::{Epoch, LinkId, Term, Time};
use io_gate::host::new_gate;

use crate::wire::{framed, hello, memory, pages};
use crate::{Target, over};

pub(crate) const STANDBY: Target = Target {
    name: "hostile-primary",
    what: "any frames to a standby: it stages no more than it must, and takes nothing that is not whole",
    run: |bytes| over(against_standby(&mut Unstructured::new(bytes))),
    seeds,
};

pub(crate) const PRIMARY: Target = Target {
    name: "hostile-standby",
    what: "any frames to a primary: nothing is released that was not acknowledged in this session and term",
    run: |bytes| over(against_primary(&mut Unstructured::new(bytes))),
    seeds,
};

const SLACK: u64 = 64 << 10;
const OURS: u64 = 9;
/// The session number of the hostile side.
const THEIRS: u64 = 5;
const STEPS: usize = 64;

fn seeds() -> Vec<Vec<u8>> {
    let ramp: Vec<u8> = (0..=255).collect();
    vec![vec![0; 64], ramp.repeat(2), vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9].repeat(9)]
}

/// Decodes bytes with the product's decoder.
fn decode(bytes: &[u8]) -> std::result::Result<Vec<Frame>, WireError> {
    let (mut decoder, mut rest, mut frames) = (Decoder::new(), bytes, Vec::new());
    while let Some(frame) = decoder.decode(&mut rest)? {
        frames.push(frame);
    }
    Ok(frames)
}

/// The values that a hostile peer needs to be right sometimes.
struct Peer {
    digest: EpochDigest,
    epoch: u64,
    term: u64,
}

impl Peer {
    fn new() -> Self {
        Self { digest: EpochDigest::new(OURS), epoch: 1, term: 1 }
    }

    fn number(input: &mut Unstructured<'_>, right: u64) -> Result<u64> {
        Ok(match input.int_in_range(0..=7)? {
            0 => input.arbitrary()?,
            1 => right.wrapping_add(1),
            2 => right.wrapping_sub(1),
            _ => right,
        })
    }

    fn message(&mut self, input: &mut Unstructured<'_>) -> Result<Message> {
        let hashes = Hashes { memory: input.arbitrary()?, state: 0 };
        Ok(match input.int_in_range(0..=11)? {
            0 => Message::Hello(Box::new(hello(Self::number(input, self.term)?, 5, 0))),
            1 => {
                let numbers = (Self::number(input, 5)?, Self::number(input, OURS)?);
                Message::Welcome(Box::new(hello(self.term, numbers.0, numbers.1)))
            }
            2 => Message::Refuse { reason: "no".into() },
            3 => Message::State(Data(input.arbitrary()?)),
            4 | 5 => Message::End(self.digest.end(Epoch(self.epoch), Some(hashes))),
            6 => Message::End(End {
                session: Self::number(input, OURS)?,
                pages: input.arbitrary()?,
                digest: input.arbitrary()?,
                previous: None,
                hashes: None,
            }),
            7 => Message::Ack,
            8 => Message::Verified(Verified {
                agree: input.arbitrary()?,
                primary: hashes,
                standby: hashes,
            }),
            9 => Message::Heartbeat(Heartbeat { sequence: input.arbitrary()?, sent: 0 }),
            10 => Message::HeartbeatReply(Heartbeat { sequence: input.arbitrary()?, sent: 0 }),
            _ => {
                let reasons = [
                    ByeReason::PoweredOff,
                    ByeReason::Stopped,
                    ByeReason::Detach,
                    ByeReason::Detached,
                ];
                let (right, own) = if input.arbitrary()? { (OURS, THEIRS) } else { (THEIRS, OURS) };
                Message::Bye {
                    reason: *input.choose(&reasons)?,
                    session: Self::number(input, right)?,
                    from: Self::number(input, own)?,
                    why: if input.arbitrary()? { "?".to_owned() } else { String::new() },
                }
            }
        })
    }

    /// The bytes of one frame.
    fn frame(&mut self, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let epoch = Epoch(Self::number(input, self.epoch)?);
        let term = Term(Self::number(input, self.term)?);
        let bytes = match input.int_in_range(0..=5)? {
            0 => {
                let kind = *input.choose(&Kind::ALL)?;
                let body: Vec<u8> = input.arbitrary()?;
                framed(kind, epoch, term, &body).unwrap_or_default()
            }
            1 | 2 => {
                let kind = *input.choose(&[Kind::Bulk, Kind::Pages])?;
                pages(kind, epoch, term, *input.choose(&[Compression::None, Compression::Lz4])?)
            }
            _ => {
                let message = self.message(input)?;
                let ended = matches!(message, Message::End(_) | Message::Ack);
                let mut bytes = Vec::new();
                let sent = Outgoing { epoch, term, message }.encode(&mut bytes).is_ok();
                self.epoch += u64::from(ended && sent);
                bytes
            }
        };
        for frame in decode(&bytes).unwrap_or_default() {
            let pages = if matches!(frame.header.kind, Kind::Bulk | Kind::Pages) { 2 } else { 0 };
            if matches!(frame.header.kind, Kind::Bulk | Kind::Pages | Kind::State) {
                self.digest.add(&frame.header, pages);
            }
        }
        Ok(bytes)
    }
}

/// A standby with its driver, and the state that the assertions need.
struct StandbySide {
    standby: Standby,
    now: Time,
    link: LinkId,
    connected: bool,
    /// The data sent in this session, counted here independently; the epoch that was sent
    /// completely; and the epoch that was found applicable.
    sent: EpochDigest,
    whole: Option<Epoch>,
    applicable: Option<Epoch>,
    /// The last acknowledged checkpoint, and the last applied one.
    acknowledged: Option<Epoch>,
    applied: Option<Epoch>,
    /// Events that the driver gives the standby after all its actions are done.
    todo: VecDeque<standby::Event>,
    over: bool,
}

fn against_standby(input: &mut Unstructured<'_>) -> Result<()> {
    let arbiter = input.arbitrary()?;
    let options = StandbyOptions { arbiter, staging_slack: SLACK, ..StandbyOptions::default() };
    let mut side = StandbySide {
        standby: Standby::new(options),
        now: Time(0),
        link: LinkId(0),
        connected: false,
        sent: EpochDigest::new(OURS),
        whole: None,
        applicable: None,
        acknowledged: None,
        applied: None,
        todo: VecDeque::new(),
        over: false,
    };
    let mut peer = Peer::new();
    for _ in 0..STEPS {
        if side.over || input.is_empty() {
            break;
        }
        match input.int_in_range(0..=15)? {
            0 => side.connect(&mut peer, input)?,
            1 => {
                side.now = side.now + Duration::from_millis(input.int_in_range(0..=900)?);
                side.give(standby::Event::Tick, input)?;
            }
            2 => {
                side.lose(input)?;
            }
            _ if !side.connected => side.connect(&mut peer, input)?,
            _ => {
                let bytes = peer.frame(input)?;
                side.hear(&bytes, input)?;
            }
        }
        let limit = memory().iter().map(|region| region.len).sum::<u64>();
        let staged = side.standby.staged_bytes();
        assert!(staged <= limit + limit / 512 + SLACK, "{staged} bytes are staged");
    }
    Ok(())
}

impl StandbySide {
    fn connect(&mut self, peer: &mut Peer, input: &mut Unstructured<'_>) -> Result<()> {
        self.link = LinkId(self.link.0 + 1);
        self.connected = true;
        if input.ratio(1, 3)? {
            peer.term += 1;
        }
        peer.digest = EpochDigest::new(OURS);
        (self.sent, self.whole, self.applicable) = (EpochDigest::new(OURS), None, None);
        self.give(standby::Event::Connected { link: self.link }, input)
    }

    fn lose(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        self.connected = false;
        let lost = standby::Event::LinkLost { link: self.link, reason: String::new() };
        self.give(lost, input)
    }

    fn hear(&mut self, bytes: &[u8], input: &mut Unstructured<'_>) -> Result<()> {
        let link = self.link;
        match decode(bytes) {
            Ok(frames) => {
                for frame in frames {
                    if self.over {
                        break;
                    }
                    self.count(&frame);
                    self.give(standby::Event::Frame { link, frame }, input)?;
                }
                Ok(())
            }
            Err(error) => self.give(standby::Event::Garbled { link, error }, input),
        }
    }

    /// P4: counts the data of a checkpoint, independently of the standby.
    fn count(&mut self, frame: &Frame) {
        match &frame.message {
            Message::Bulk(Data(body)) | Message::Pages(Data(body)) => {
                let pages = PageBatch::parse(body, &memory()).map_or(0, |batch| batch.pages());
                self.sent.add(&frame.header, pages);
            }
            Message::State(_) => self.sent.add(&frame.header, 0),
            Message::End(end) => {
                let epoch = frame.header.epoch;
                let right = self.sent.end(epoch, end.hashes) == *end;
                (self.whole, self.applicable) = (right.then_some(epoch), None);
            }
            _ => {}
        }
    }

    /// Gives the standby an event. The core must accept every event of the driver, whatever the
    /// peer has sent.
    fn give(&mut self, event: standby::Event, input: &mut Unstructured<'_>) -> Result<()> {
        self.todo.push_back(event);
        while let Some(event) = self.todo.pop_front().filter(|_| !self.over) {
            let shown = format!("{event:?}");
            let actions = self.standby.handle(self.now, event);
            let actions = actions.unwrap_or_else(|illegal| panic!("{illegal}, by {shown}"));
            for action in actions {
                self.perform(action, input)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: standby::Action, input: &mut Unstructured<'_>) -> Result<()> {
        use standby::{Action, Event};
        match action {
            Action::Describe { .. } if input.ratio(1, 12)? => {
                self.todo.push_back(Event::CannotHost { reason: "no".into() });
            }
            Action::Describe { .. } => {
                self.todo.push_back(Event::Described { ours: Box::new(hello(0, 0, OURS)) });
            }
            Action::Check(checkpoint) => {
                let epoch = checkpoint.epoch();
                self.todo.push_back(if input.ratio(1, 12)? {
                    Event::NotApplicable { epoch, reason: "no".into() }
                } else {
                    self.applicable = Some(epoch);
                    Event::Applicable { epoch }
                });
            }
            Action::Send { frame, .. } => {
                if frame.message == Message::Ack {
                    let epoch = Some(frame.epoch);
                    assert_eq!(self.whole.take(), epoch, "P4: acknowledged, and not whole");
                    assert_eq!(self.applicable.take(), epoch, "P4: acknowledged unseen");
                    self.acknowledged = Some(frame.epoch);
                }
            }
            Action::Apply(checkpoint) => {
                let epoch = checkpoint.epoch();
                assert_eq!(self.acknowledged, Some(epoch), "applied, and not acknowledged");
                let last = self.applied.replace(epoch);
                assert!(last.is_none_or(|last| last.next() == epoch), "{epoch} after {last:?}");
                let hashes = Hashes { memory: 0, state: 0 };
                if checkpoint.hashes().is_some() {
                    self.todo.push_back(Event::Hashed { epoch, hashes });
                }
            }
            Action::CloseLink { link, .. } => {
                if link == self.link {
                    self.connected = false;
                    self.todo.clear();
                }
            }
            Action::AskArbiter { term, .. } => {
                self.todo.push_back(match input.int_in_range(0..=2)? {
                    0 => Event::ArbiterDenied { term, holder: "b".into() },
                    1 => Event::ArbiterUnreachable { reason: "no".into() },
                    _ => Event::ArbiterGranted { term },
                });
            }
            Action::TakeOver { taken, .. } => {
                assert_eq!(
                    Some(taken.epoch()),
                    self.applied,
                    "continued from a checkpoint that is not applied"
                );
                self.over = true;
            }
            Action::Discard { .. } => {
                self.applied = None;
            }
            Action::Stop { .. } => {
                self.over = true;
            }
            Action::ApplyBulk(_) | Action::StoreImages(_) => {
                assert_eq!(self.applied, None, "P4: a checkpoint that is held is written over");
            }
            Action::Report(_) => {}
        }
        Ok(())
    }
}

/// A primary with its driver, and the state that the assertions need.
struct PrimarySide {
    primary: Primary,
    now: Time,
    link: LinkId,
    session: bool,
    epoch: u64,
    /// The sealed, unacknowledged epochs of this session, and the epochs that a frame of this
    /// session acknowledged.
    sealed: Vec<u64>,
    heard: Vec<u64>,
    /// Whether a standby holds a checkpoint that it has acknowledged. Then only the arbiter, or a
    /// message of that standby in that session, permits this machine to run alone (P2).
    bound: bool,
    todo: VecDeque<primary::Event>,
    over: bool,
}

fn against_primary(input: &mut Unstructured<'_>) -> Result<()> {
    let (_ledger, authority) = new_gate();
    let options = PrimaryOptions { arbiter: input.arbitrary()?, ..PrimaryOptions::default() };
    let (primary, actions) = Primary::begin(authority, options, Term(1), Time(0));
    let mut side = PrimarySide {
        primary,
        now: Time(0),
        link: LinkId(0),
        session: false,
        epoch: 0,
        sealed: Vec::new(),
        heard: Vec::new(),
        bound: false,
        todo: VecDeque::new(),
        over: false,
    };
    let mut peer = Peer::new();
    for action in actions {
        side.perform(action, input)?;
    }
    side.answer(input)?;
    for _ in 0..STEPS {
        if side.over || input.is_empty() {
            break;
        }
        match input.int_in_range(0..=15)? {
            0 => {
                side.now = side.now + Duration::from_millis(input.int_in_range(0..=900)?);
                side.give(primary::Event::Tick, input)?;
            }
            1 => {
                let lost = primary::Event::LinkLost { link: side.link, reason: String::new() };
                side.give(lost, input)?;
            }
            2 | 3 if side.primary.may_seal() => {
                side.seal();
                side.answer(input)?;
            }
            _ => {
                // A peer that knows the primary's term and epoch.
                peer.term = side.primary.term().0;
                peer.epoch = side.sealed.first().copied().unwrap_or(side.epoch);
                let bytes = peer.frame(input)?;
                side.hear(&bytes, input)?;
            }
        }
    }
    Ok(())
}

impl PrimarySide {
    fn seal(&mut self) {
        self.epoch += 1;
        self.sealed.push(self.epoch);
        self.todo.push_back(primary::Event::Sealed { link: self.link, epoch: Epoch(self.epoch) });
    }

    fn hear(&mut self, bytes: &[u8], input: &mut Unstructured<'_>) -> Result<()> {
        let link = self.link;
        match decode(bytes) {
            Ok(frames) => {
                for frame in frames {
                    if self.over {
                        break;
                    }
                    if frame.message == Message::Ack && frame.header.term == self.primary.term() {
                        self.heard.push(frame.header.epoch.0);
                    }
                    if let Message::Bye { session: THEIRS, .. } = frame.message
                        && self.session
                    {
                        self.bound = false;
                    }
                    self.give(primary::Event::Frame { link, frame }, input)?;
                }
                Ok(())
            }
            Err(error) => self.give(primary::Event::Garbled { link, error }, input),
        }
    }

    fn give(&mut self, event: primary::Event, input: &mut Unstructured<'_>) -> Result<()> {
        self.todo.push_back(event);
        self.answer(input)
    }

    fn answer(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        while let Some(event) = self.todo.pop_front().filter(|_| !self.over) {
            let shown = format!("{event:?}");
            let actions = self.primary.handle(self.now, event);
            let actions = actions.unwrap_or_else(|illegal| panic!("{illegal}, by {shown}"));
            for action in actions {
                self.perform(action, input)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: primary::Action, input: &mut Unstructured<'_>) -> Result<()> {
        use primary::{Action, Event};
        match action {
            Action::Connect => {
                self.link = LinkId(self.link.0 + 1);
                (self.session, self.sealed, self.heard) = (true, Vec::new(), Vec::new());
                let hello = Box::new(hello(0, 5, 0));
                self.todo.push_back(Event::StandbyConnected { link: self.link, hello });
            }
            Action::StartPrecopy { link, .. } => self.todo.push_back(Event::PrecopyDone { link }),
            Action::SealFirst { .. } => self.seal(),
            Action::Release { proof, .. } => {
                let epoch = proof.epoch().0;
                assert!(self.session, "P1: epoch {epoch} is released without a session");
                assert_eq!(self.sealed.first(), Some(&epoch), "P1: released, and not the next");
                assert!(self.heard.contains(&epoch), "P1: epoch {epoch} was never acknowledged");
                self.sealed.remove(0);
                self.bound = true;
            }
            Action::RunAlone(_) => {
                assert!(!self.bound, "P2: it runs alone without permission");
                self.sealed.clear();
            }
            Action::CloseLink { .. } => {
                self.session = false;
                self.todo.clear();
            }
            Action::AskArbiter { term, .. } => {
                self.todo.push_back(match input.int_in_range(0..=2)? {
                    0 => Event::ArbiterDenied { term, holder: "b".into() },
                    1 => Event::ArbiterUnreachable { reason: "no".into() },
                    _ => {
                        self.bound = false;
                        Event::ArbiterGranted { term }
                    }
                });
            }
            Action::Stop { .. } => self.over = true,
            Action::Send { .. } | Action::Hold | Action::Report(_) => {}
        }
        Ok(())
    }
}
