//! One epoll descriptor for the events of all backends. The device thread waits for it inside its
//! own epoll set (nested).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_gate::Port;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::descriptors;

/// The maximum number of events taken at once.
const BATCH: usize = 32;

/// The purpose of a backend's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its data: input, and room for output.
    Data,
    /// A second descriptor, for output only.
    Output,
    /// A timer of the lane: its event asks the lane to reconnect.
    Timer,
    /// A timer of the input: its event makes the backend look for input again.
    InputTimer,
}

/// Identifies a descriptor of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) slot: u16,
    pub(crate) port: Port,
    pub(crate) role: Role,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.slot) << 16 | u64::from(self.port.0) << 8 | self.role as u64
    }

    fn unpack(data: u64) -> Self {
        let role = match data & 0xff {
            0 => Role::Data,
            1 => Role::Output,
            2 => Role::Timer,
            _ => Role::InputTimer,
        };
        Self { slot: (data >> 16) as u16, port: Port((data >> 8) as u8), role }
    }
}

/// The nested epoll descriptor.
#[derive(Clone)]
pub(crate) struct Inputs(Arc<Epoll>);

impl Inputs {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(descriptors::epoll()?)))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Returns what is ready now, without waiting.
    pub(crate) fn ready(&self) -> Vec<(Token, EventSet)> {
        let mut events = [EpollEvent::default(); BATCH];
        match self.0.wait(0, &mut events) {
            Ok(count) => events[..count]
                .iter()
                .map(|event| (Token::unpack(event.data()), event.event_set()))
                .collect(),
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    log::error!("epoll_wait on the inputs: {error}");
                }
                Vec::new()
            }
        }
    }

    pub(crate) fn watch(&self, fd: RawFd, token: Token) -> Watch {
        Watch { epoll: self.0.clone(), fd, token, wanted: EventSet::empty() }
    }
}

/// The interest in one descriptor. It must be dropped before the descriptor is closed.
pub(crate) struct Watch {
    epoll: Arc<Epoll>,
    fd: RawFd,
    token: Token,
    wanted: EventSet,
}

impl Watch {
    /// Changes the events to wait for. With no events the descriptor is removed from the set: epoll
    /// reports a hang-up even without requested events.
    pub(crate) fn want(&mut self, wanted: EventSet) -> io::Result<()> {
        if wanted == self.wanted {
            return Ok(());
        }
        let operation = match (self.wanted.is_empty(), wanted.is_empty()) {
            (true, _) => ControlOperation::Add,
            (false, true) => ControlOperation::Delete,
            (false, false) => ControlOperation::Modify,
        };
        self.epoll.ctl(operation, self.fd, EpollEvent::new(wanted, self.token.pack()))?;
        self.wanted = wanted;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only if the descriptor is closed, and then it is no longer in the set.
        let _ = self.want(EventSet::empty());
    }
}
