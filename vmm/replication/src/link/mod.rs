//! The replication link: addresses, and byte streams over TLS, TCP or a Unix socket.

mod buffers;
mod credentials;
mod reach;
mod stream;
mod tls;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use io_gate_host::own_files::{self, OwnName, PlaceError};
use kemari_support::values;

pub(crate) use buffers::Buffers;
pub use credentials::{Credentials, CredentialsError};
use kemari_machine::config::socket_path;
use stream::Stream;
pub use stream::do_not_pace;
use tls::{HandshakeError, TlsSession};

/// How links are secured. A Unix socket has no TLS: the file system controls who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSecurity {
    /// Use TLS on every TCP connection, with these credentials.
    pub tls: Option<Credentials>,
    /// Whether plain TCP may leave this host, without TLS.
    pub allow_plain: bool,
}

/// The other side's address.
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
        match text.strip_prefix("unix:") {
            Some("") => Err("expected `unix:PATH`, found no path".to_owned()),
            Some(path) => socket_path(path).map(Self::Unix),
            None => values::address(text)
                .map(|()| Self::Tcp(text.to_owned()))
                .map_err(|error| format!("{error}; or unix:PATH")),
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

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Name resolution, connecting or listening failed.
    #[error("{what} {addr}: {source}{hint}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The address that was used.
        addr: LinkAddr,
        /// The system's error.
        source: io::Error,
        /// What the operator can do.
        hint: &'static str,
    },
    /// The path of a Unix socket cannot be used.
    #[error("--listen unix:{0}")]
    Place(#[from] PlaceError),
    /// This side cannot listen at the address.
    #[error("{0}")]
    Peer(PlaceError),
    /// Guest memory would cross a network unencrypted.
    #[error(
        "{0} is not a loopback address, and the link would carry the whole guest in clear: give both sides --tls DIR, \
        or pass --insecure-plain-tcp if the network is private"
    )]
    Plain(SocketAddr),
    /// The two sides have not authenticated each other.
    #[error(
        "no TLS with {peer}: {found}; both sides need --tls with certificates of the same authority, and the \
         standby's certificate must carry its host name (or the name in --tls-peer)"
    )]
    Tls {
        /// The other side.
        peer: String,
        /// What went wrong.
        found: String,
    },
}

impl LinkAddr {
    /// Checks, without connecting, whether the guest may be sent to this address.
    ///
    /// # Errors
    /// [`LinkError::Plain`], [`LinkError::Peer`]. A name that does not resolve now is not an error:
    /// it may resolve later.
    pub fn check(&self, security: &LinkSecurity) -> Result<(), LinkError> {
        let addr = match self {
            Self::Tcp(addr) => addr,
            Self::Unix(path) => return own_files::check_peer(path).map_err(LinkError::Peer),
        };
        match reach::resolve(addr) {
            Ok(found) => found.into_iter().try_for_each(|addr| check_plain(addr, security)),
            Err(error) => {
                log::warn!("{addr}: cannot resolve the name now: {error}");
                Ok(())
            }
        }
    }

    /// Connects within `timeout` and secures the connection.
    ///
    /// # Errors
    /// When nothing listens there, plain TCP is not allowed to that address, or the other side
    /// fails authentication.
    pub fn connect(&self, timeout: Duration, security: &LinkSecurity) -> Result<Link, LinkError> {
        let failed = |source: io::Error| LinkError::Io {
            what: "cannot reach the standby at",
            addr: self.clone(),
            source,
            hint: "; check that `kemari standby --listen` runs there and the address is right",
        };
        let name = match self {
            Self::Unix(path) => {
                let stream = reach::connect_unix(path, timeout).map_err(failed)?;
                return Ok(Link::plain(Stream::Unix(stream)));
            }
            Self::Tcp(name) => name,
        };
        let addresses = reach::resolve(name).map_err(failed)?;
        connect_any(name, &addresses, timeout, security).map_err(|failure| match failure {
            Failure::Io(error) => failed(error),
            Failure::Link(error) => error,
        })
    }

