//! One connection with a standby: its reader, its sender, and how they end.

use crate::hello;
use std::io::{BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ft_core::handshake::{ArbiterView, DiskStorage, Hello, ImageId, SessionOptions};
use ft_core::primary::Event;
use ft_core::wire::{Frame, HEADER_LEN, Header, Message, Outgoing, PROTOCOL, WireError};
use ft_core::{Epoch, LinkId, Term};
use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;
use kemari_support::identity::holder_name;
use kemari_support::random::random_number;

use super::images::SessionBoot;
use super::operator::STUCK;
use super::outbox::{Control, Outbox};
use super::sender::{Item, send};
use super::{Core, Engine, STATUS_PATIENCE};
use crate::link::{Buffers, Link};
use crate::marks::mark_disks;
use kemari_machine::Machine;

/// How long to wait for a standby to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The sending half of a connection. Dropping it closes the connection after everything queued has been sent.
pub(super) struct Session {
    link: LinkId,
    number: u64,
    outbox: Arc<Outbox>,
    closed: Closed,
    boot: Option<SessionBoot>,
}

/// The way to the standby for a thread that may take no lock but this one's: other locks may be held for ever.
#[derive(Clone)]
pub(super) struct Voice {
    outbox: Arc<Outbox>,
    closed: Closed,
    term: Term,
}

impl Voice {
    /// Sends the last frame: this side does not go on.
    pub(super) fn last_word(&self, reason: String) {
        let message = Message::Refuse { reason };
        let frame = Outgoing { epoch: Epoch(0), term: self.term, message };
        let mut bytes = Vec::new();
        // A reason that is too long is cut.
        if frame.encode(&mut bytes).is_ok() {
            self.outbox.push_last(bytes);
        }
    }

    /// Waits until the standby has read it, at most `patience`.
    pub(super) fn is_heard(&self, patience: Duration) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        // Disconnects when the sender ends.
        let _ = closed.recv_timeout(patience);
    }
}

/// Disconnects when the sender has ended and the standby has read its last words; carries no message.
pub(super) type Closed = Arc<Mutex<Receiver<()>>>;

impl Session {
    pub(super) fn link(&self) -> LinkId {
        self.link
    }

    /// The session's number, the same on both sides.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Disconnects when everything queued has been sent and the connection is closed.
    pub(super) fn closed(&self) -> Closed {
        self.closed.clone()
    }

    pub(super) fn send_control(&self, frame: &Outgoing) {
        let mut bytes = Vec::new();
        let control = match frame.message {
            Message::Heartbeat(_) => Control::Sign,
            Message::HeartbeatReply(_) => Control::Answer,
            _ => Control::Other,
        };
        match frame.encode(&mut bytes) {
            Ok(_) => self.outbox.push_control(control, bytes),
            Err(error) => log::error!("a message that is too long was not sent: {error}"),
        }
    }

    /// Starts the pre-copy. From then on `sign` is sent when nothing else was for a while.
    pub(super) fn start_precopy(&self, session: u64, images: &[ImageId], sign: Option<&Outgoing>) {
        let mut bytes = Vec::new();
        // A sign of life is never too long.
        let encoded = sign.and_then(|sign| sign.encode(&mut bytes).ok());
        let sign = encoded.map(|_| bytes);
        let images = self.boot.as_ref().map_or_else(Vec::new, |boot| boot.find(images));
        self.outbox.push(Item::Precopy { session, images, sign });
    }

    /// See [`Outbox::has_room`].
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    pub(super) fn send_checkpoint(&self, item: Item) {
        self.outbox.push(item);
    }

