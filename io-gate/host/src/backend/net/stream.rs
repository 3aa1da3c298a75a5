//! Frames over a Unix stream socket, each behind its length; connects again when the peer goes.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::outbox::Outbox;
use super::{MAX_FRAME, NetError, VNET_HEADER, socket};
use crate::descriptors;
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Role, Token, Watch};
use crate::own_files;

/// How often a connection is tried.
const RETRY: Duration = Duration::from_millis(100);
/// Bytes of the length in front of a frame.
const PREFIX: usize = 4;
/// How much is read from the socket at once.
const READ: usize = 128 * 1024;

/// The backend.
pub(crate) struct Stream {
    path: PathBuf,
    // Before what it watches, so that it is dropped first.
    timer_watch: Option<Watch>,
    timer: TimerFd,
    place: Option<(Inputs, Token)>,
    link: Option<Link>,
    outbox: Outbox,
    input_wanted: bool,
    /// Why the connection is of no use any more, from a read; the lane replaces it.
    broken: Option<String>,
    /// Whether the lane has been told that there is room.
    attended: bool,
    /// Whether the operator has been told that the peer is away.
    told: bool,
}

struct Link {
    // Before the socket, so that it is dropped first.
    watch: Watch,
    socket: UnixStream,
    received: Vec<u8>,
    /// Where the next frame begins in `received`.
    at: usize,
}

impl Stream {
    pub(crate) fn new(path: &Path) -> Result<Self, NetError> {
        own_files::check_length(path)?;
        let timer = descriptors::timer()?;
        Ok(Self {
            path: path.to_owned(),
            timer_watch: None,
            timer,
            place: None,
            link: None,
            outbox: Outbox::default(),
            input_wanted: true,
            broken: None,
            attended: false,
            told: false,
        })
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        let mut watch = inputs.watch(self.timer.as_raw_fd(), Token { role: Role::Timer, ..token });
        watch.want(EventSet::IN)?;
        self.timer_watch = Some(watch);
        self.place = Some((inputs.clone(), token));
        self.connect();
        Ok(())
    }

    pub(crate) fn send(&mut self, frame: Gather<'_>) {
        if self.link.is_none() {
            self.outbox.count_drop();
            return;
        }
        // The limit was checked by the caller.
        let prefix = (frame.len() as u32).to_be_bytes();
        let mut message = Gather::of_slice(&prefix);
        message.append(frame);
        let frame = message;
        if !self.outbox.is_empty() {
            self.queue(&frame, 0);
            return;
        }
        match self.send_some(&frame) {
            Ok(sent) if sent == frame.len() => {}
            Ok(sent) => self.queue(&frame, sent),
            Err(error) => self.disconnect(&error.to_string()),
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        if self.is_broken() {
            return false;
        }
        let Some(link) = &mut self.link else { return false };
        match link.receive(into) {
            Ok(received) => received,
            Err(reason) => {
                self.broken = Some(reason);
                self.update_watch();
                false
            }
        }
    }

    /// Whether the lane has to replace the connection.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(crate) fn handle(&mut self, role: Role, events: EventSet) -> (bool, bool) {
        if role == Role::Timer {
            // Not read: it may have been set anew since it expired, and the read would block.
            let _ = self.timer.clear();
            return (true, false);
        }
        let room = events.contains(EventSet::OUT);
        if room {
            // Until the lane has sent something, the socket would only be ready again.
            self.attended = true;
            self.update_watch();
        }
        (room, events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR))
    }

    /// Replaces a connection that is broken or missing; sends what is queued. Lane.
    pub(crate) fn attend(&mut self) {
        self.attended = false;
        if let Some(reason) = self.broken.take() {
            return self.disconnect(&reason);
        }
        self.connect();
        self.send_queued();
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        self.input_wanted = wanted;
        self.update_watch();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    fn connect(&mut self) {
        let Some((inputs, token)) = &self.place else { return };
        if self.link.is_some() {
            return;
        }
        match descriptors::stream(&self.path) {
            Ok(socket) => {
                log::info!("net stream={}: connected", self.path.display());
                let watch = inputs.watch(socket.as_raw_fd(), *token);
                self.link = Some(Link { watch, socket, received: Vec::new(), at: 0 });
                self.told = false;
                self.update_watch();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    log::warn!(
                        "net stream={}: {error}; frames are dropped until the peer listens there",
                        self.path.display()
                    );
                }
                self.try_later();
            }
        }
    }

    fn disconnect(&mut self, reason: &str) {
        log::warn!("net stream={}: {reason}; connecting again", self.path.display());
        self.link = None;
        self.broken = None;
        self.outbox.clear();
        self.told = true;
        self.try_later();
    }

    fn try_later(&mut self) {
        if let Err(error) = self.timer.reset(RETRY, None) {
            log::error!("net stream={}: cannot set a timer: {error}", self.path.display());
        }
    }

    fn queue(&mut self, frame: &Gather<'_>, sent: usize) {
        // What has left in part must be finished, or the peer loses its place.
        if sent > 0 || self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.to_vec(usize::MAX), sent);
            self.update_watch();
        }
    }

    fn send_queued(&mut self) {
        while let (Some(link), Some(front)) = (&self.link, self.outbox.front()) {
            match send(&link.socket, &Gather::of_slice(front)) {
                Ok(0) => break,
                Ok(sent) => self.outbox.advance(sent),
                Err(error) => return self.disconnect(&error.to_string()),
            }
        }
        self.update_watch();
    }

    fn send_some(&self, bytes: &Gather<'_>) -> io::Result<usize> {
        self.link.as_ref().map_or(Ok(0), |link| send(&link.socket, bytes))
    }

    fn update_watch(&mut self) {
        let Some(link) = &mut self.link else { return };
        let mut wanted = EventSet::empty();
        let usable = self.broken.is_none();
        wanted.set(EventSet::IN, self.input_wanted && usable);
        wanted.set(EventSet::OUT, !self.outbox.is_empty() && !self.attended && usable);
        if let Err(error) = link.watch.want(wanted) {
            log::error!("net stream={}: epoll_ctl: {error}", self.path.display());
        }
    }
}

impl Link {
    /// Takes the next frame, reading what the socket has; an error if there cannot be another.
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

    /// Takes the next whole frame out of what was received; an error if there cannot be one.
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

    /// Reads what the socket has; whether there was anything.
    fn fill(&mut self) -> io::Result<bool> {
        self.received.drain(..self.at);
        self.at = 0;
        match recv(&self.socket, &mut self.received)? {
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

/// Sends what the socket takes now: 0 if it takes nothing.
fn send(socket: &UnixStream, bytes: &Gather<'_>) -> io::Result<usize> {
    socket::send_message(socket.as_raw_fd(), bytes).map(|sent| sent.unwrap_or(0))
}

fn recv(socket: &UnixStream, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
    socket::receive_message(socket.as_raw_fd(), into, READ)
}
