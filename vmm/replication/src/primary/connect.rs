//! Connects to a standby: prepares and marks the shared storage, sends Hello, and reads the
//! standby's frames until the link ends.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ft_core::handshake::{ArbiterView, DiskStorage, Hello, SessionOptions};
use ft_core::primary::Event;
use ft_core::wire::{Frame, Message};
use ft_core::{LinkId, Term};
use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;
use kemari_support::identity::holder_name;
use kemari_support::random::random_number;

use super::images::SessionBoot;
use super::outbox::Outbox;
use super::sender::send;
use super::session::SendingSession;
use super::{Engine, EngineState};
use crate::link::{Buffers, Link};
use crate::session::hello;
use crate::session::marks::mark_disks;
use crate::session::{ReadEnd, Watched, read_frames};

/// Time limit for a standby to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

impl Engine {
    /// Connects to the standby in a thread of its own: a connection may take seconds.
    pub(super) fn connect(self: &Arc<Self>, state: &mut EngineState) {
        let Some(addr) = state.standby.clone() else { return };
        let link_id = LinkId(state.next_link);
        state.next_link += 1;
        state.connecting = Some(link_id);
        let (engine, attempt) = (self.clone(), self.attempts.clone());
        let connect = move || {
            // Prepare before connecting: storage may be slow, and a standby does not wait long for
            // a Hello.
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
            engine.connect_failed(link_id, format!("cannot connect: {error}"));
        });
    }

    /// Prepares the storage and the arbiter for a standby. This is slow when the guest has written
    /// much data that is not durable yet.
    fn prepare(&self, link: LinkId) -> Result<Option<ArbiterView>, String> {
        self.machine.share_disks().map_err(|error| error.to_string())?;
        let mark = |arbiter: &Arc<dyn Arbiter>| {
            self.mark_for(link, || arbiter.mark().map_err(|error| error.to_string()))
        };
        self.arbiter.as_ref().map(mark).transpose()
    }

    /// Runs `mark`, which writes the marks that the standby reached over `link` reads. One thread
    /// at a time, and only for the newest connection: an older one would overwrite the marks of the
    /// newer one's standby, which would then see another arbiter or another disk.
    fn mark_for<T>(
        &self,
        link: LinkId,
        mark: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let _one = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().connecting != Some(link) {
            return Err("another connection has replaced it".to_owned());
        }
        mark()
    }

    /// Marks the storage for the standby that has been reached, which must see the same storage
    /// (P2, P3). Failed attempts do not get here: the fence records are written only when needed.
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

    /// Reports the failed connection, unless a newer connection has replaced it. Only the newest
    /// one's result counts.
    fn connect_failed(self: &Arc<Self>, link: LinkId, reason: String) {
        let mut state = self.lock();
        if state.connecting == Some(link) {
            state.connecting = None;
            self.event_locked(&mut state, Event::ConnectFailed { reason });
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
        let sender = threads::start("sender", Role::LinkSender, move || {
            send(&engine, link_id, writer, &items, &reader);
            drop(open);
        });
        if let Err(error) = sender {
            return self.connect_failed(link_id, error.to_string());
        }
        seccomp::enter(Role::LinkReader, &self.machine.wakes());
        {
            let mut state = self.lock();
            if state.connecting != Some(link_id) {
                // A newer connection has replaced this one. Close the queue, or its sender would
                // wait for ever (P9).
                return outbox.close();
            }
            state.connecting = None;
            let source = boot.as_ref().map(|boot| boot.source().clone());
            let hello = Hello { boot: source, ..self.hello(state.primary.term(), place) };
            let hello = Box::new(hello);
            let (number, term) = (hello.session, hello.term.0);
            let connected = Event::StandbyConnected { link: link_id, hello };
            match state.primary.handle(self.now(), connected) {
                Ok(actions) => {
                    let closed = Arc::new(Mutex::new(closed));
                    let session = SendingSession::new(link_id, number, outbox, closed, boot);
                    *self.final_sender() = Some(session.final_sender(Term(term)));
                    state.session = Some(session);
                    self.tracking.begin(link_id);
                    self.record(kemari_audit::Event::Joined { term, session: number });
                    self.perform(&mut state, actions);
                    self.tell_ticker(&state);
                }
                // The operator has made another request in the meantime.
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

    /// P2, P3: checks the first `Welcome` of a session: the standby must use the same arbiter and
    /// write to the same disks. Later frames wait until the check is done.
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
            ..hello::describe(&self.machine, &self.options.name, arbiter, disks, networks)
        }
    }
}

/// What a session needs besides the machine: the shared storage, marked for this session, and this
/// side's identity.
struct Place {
    disks: Vec<DiskStorage>,
    arbiter: Option<ArbiterView>,
    holder: String,
    /// The name and value of each network's MTU: see [`hello::networks`].
    networks: Vec<(String, String)>,
}