    pub(super) fn rotate_keys(&self, tell: SyncSender<Result<(), String>>) -> bool {
        self.outbox.push_rotation(tell)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

impl Engine {
    /// Asks for new keys for the link; the receiver is told when they are in use.
    ///
    /// # Errors
    /// When there is no link, or it is not encrypted.
    pub fn rotate_keys(&self) -> Result<Receiver<Result<(), String>>, String> {
        if self.options.security.tls.is_none() {
            return Err("expected a link with --tls, found one without".to_owned());
        }
        let core = self.lock_within(STATUS_PATIENCE).ok_or(STUCK)?;
        let session = core.session.as_ref();
        let (tell, told) = sync_channel(1);
        let session = session.ok_or("expected a link to a standby, found none")?;
        match session.rotate_keys(tell) {
            true => Ok(told),
            false => Err("new keys have been asked for, and are not in use yet".to_owned()),
        }
    }

    /// Connects to the standby in a thread of its own: it may take seconds.
    pub(super) fn connect(self: &Arc<Self>, core: &mut Core) {
        let Some(addr) = core.standby.clone() else { return };
        let link_id = LinkId(core.next_link);
        core.next_link += 1;
        core.connecting = Some(link_id);
        let (engine, attempt) = (self.clone(), self.attempts.clone());
        let connect = move || {
            // Prepare first: storage may be slow, and a standby does not wait long for a Hello.
            let arbiter = match engine.prepare(link_id) {
                Ok(arbiter) => arbiter,
                Err(reason) => return engine.connect_failed(link_id, reason),
            };
            let boot = match engine.machine.boot_files().map(SessionBoot::look).transpose() {
                Ok(boot) => boot,
                Err(error) => return engine.connect_failed(link_id, error.to_string()),
            };
            let link = addr.connect(CONNECT_TIMEOUT, &engine.options.security);
            drop(attempt);
            let link = link.map_err(|error| error.to_string());
            match link.and_then(|link| Ok((link, engine.mark(link_id, arbiter)?))) {
                Ok((link, place)) => engine.run_session(link_id, link, place, boot),
                Err(reason) => engine.connect_failed(link_id, reason),
            }
        };
        let engine = self.clone();
        self.launcher.launch("link", connect, move |error| {
            engine.connect_failed(link_id, format!("cannot start a thread for the link: {error}"));
        });
    }

    /// Prepares storage and arbiter for a standby. Slow when much was written and little is durable.
    fn prepare(&self, link: LinkId) -> Result<Option<ArbiterView>, String> {
        self.machine.share_disks().map_err(|error| error.to_string())?;
        let mark = |arbiter: &Arc<dyn Arbiter>| {
            self.mark_for(link, || arbiter.mark().map_err(|error| error.to_string()))
        };
        self.arbiter.as_ref().map(mark).transpose()
    }

    /// Writes the marks that the standby reached over `link` looks for: one thread at a time, and only for the newest connection.
    /// An older one would overwrite the marks that the newer one's standby looks for, and that standby would see another arbiter
    /// or another disk.
    fn mark_for<T>(
        &self,
        link: LinkId,
        mark: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let _one = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().connecting != Some(link) {
            return Err("another connection has taken its place".to_owned());
        }
        mark()
    }

    /// Marks the storage for the standby that has been reached: it must see the same storage (P2, P3). Not done at each attempt:
    /// a record of who may write is only written when needed.
    fn mark(&self, link: LinkId, arbiter: Option<ArbiterView>) -> Result<Place, String> {
        let disks = self.mark_for(link, || {
            self.machine.renew_fence_records().map_err(|error| error.to_string())?;
            let disks = mark_disks(self.machine.config(), self.arbiter.is_some());
            disks.map_err(|error| error.to_string())
        })?;
        let holder = self.arbiter.as_ref();
        let holder =
            holder.map_or_else(|| holder_name("primary"), |arbiter| arbiter.holder().to_owned());
        let networks = hello::networks(self.machine.config());
        Ok(Place { disks, arbiter, holder, networks })
    }

    /// Reports the failed connection, unless a newer one has replaced it: then only the newer one's end counts.
    fn connect_failed(self: &Arc<Self>, link: LinkId, reason: String) {
        let mut core = self.lock();
        if core.connecting == Some(link) {
            core.connecting = None;
            self.event_locked(&mut core, Event::ConnectFailed { reason });
        }
    }

    /// Joins the standby and reads its frames until the link ends.
    fn run_session(
        self: &Arc<Self>,
        link_id: LinkId,
        link: Link,
        place: Place,
        boot: Option<SessionBoot>,
    ) {
        let writer = match link.try_clone() {
            Ok(writer) => writer,
            Err(error) => return self.connect_failed(link_id, error.to_string()),
        };
        let outbox = Arc::<Outbox>::default();
        let items = outbox.clone();
        let (open, closed) = channel::<()>();
        let (reading, reader) = channel::<()>();
        let engine = self.clone();
        let sender = threads::start("sender", move || {
            seccomp::enter(Role::LinkSender, &[]);
            send(&engine, link_id, writer, &items, &reader);
            drop(open);
        });
        if let Err(error) = sender {
            return self.connect_failed(link_id, error.to_string());
        }
        seccomp::enter(Role::LinkReader, &self.machine.wakes());
        {
            let mut core = self.lock();
            if core.connecting != Some(link_id) {
                // A newer connection has replaced this one. Close the queue, or its sender would wait for ever (P9).
                return outbox.close();
            }
            core.connecting = None;
            let source = boot.as_ref().map(|boot| boot.source().clone());
            let hello = Hello { boot: source, ..self.hello(core.primary.term(), place) };
            let hello = Box::new(hello);
            let (number, term) = (hello.session, hello.term.0);
            let connected = Event::StandbyConnected { link: link_id, hello };
            match core.primary.handle(self.now(), connected) {
                Ok(actions) => {
                    let closed = Arc::new(Mutex::new(closed));
                    *self.voice() = Some(Voice {
                        outbox: outbox.clone(),
                        closed: closed.clone(),
                        term: Term(term),
                    });
                    core.session = Some(Session { link: link_id, number, outbox, closed, boot });
                    self.tracking.begin(link_id);
                    self.record(kemari_audit::Event::Joined { term, session: number });
                    self.perform(&mut core, actions);
                    self.tell_ticker(&core);
                }
                // The operator has made another request meanwhile.
                Err(illegal) => {
                    outbox.close();
                    return log::debug!("{illegal}");
                }
            }
        }
        let every = self.options.primary.heartbeat_interval;
        let progress = || self.event(Event::Progress { link: link_id });
        let watched = Watched::new(link, every, progress);
        let mut is_welcomed = false;
        let end = read_frames(watched, &Buffers::default(), |frame| {
            self.event(self.examine(link_id, frame, &mut is_welcomed));
        });
        drop(reading);
        self.event(match end {
            ReadEnd::Garbled(error) => Event::Garbled { link: link_id, error },
            ReadEnd::Lost(reason) => Event::LinkLost { link: link_id, reason },
        });
    }

    /// P2, P3: checks the first `Welcome` of a session: the standby must use the same arbiter and write to the same disks. Later
    /// frames wait here meanwhile.
    fn examine(&self, link: LinkId, frame: Frame, is_welcomed: &mut bool) -> Event {
        if let Message::Welcome(theirs) = &frame.message
            && !std::mem::replace(is_welcomed, true)
            && let Err(reason) = self.check_counter_marks(theirs)
        {
            return Event::Unfit { link, reason };
        }
        Event::Frame { link, frame }
    }

    fn hello(&self, term: Term, place: Place) -> Hello {
        let Place { disks, arbiter, holder, networks } = place;
        Hello {
            term,
            holder,
            session: random_number(),
            options: SessionOptions { verify: self.options.verify },
            ..describe(&self.machine, &self.options.name, arbiter, disks, networks)
        }
    }
}

/// What a session needs besides the machine: the storage that both sides share, marked for this session, and this side's
/// identity.
struct Place {
    disks: Vec<DiskStorage>,
    arbiter: Option<ArbiterView>,
    holder: String,
    /// What was found of the networks.
    networks: Vec<(String, String)>,
}

/// What either side says about itself, except its identity. The primary sets term, session and options.
pub(crate) fn describe(
    machine: &Machine,
    name: &str,
    arbiter: Option<ArbiterView>,
    disks: Vec<DiskStorage>,
    networks: Vec<(String, String)>,
) -> Hello {
    Hello {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        name: name.to_owned(),
        term: Term(0),
        session: 0,
        standby_session: 0,
        holder: String::new(),
        arbiter: arbiter.unwrap_or_else(ArbiterView::none),
        layout: hello::layout(machine),
        disks,
        boot: None,
        images: Vec::new(),
        facts: machine.facts().into_iter().chain(networks).collect(),
        options: SessionOptions::default(),
    }
}

/// A link that reports arriving bytes, at most once per `every`: over a slow link a frame takes longer than the heartbeat
/// timeout.
pub(crate) struct Watched<R, F> {
    link: R,
    every: Duration,
    told: Instant,
    progress: F,
}

impl<R, F: FnMut()> Watched<R, F> {
    pub(crate) fn new(link: R, every: Duration, progress: F) -> Self {
        Self { link, every, told: Instant::now(), progress }
    }
}

impl<R: Read, F: FnMut()> Read for Watched<R, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.link.read(into)?;
        if count > 0 && self.told.elapsed() >= self.every {
            self.told = Instant::now();
            (self.progress)();
        }
        Ok(count)
    }
}

