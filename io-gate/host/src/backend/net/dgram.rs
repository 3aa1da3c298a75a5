//! A frame per datagram between two Unix sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::socket::{receive_message, send_message};
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::descriptors::{self, MAX_SOCKET_PATH};
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Token, Watch};

/// The backend.
pub(crate) struct Dgram {
    // Before the socket, so that it is dropped first.
    watch: Option<Watch>,
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
        for path in [local, peer] {
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                return Err(NetError::Path { path: path.to_owned() });
            }
        }
        let failed = |what, error| NetError::Bind { local: local.to_owned(), what, error };
        // A socket that a killed machine has left behind; anything else is not ours to remove.
        if std::fs::symlink_metadata(local).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(local).map_err(|error| failed("cannot remove it", error))?;
        }
        let socket =
            descriptors::datagrams(local).map_err(|error| failed("cannot bind it", error))?;
        Ok(Self {
            watch: None,
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

impl Drop for Dgram {
    fn drop(&mut self) {
        // The name is of no use to anyone without the socket; if it is gone already, so much the
        // better.
        let _ = std::fs::remove_file(&self.local);
    }
}

impl std::fmt::Debug for Dgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dgram").field("local", &self.local).finish_non_exhaustive()
    }
}