    /// Listens at the address.
    ///
    /// # Errors
    /// When the address is in use, or plain TCP is not allowed on it.
    pub fn listen(&self, security: LinkSecurity) -> Result<LinkListener, LinkError> {
        let failed = |source: io::Error| LinkError::Io {
            what: "cannot listen on",
            addr: self.clone(),
            hint: match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process uses it: choose another --listen, or end that process"
                }
                io::ErrorKind::AddrNotAvailable => "; --listen must name an address of this host",
                _ => "",
            },
            source,
        };
        let socket = match self {
            Self::Unix(path) => {
                let (socket, name) = own_files::bind(path, |path| UnixListener::bind(path))?;
                Listener::Unix { socket, path: path.clone(), _name: name }
            }
            Self::Tcp(name) => {
                let addresses = reach::resolve(name).map_err(|source| LinkError::Io {
                    what: "cannot listen on",
                    addr: self.clone(),
                    source,
                    hint: "; --listen must name an address of this host, for instance 0.0.0.0:7000",
                })?;
                for address in &addresses {
                    check_plain(*address, &security)?;
                }
                Listener::Tcp(reach::listen(&addresses).map_err(failed)?)
            }
        };
        Ok(LinkListener { socket, security })
    }
}

/// Why a name, or one of its addresses, does not lead to the standby.
#[derive(Debug)]
enum Failure {
    Io(io::Error),
    Link(LinkError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Connects to the first of a name's addresses at which a standby answers. If none answers, returns
/// the errors of all of them.
fn connect_any(
    name: &str,
    addresses: &[SocketAddr],
    timeout: Duration,
    security: &LinkSecurity,
) -> Result<Link, Failure> {
    for address in addresses {
        check_plain(*address, security).map_err(Failure::Link)?;
    }
    let mut failures = Vec::new();
    for address in addresses {
        match connect_tcp(name, *address, timeout, security) {
            Ok(link) => return Ok(link),
            // With a single address, return its error unchanged.
            Err(only) if addresses.len() == 1 => return Err(only),
            Err(Failure::Io(error)) => failures.push((*address, error)),
            Err(Failure::Link(error)) => failures.push((*address, io::Error::other(error))),
        }
    }
    Err(Failure::Io(reach::all_failed(failures)))
}

fn connect_tcp(
    name: &str,
    address: SocketAddr,
    timeout: Duration,
    security: &LinkSecurity,
) -> Result<Link, Failure> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    do_not_pace(&stream);
    let stream = Stream::Tcp(stream);
    let Some(credentials) = &security.tls else { return Ok(Link::plain(stream)) };
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    match TlsSession::connect(&stream, credentials, host) {
        Ok(session) => Ok(Link::secured(stream, session)),
        Err(error) => Err(Failure::Link(no_tls(name, &error))),
    }
}

fn check_plain(addr: SocketAddr, security: &LinkSecurity) -> Result<(), LinkError> {
    let loopback = match addr.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if loopback || security.allow_plain || security.tls.is_some() {
        Ok(())
    } else {
        Err(LinkError::Plain(addr))
    }
}

fn no_tls(peer: &str, error: &HandshakeError) -> LinkError {
    let found = match error {
        HandshakeError::Io(error) if timed_out(error) => "no answer in time".to_owned(),
        HandshakeError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "a connection that closed during the handshake".to_owned()
        }
        HandshakeError::Tls(rustls::Error::InvalidMessage(_)) => {
            "something that is not TLS".to_owned()
        }
        other => other.to_string(),
    };
    LinkError::Tls { peer: peer.to_owned(), found }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Listens for the other side.
#[derive(Debug)]
pub struct LinkListener {
    socket: Listener,
    security: LinkSecurity,
}

#[derive(Debug)]
enum Listener {
    /// One listener for each address of a name.
    Tcp(Vec<TcpListener>),
    Unix {
        _name: OwnName,
        socket: UnixListener,
        path: PathBuf,
    },
}

impl LinkListener {
    /// Returns the next connection, which is not authenticated yet.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub fn accept(&self) -> io::Result<Stranger> {
        let (stream, peer, tls) = match &self.socket {
            Listener::Tcp(listeners) => {
                let (stream, peer) = reach::accept(listeners)?;
                stream.set_nodelay(true)?;
                (Stream::Tcp(stream), peer.to_string(), self.security.tls.clone())
            }
            Listener::Unix { socket, path, .. } => {
                let (stream, _) = socket.accept()?;
                (Stream::Unix(stream), format!("unix:{}", path.display()), None)
            }
        };
        Ok(Stranger { stream, peer, tls })
    }
}