/// How reading a link ended.
pub(crate) enum ReadEnd {
    /// Bytes arrived that are no valid frame.
    Garbled(WireError),
    /// The link has ended.
    Lost(String),
}

/// Read-ahead: one system call reads several small frames; larger bodies are read in place.
const READ_AHEAD: usize = 64 << 10;

/// Reads frames until the link ends. Allocates memory only after a header has passed its checks, which bound the length of every
/// kind of frame.
pub(crate) fn read_frames(
    link: impl Read,
    buffers: &Buffers,
    mut each: impl FnMut(Frame),
) -> ReadEnd {
    let mut link = BufReader::with_capacity(READ_AHEAD, link);
    loop {
        let mut header = [0; HEADER_LEN];
        if let Err(error) = link.read_exact(&mut header) {
            return ReadEnd::Lost(read_error(&error));
        }
        let header = match Header::parse(&header) {
            Ok(header) => header,
            Err(error) => return ReadEnd::Garbled(error),
        };
        let mut body = buffers.take(header.body_len as usize);
        if let Err(error) = link.read_exact(&mut body) {
            return ReadEnd::Lost(read_error(&error));
        }
        match Frame::verify(header, body) {
            Ok(frame) => each(frame),
            Err(error) => return ReadEnd::Garbled(error),
        }
    }
}

fn read_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the other side has closed it".to_owned(),
        _ => error.to_string(),
    }
}
