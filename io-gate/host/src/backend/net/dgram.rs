//! Network frames as datagrams between two Unix sockets, one frame per datagram.
//!
//! The socket is not connected. A connected socket accepts datagrams only from its peer, so a peer
//! that is restarted under the same name would be refused until the guest sends. Each frame is sent
//! to the socket that has the peer's name at that time. Any process that may write to the local
//! socket can send frames: the directory's permissions decide.
//!
//! A frame for which the peer has no room is sent again after a timer: the kernel signals room only
//! to a connected socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::socket::{receive_message, send_message, take_error};
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::backend::Handled;
use crate::backend::interest::{Interest, Retry};
use crate::descriptors::{self, Address};
use crate::inputs::{Inputs, Role, Token};
use crate::out::{Outgoing, Refused};
use crate::own_files::{self, OwnName, PlaceError};
use crate::permit::Permits;
use crate::poisoned::POISONED;

/// Interval between retries for a frame for which the peer had no room: the first one, and the
/// upper bound. A peer reads a queue of ten (`net.unix.max_dgram_qlen`) within the first interval.
/// At the upper bound, retries to a stopped peer cost little.
const RETRY: Duration = Duration::from_micros(100);
const RETRY_LONGEST: Duration = Duration::from_millis(10);

/// The backend, before it is attached.
pub(crate) struct Dgram {
    bound: Bound,
    peer: Address,
}

/// A socket and its name.
struct Bound {
    _name: OwnName,
    socket: OwnedFd,
    local: PathBuf,
}

/// The lane's half.
pub(crate) struct Output {
    shared: Arc<Shared>,
    peer: Address,
    outbox: Outbox,
}

/// The half that other threads use.
pub(crate) struct Input(Arc<Shared>);

struct Shared {
    /// Never held across a call that can block. Declared before the socket, so that it is dropped
    /// first.
    waits: Mutex<Waits>,
    bound: Bound,
}

struct Waits {
    interest: Interest,
    retry: Retry,
}

impl Dgram {
    pub(crate) fn open(local: &Path, peer: &Path) -> Result<Self, NetError> {
        own_files::check_length(peer)?;
        let (socket, name) = own_files::bind(local, descriptors::datagrams)?;
        let failed = |error| PlaceError::Io { path: peer.to_owned(), error };
        let peer = Address::of(peer).map_err(failed)?;
        Ok(Self { bound: Bound { _name: name, socket, local: local.to_owned() }, peer })
    }

    pub(crate) fn attach(
        self,
        inputs: &Inputs,
        token: Token,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Output, Input)> {
        let mut interest = Interest::new();
        interest.watch(inputs.watch(self.bound.socket.as_raw_fd(), token))?;
        let retry = Retry::new(inputs, token, Role::Timer, RETRY, RETRY_LONGEST)?;
        let waits = Mutex::new(Waits { interest, retry });
        let shared = Arc::new(Shared { waits, bound: self.bound });
        let outbox = Outbox::new(dropped);
        let output = Output { shared: shared.clone(), peer: self.peer, outbox };
        Ok((output, Input(shared)))
    }
}

impl Output {
    pub(crate) fn send(
        &mut self,
        permits: &mut Permits<'_>,
        frame: &Outgoing<'_>,
    ) -> Result<(), Refused> {
        if self.outbox.is_empty() {
            if self.send_now(permits, frame)? {
                return Ok(());
            }
            self.shared.waits().retry.later();
        }
        if self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.keep(usize::MAX), 0);
        }
        Ok(())
    }

    /// Returns whether the frame has left. Fails if the peer is gone.
    fn send_now(&self, permits: &mut Permits<'_>, frame: &Outgoing<'_>) -> Result<bool, Refused> {
        let socket = self.shared.bound.socket.as_fd();
        Ok(send_message(permits, socket, Some(&self.peer), frame)?.is_some())
    }

    /// Sends queued frames, each with its own permit.
    pub(crate) fn attend(&mut self, permits: &mut Permits<'_>) {
        while let Some(front) = self.outbox.front() {
            match self.send_now(permits, &front) {
                Ok(true) => {
                    self.outbox.pop();
                    self.shared.waits().retry.worked();
                }
                Ok(false) => return self.shared.waits().retry.later(),
                // P2: a later permit does not cover waiting frames either.
                Err(_) => self.outbox.clear(),
            }
        }
    }
}

impl Input {
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        into.clear();
        into.resize(VNET_HEADER, 0);
        match receive_message(self.0.bound.socket.as_fd(), into, MAX_FRAME) {
            Ok(Some(len)) if len > 0 => true,
            // An empty datagram is not a frame, and an error (the peer is gone) is not input.
            _ => {
                into.clear();
                false
            }
        }
    }

    pub(crate) fn handle(&self, role: Role, events: EventSet) -> Handled {
        if role == Role::Timer {
            self.0.waits().retry.expired();
            return Handled { attend: true, input: false };
        }
        // A pending error (the peer is gone) would wake the thread repeatedly. Reading clears it.
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            take_error(self.0.bound.socket.as_fd());
        }
        Handled { attend: false, input: events.contains(EventSet::IN) }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        self.0.waits().interest.want_input(wanted);
    }
}

impl Shared {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().expect(POISONED)
    }
}

impl std::fmt::Debug for Dgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dgram").field("local", &self.bound.local).finish_non_exhaustive()
    }
}