/// With several addresses, this is the first one's listener.
impl AsFd for LinkListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listener::Tcp(listeners) => listeners[0].as_fd(),
            Listener::Unix { socket, .. } => socket.as_fd(),
        }
    }
}

/// A connection whose other end has not been authenticated yet.
#[derive(Debug)]
pub struct Stranger {
    stream: Stream,
    peer: String,
    tls: Option<Credentials>,
}

impl Stranger {
    /// The other end's address.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// A handle that ends the connection while another thread authenticates it.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn hang_up(&self) -> io::Result<HangUp> {
        self.stream.try_clone().map(HangUp)
    }

    /// Authenticates the other end. This takes some seconds at most.
    ///
    /// # Errors
    /// When the other end fails authentication.
    pub fn admit(self) -> Result<Link, LinkError> {
        let Some(credentials) = &self.tls else { return Ok(Link::plain(self.stream)) };
        TlsSession::accept(&self.stream, credentials)
            .map_err(|error| no_tls(&self.peer, &error))
            .map(|session| Link::secured(self.stream, session))
    }
}

/// Ends a connection that another thread uses.
#[derive(Debug)]
pub struct HangUp(Stream);

impl HangUp {
    /// Ends the connection: blocked reads and writes return.
    pub fn hang_up(self) {
        self.0.shutdown();
    }
}

/// A connection that is ready for use: authenticated, if this side requires it.
#[derive(Debug)]
pub struct Link {
    stream: Stream,
    tls: Option<Arc<TlsSession>>,
}

impl Link {
    fn plain(stream: Stream) -> Self {
        Self { stream, tls: None }
    }

    fn secured(stream: Stream, session: TlsSession) -> Self {
        Self { stream, tls: Some(Arc::new(session)) }
    }

    /// Returns a second handle to the same connection, so that one thread reads and another writes.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, tls: self.tls.clone() })
    }

    /// Ends the connection for both handles: blocked reads and writes return.
    pub fn shutdown(&self) {
        self.stream.shutdown();
    }

    /// Ends writing, but not reading, so that the other side can read the last bytes before the
    /// connection breaks.
    pub fn end_writing(&self) {
        self.stream.end_writing();
    }

    /// Sets how long a write may block before it fails.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_write_timeout(timeout)
    }

    /// Sets how long a read may block before it fails.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Whether the other side is authenticated and the connection encrypted.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Makes both sides use new keys from here on. No data is lost, and no write waits for the
    /// other side. Does nothing on a link without TLS.
    ///
    /// # Errors
    /// As [`Write::write`].
    pub fn rotate_keys(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |session| session.rotate_keys(&self.stream))
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some(session) => session.read(&self.stream, into),
            None => self.stream.read_now(into),
        }
    }
}

impl Write for Link {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match &self.tls {
            Some(session) => session.write(&self.stream, from),
            None => self.stream.write_now(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::net::Ipv4Addr;

    use super::*;

    /// Fails if a standby is not reached when one of its host name's two networks is down.
    #[test]
    fn all_addresses_of_a_name_are_tried() {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
        let there = listener.local_addr().unwrap();
        let nobody = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 1), there.port()));
        let (timeout, security) = (Duration::from_secs(60), LinkSecurity::default());
        let name = format!("pair:{}", there.port());
        connect_any(&name, &[nobody, there], timeout, &security).unwrap();

        drop(listener);
        let Failure::Io(error) =
            connect_any(&name, &[nobody, there], timeout, &security).unwrap_err()
        else {
            panic!("connections are refused");
        };
        let error = error.to_string();
        assert!(error.contains("127.0.0.1:") && error.contains("127.0.0.2:"), "{error}");
    }
}
