//! A client's time-out: one for connecting, sending the request and waiting for the answer
//! together.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::CLIENT_TIMEOUT;

/// The time-out of one client, which may send several requests.
pub struct Patience {
    begun: Instant,
    /// The whole time-out, from `begun` on.
    pub(super) all: Duration,
}

impl Patience {
    /// The time-out of a client that waits up to `outcome` for an outcome. It starts now.
    #[must_use]
    pub fn with(outcome: Duration) -> Self {
        Self { begun: Instant::now(), all: outcome.saturating_add(CLIENT_TIMEOUT) }
    }

    /// The time-out of a status request that precedes the command: half of the client's, so that
    /// enough is left for the command to connect.
    #[must_use]
    pub fn of_question() -> Self {
        Self { begun: Instant::now(), all: CLIENT_TIMEOUT / 2 }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.all.saturating_sub(self.begun.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Connects with a time-out: a listener that accepts no connections blocks new clients when its
    /// queue is full. The send time-out limits this if it is set before connecting (unix(7), and
    /// `SO_SNDTIMEO` in socket(7)).
    pub(super) fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(self.left()?))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    }
}

/// Reads until the time-out has passed, even if bytes arrive slowly.
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
