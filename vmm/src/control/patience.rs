//! How long a client waits, all in all: to be let in, to say what it wants, and for the answer.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::CLIENT_TIMEOUT;

/// Of one client, which may ask more than once.
pub struct Patience {
    begun: Instant,
    /// From then on.
    pub(super) all: Duration,
}

impl Patience {
    /// Of one that waits so long for an outcome. It begins now.
    #[must_use]
    pub fn with(outcome: Duration) -> Self {
        Self { begun: Instant::now(), all: outcome.saturating_add(CLIENT_TIMEOUT) }
    }

    /// Of a question before the command itself, which leaves the command the rest, with what it takes to be let in.
    #[must_use]
    pub fn of_question() -> Self {
        Self { begun: Instant::now(), all: CLIENT_TIMEOUT / 2 }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.all.saturating_sub(self.begun.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Whoever listens and lets nobody in holds up who connects once its queue is full: until the time to send is over, where
    /// that is set before (unix(7) and `SO_SNDTIMEO` in socket(7)).
    pub(super) fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(self.left()?))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    }
}

/// What comes while there is patience, however little comes at once.
pub(super) struct Impatient<'p> {
    pub(super) stream: UnixStream,
    pub(super) patience: &'p Patience,
}

impl Read for Impatient<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.patience.left()?))?;
        self.stream.read(to)
    }
}
