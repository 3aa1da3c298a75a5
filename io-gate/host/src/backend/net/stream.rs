//! Frames over a Unix stream socket, each after its length. Reconnects when the peer has gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::{MAX_FRAME, NetError, VNET_HEADER, socket};
use crate::backend::Handled;
use crate::backend::interest::{Interest, Retry};
use crate::descriptors;
use crate::inputs::{Inputs, Role, Token};
use crate::out::{Outgoing, PREFIX, Prefix, Refused};
use crate::own_files;
use crate::permit::Permits;
use crate::poisoned::POISONED;

/// Interval between attempts to connect: the first one, and the upper bound.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// Upper bound of the bytes read from the socket at once.
const READ: usize = 128 * 1024;

/// The backend, before it is attached.
pub(crate) struct Stream {
    path: PathBuf,
}

/// The lane's half: it connects and sends.
pub(crate) struct Output {
    path: PathBuf,
    place: (Inputs, Token),
    shared: Arc<Mutex<Shared>>,
    socket: Option<Arc<UnixStream>>,
    outbox: Outbox,
    /// Whether the missing peer has been logged.
    reported: bool,
}

/// The half that other threads use: they read.
pub(crate) struct Input(Arc<Mutex<Shared>>);

/// Guards the state that both halves change. Never held across a call that can block: the socket is
/// non-blocking.
struct Shared {
    // Declared before the descriptors that they watch, so that they are dropped first.
    interest: Interest,
    retry: Retry,
    link: Option<Link>,
    /// Why a read has found the connection unusable. The lane replaces the connection.
    broken: Option<String>,
}

struct Link {
    socket: Arc<UnixStream>,
    received: Vec<u8>,
    /// The position of the next frame in `received`.
    at: usize,
}

impl Stream {
    pub(crate) fn new(path: &Path) -> Result<Self, NetError> {
        own_files::check_length(path)?;
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) fn attach(
        self,
        inputs: &Inputs,
        token: Token,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Output, Input)> {
        let shared = Arc::new(Mutex::new(Shared {
            interest: Interest::new(),
            retry: Retry::new(inputs, token, Role::Timer, RETRY, RETRY_LONGEST)?,
            link: None,
            broken: None,
        }));
        let mut output = Output {
            path: self.path,
            place: (inputs.clone(), token),
            shared: shared.clone(),
            socket: None,
            outbox: Outbox::new(dropped),
            reported: false,
        };
        output.connect();
        Ok((output, Input(shared)))
    }
}

impl Output {
    pub(crate) fn send(
        &mut self,
        permits: &mut Permits<'_>,
        frame: Outgoing<'_>,
    ) -> Result<(), Refused> {
        // The caller has checked the frame's length.
        let mut prefix = Prefix::default();
        let message = frame.behind_its_length(&mut prefix);
        if !self.outbox.is_empty() {
            self.queue(&message, 0);
            return Ok(());
        }
        let Some(socket) = &self.socket else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        match socket::send_message(permits, socket.as_fd(), None, &message) {
            Ok(Some(sent)) if sent == message.len() => {}
            Ok(sent) => self.queue(&message, sent.unwrap_or(0)),
            Err(refused) => self.failed(refused)?,
        }
        Ok(())
    }

    /// Replaces a broken or missing connection, and sends queued frames, each with its own permit.
    pub(crate) fn attend(&mut self, permits: &mut Permits<'_>) {
        let broken = self.shared().broken.take();
        if let Some(reason) = broken {
            return self.disconnect(&reason);
        }
        if self.socket.is_none() {
            // Do not connect without the right to send: the peer may serve another machine by now.
            match permits.ahead() {
                Ok(()) => self.connect(),
                Err(_) => return,
            }
        }
        while let (Some(socket), Some(front)) = (&self.socket, self.outbox.front()) {
            let fd = socket.as_fd();
            match socket::send_message(permits, fd, None, &front) {
                Ok(Some(sent)) => self.outbox.advance(sent),
                Ok(None) => break,
                Err(refused) => {
                    let _ = self.failed(refused);
                    return;
                }
            }
        }
        self.want_room();
    }

    /// Handles a failed send: decides whether the connection is closed.
    fn failed(&mut self, refused: Refused) -> Result<(), Refused> {
        match refused {
            Refused::Io(error) => self.disconnect(&error.to_string()),
            // P2: a later permit does not cover waiting frames either, and the peer may have a part
            // of a frame.
            Refused::NotPermitted if !self.outbox.is_empty() => {
                self.disconnect("the right to send is lost");
                return Err(Refused::NotPermitted);
            }
            Refused::NotPermitted => return Err(Refused::NotPermitted),
        }
        Ok(())
    }

