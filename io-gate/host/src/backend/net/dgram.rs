//! A frame per datagram between two Unix sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::socket::{receive_message, send_message};
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::descriptors;
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Token, Watch};
use crate::own_files::{self, OwnName};

/// The backend.
pub(crate) struct Dgram {
    // Before the socket, so that it is dropped first.
    watch: Option<Watch>,
    _name: OwnName,
    socket: OwnedFd,
    local: PathBuf,
    peer: PathBuf,
    connected: bool,
    outbox: Outbox,
    input_wanted: bool,
    /// Whether the lane has been told that there is room.
    attended: bool,
}

impl Dgram {
    pub(crate) fn open(local: &Path, peer: &Path) -> Result<Self, NetError> {
        own_files::check_length(peer)?;
        let (socket, name) = own_files::bind(local, descriptors::datagrams)?;
        Ok(Self {
            watch: None,
            _name: name,
            socket,
            local: local.to_owned(),
            peer: peer.to_owned(),
            connected: false,
            outbox: Outbox::default(),
            input_wanted: true,
            attended: false,
        })
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        self.watch = Some(inputs.watch(self.socket.as_raw_fd(), token));
        self.update_watch();
        Ok(())
    }

    pub(crate) fn send(&mut self, frame: &Gather<'_>) {
        if !self.outbox.is_empty() {
            self.queue(frame);
            return;
        }
        match self.send_now(frame) {
            Ok(true) => {}
            Ok(false) => self.queue(frame),
            Err(_) => self.outbox.count_drop(),
        }
    }

    /// Whether it has left; an error when the peer is away.
    fn send_now(&mut self, frame: &Gather<'_>) -> io::Result<bool> {
        if !self.connected {
            descriptors::connect_datagrams(&self.socket, &self.peer)?;
            self.connected = true;
        }
        match send_message(self.socket.as_raw_fd(), frame) {
            Ok(sent) => Ok(sent.is_some()),
            Err(error) => {
                self.connected = false;
                self.outbox.clear();
                Err(error)
            }
        }
    }

    fn queue(&mut self, frame: &Gather<'_>) {
        if self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.to_vec(usize::MAX), 0);
            self.update_watch();
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        into.clear();
        into.resize(VNET_HEADER, 0);
        match receive_message(self.socket.as_raw_fd(), into, MAX_FRAME) {
            Ok(Some(len)) if len > 0 => true,
            // An empty datagram is no frame; an error (the peer is gone) is no input either.
            _ => {
                into.clear();
                false
            }
        }
    }

    pub(crate) fn handle(&mut self, events: EventSet) -> (bool, bool) {
        let room = events.contains(EventSet::OUT);
        if room {
            // Until the lane has sent something, the socket would only be ready again.
            self.attended = true;
            self.update_watch();
        }
        (room, events.contains(EventSet::IN))
    }

    /// Sends what is queued. Lane.
    pub(crate) fn attend(&mut self) {
        self.attended = false;
        while let Some(front) = self.outbox.front() {
            match send_message(self.socket.as_raw_fd(), &Gather::of_slice(front)) {
                Ok(Some(_)) => self.outbox.pop(),
                Ok(None) => break,
                Err(_) => {
                    self.connected = false;
                    self.outbox.clear();
                }
            }
        }
        self.update_watch();
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        self.input_wanted = wanted;
        self.update_watch();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    fn update_watch(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.input_wanted);
        wanted.set(EventSet::OUT, !self.outbox.is_empty() && !self.attended);
        if let Err(error) = watch.want(wanted) {
            log::error!("net dgram={}: epoll_ctl: {error}", self.local.display());
        }
    }
}

impl std::fmt::Debug for Dgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dgram").field("local", &self.local).finish_non_exhaustive()
    }
}
