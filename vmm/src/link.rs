//! The replication link: addresses, and byte streams over TCP or a Unix socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// Where the other side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAddr {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl std::str::FromStr for LinkAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("expected `unix:PATH`, found no path".to_owned())
            } else {
                Ok(Self::Unix(PathBuf::from(path)))
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(format!("expected `HOST:PORT` or `unix:PATH`, found `{text}`")),
        }
    }
}

impl std::fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => f.write_str(addr),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a link could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Name resolution, connecting or listening failed.
    #[error("{what} {addr}: {source}{hint}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which address.
        addr: LinkAddr,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Guest memory would cross a network in clear.
    #[error(
        "{0} is not a loopback address, and the link carries the whole guest in clear: use a tunnel, or pass --insecure-plain-tcp if the network is yours alone"
    )]
    Plain(SocketAddr),
}

impl LinkAddr {
    /// Connects, waiting at most `timeout`.
    ///
    /// # Errors
    /// When nobody listens there, or plain TCP is not allowed to that address.
    pub fn connect(&self, timeout: Duration, allow_plain: bool) -> Result<Link, LinkError> {
        let failed = |source: io::Error| LinkError::Io {
            what: "cannot reach the standby at",
            addr: self.clone(),
            source,
            hint: "; check that `kemari standby --listen` runs there and the address is right",
        };
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Link::Unix).map_err(failed),
            Self::Tcp(addr) => {
                let addr = resolve(addr).map_err(failed)?;
                check_plain(addr, allow_plain)?;
                let stream = TcpStream::connect_timeout(&addr, timeout).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                Ok(Link::Tcp(stream))
            }
        }
    }

    /// Listens.
    ///
    /// # Errors
    /// When the address is taken, or plain TCP is not allowed on it.
    pub fn listen(&self, allow_plain: bool) -> Result<LinkListener, LinkError> {
        let failed = |source: io::Error| LinkError::Io {
            what: "cannot listen on",
            addr: self.clone(),
            hint: match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process has it: choose another --listen, or end that process"
                }
                io::ErrorKind::AddrNotAvailable => "; --listen must name an address of this host",
                _ => "",
            },
            source,
        };
        match self {
            Self::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(failed)?;
                Ok(LinkListener::Unix(listener, path.clone()))
            }
            Self::Tcp(addr) => {
                let addr = resolve(addr).map_err(failed)?;
                check_plain(addr, allow_plain)?;
                TcpListener::bind(addr).map(LinkListener::Tcp).map_err(failed)
            }
        }
    }
}

fn resolve(addr: &str) -> io::Result<SocketAddr> {
    addr.to_socket_addrs()?.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn check_plain(addr: SocketAddr, allowed: bool) -> Result<(), LinkError> {
    let loopback = match addr.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if loopback || allowed { Ok(()) } else { Err(LinkError::Plain(addr)) }
}

/// Waits for the other side.
#[derive(Debug)]
pub enum LinkListener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, and its path.
    Unix(UnixListener, PathBuf),
}

impl LinkListener {
    /// The next connection.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub fn accept(&self) -> io::Result<(Link, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok((Link::Tcp(stream), peer.to_string()))
            }
            Self::Unix(listener, path) => {
                let (stream, _) = listener.accept()?;
                Ok((Link::Unix(stream), format!("unix:{}", path.display())))
            }
        }
    }
}

impl AsFd for LinkListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for LinkListener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Best effort: a stale socket file is refused by the next bind with a clear error.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One connection.
#[derive(Debug)]
pub enum Link {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Link {
    /// A second handle to the same connection, so that one thread reads and another writes.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Ends the connection for both handles: blocked reads and writes return.
    pub fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// How long a write may block before it fails.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Writes all the slices, in order.
    ///
    /// # Errors
    /// As `writev(2)`; how much was written is then unknown, and the link must be given up.
    pub fn write_all_vectored(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Link {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            Self::Unix(stream) => stream.write(from),
        }
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(from),
            Self::Unix(stream) => stream.write_vectored(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