    fn connect(&mut self) {
        if self.socket.is_some() {
            return;
        }
        match descriptors::stream(&self.path) {
            Ok(socket) => {
                log::info!("net stream={}: connected", self.path.display());
                let (inputs, token) = &self.place;
                let watch = inputs.watch(socket.as_raw_fd(), *token);
                let socket = Arc::new(socket);
                let link = Link { socket: socket.clone(), received: Vec::new(), at: 0 };
                let mut shared = self.shared.lock().expect(POISONED);
                shared.link = Some(link);
                shared.retry.worked();
                if let Err(error) = shared.interest.watch(watch) {
                    log::error!("net stream={}: epoll_ctl: {error}", self.path.display());
                }
                drop(shared);
                self.socket = Some(socket);
                self.reported = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.reported, true) {
                    log::warn!(
                        "net stream={}: {error}; frames are dropped until the peer listens there",
                        self.path.display()
                    );
                }
                self.shared().retry.later();
            }
        }
    }

    fn disconnect(&mut self, reason: &str) {
        log::warn!("net stream={}: {reason}; connecting again", self.path.display());
        let mut shared = self.shared();
        shared.interest.unwatch();
        let link = shared.link.take();
        shared.broken = None;
        shared.retry.later();
        drop(shared);
        // The lane closes the socket here: the threads that read may not close it.
        drop((link, self.socket.take()));
        self.outbox.clear();
        self.reported = true;
    }

    fn queue(&mut self, frame: &Outgoing<'_>, sent: usize) {
        // A frame that has left in part must be finished, or the peer loses its place in the
        // stream.
        if sent > 0 || self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.keep(usize::MAX), sent);
            self.want_room();
        }
    }

    fn want_room(&self) {
        self.shared().interest.want_output(!self.outbox.is_empty());
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect(POISONED)
    }
}

impl Input {
    /// Takes a frame. Returns whether there was one, and whether the lane must replace the
    /// connection.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> (bool, bool) {
        let mut shared = self.shared();
        if shared.broken.is_some() {
            return (false, true);
        }
        let Some(link) = &mut shared.link else { return (false, false) };
        match link.receive(into) {
            Ok(received) => (received, false),
            Err(reason) => {
                shared.broken = Some(reason);
                shared.interest.unwatch();
                (false, true)
            }
        }
    }

    pub(crate) fn handle(&self, role: Role, events: EventSet) -> Handled {
        let mut shared = self.shared();
        if role == Role::Timer {
            shared.retry.expired();
            return Handled { attend: true, input: false };
        }
        let room = events.contains(EventSet::OUT);
        if room {
            // Until the lane has sent something, the socket would be reported as ready again.
            shared.interest.want_output(false);
        }
        let input = events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR);
        Handled { attend: room, input }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        self.shared().interest.want_input(wanted);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect(POISONED)
    }
}

impl Link {
    /// Takes the next frame, and reads from the socket if needed. Fails if no further frame can
    /// follow.
    fn receive(&mut self, into: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            if self.next_frame(into)? {
                return Ok(true);
            }
            if !self.fill().map_err(|error| error.to_string())? {
                return Ok(false);
            }
        }
    }

    /// Takes the next whole frame from the received bytes. Fails if its length is invalid.
    fn next_frame(&mut self, into: &mut Vec<u8>) -> Result<bool, String> {
        let rest = &self.received[self.at..];
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else { return Ok(false) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len == 0 || len > MAX_FRAME {
            return Err(format!("expected a frame of 1 to {MAX_FRAME} bytes, found {len}"));
        }
        let Some(frame) = rest.get(..len) else { return Ok(false) };
        into.clear();
        into.resize(VNET_HEADER, 0);
        into.extend_from_slice(frame);
        self.at += PREFIX + len;
        Ok(true)
    }

    /// Reads the bytes that the socket has. Returns whether there were any.
    fn fill(&mut self) -> io::Result<bool> {
        self.received.drain(..self.at);
        self.at = 0;
        match socket::receive_message(self.socket.as_fd(), &mut self.received, READ)? {
            None => Ok(false),
            Some(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer has closed")),
            Some(_) => Ok(true),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("path", &self.path).finish_non_exhaustive()
    }
}
