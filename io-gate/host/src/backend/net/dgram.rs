//! A frame per datagram between two Unix sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::socket::{receive_message, send_message, take_error};
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::backend::Handled;
use crate::backend::interest::Interest;
use crate::core::POISONED;
use crate::descriptors;
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Token};
use crate::out::Refused;
use crate::own_files::{self, OwnName};
use crate::permit::Permits;

/// The backend, before it is attached.
pub(crate) struct Dgram {
    bound: Bound,
    peer: PathBuf,
}

/// A socket, and the name that goes with it.
struct Bound {
    _name: OwnName,
    socket: OwnedFd,
    local: PathBuf,
}

/// The lane's half.
pub(crate) struct Output {
    shared: Arc<Shared>,
    peer: PathBuf,
    connected: bool,
    outbox: Outbox,
}

/// What other threads see.
pub(crate) struct Input(Arc<Shared>);

struct Shared {
    /// Never held across a call that can block. Before the socket, so that it is dropped first.
    interest: Mutex<Interest>,
    bound: Bound,
}

impl Dgram {
    pub(crate) fn open(local: &Path, peer: &Path) -> Result<Self, NetError> {
        own_files::check_length(peer)?;
        let (socket, name) = own_files::bind(local, descriptors::datagrams)?;
        let (local, peer) = (local.to_owned(), peer.to_owned());
        Ok(Self { bound: Bound { _name: name, socket, local }, peer })
    }

    pub(crate) fn attach(
        self,
        inputs: &Inputs,
        token: Token,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Output, Input)> {
        let mut interest = Interest::new();
        interest.watch(inputs.watch(self.bound.socket.as_raw_fd(), token))?;
        let shared = Arc::new(Shared { interest: Mutex::new(interest), bound: self.bound });
        let outbox = Outbox::new(dropped);
        let output = Output { shared: shared.clone(), peer: self.peer, connected: false, outbox };
        Ok((output, Input(shared)))
    }
}

impl Output {
    pub(crate) fn send(
        &mut self,
        permits: &mut Permits<'_>,
        frame: &Gather<'_>,
    ) -> Result<(), Refused> {
        if self.outbox.is_empty() && self.send_now(permits, frame)? {
            return Ok(());
        }
        if self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.to_vec(usize::MAX), 0);
            self.want_room();
        }
        Ok(())
    }

    /// Whether it has left; an error when the peer is away.
    fn send_now(&mut self, permits: &mut Permits<'_>, frame: &Gather<'_>) -> Result<bool, Refused> {
        if !self.connected {
            descriptors::connect_datagrams(&self.shared.bound.socket, &self.peer)?;
            self.connected = true;
        }
        let sent = send_message(permits, self.shared.bound.socket.as_raw_fd(), frame);
        if sent.is_err() {
            // P2: what waits is not sent by a later permission either.
            self.connected = false;
            self.outbox.clear();
        }
        Ok(sent?.is_some())
    }

    /// Sends what is queued, each frame by a permission of its own.
    pub(crate) fn attend(&mut self, permits: &mut Permits<'_>) {
        while let Some(front) = self.outbox.front() {
            let socket = self.shared.bound.socket.as_raw_fd();
            match send_message(permits, socket, &Gather::of_slice(front)) {
                Ok(Some(_)) => self.outbox.pop(),
                Ok(None) => break,
                Err(_) => {
                    self.connected = false;
                    self.outbox.clear();
                }
            }
        }
        self.want_room();
    }

    fn want_room(&self) {
        self.shared.interest().want_output(!self.outbox.is_empty());
    }
}

impl Input {
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        into.clear();
        into.resize(VNET_HEADER, 0);
        match receive_message(self.0.bound.socket.as_raw_fd(), into, MAX_FRAME) {
            Ok(Some(len)) if len > 0 => true,
            // An empty datagram is no frame; an error (the peer is gone) is no input either.
            _ => {
                into.clear();
                false
            }
        }
    }

    pub(crate) fn handle(&self, events: EventSet) -> Handled {
        let room = events.contains(EventSet::OUT);
        if room {
            // Until the lane has sent something, the socket would only be ready again.
            self.0.interest().want_output(false);
        }
        // An error that nobody takes (the peer has gone) stays, and wakes again and again: reading takes it.
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            take_error(self.0.bound.socket.as_raw_fd());
        }
        Handled { attend: room, input: events.contains(EventSet::IN) }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        self.0.interest().want_input(wanted);
    }
}

impl Shared {
    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().expect(POISONED)
    }
}

impl std::fmt::Debug for Dgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dgram").field("local", &self.bound.local).finish_non_exhaustive()
    }
}
