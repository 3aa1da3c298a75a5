//! From an address to sockets. A name may have several addresses, and all of them are used.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Upper bound of the addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Time between two attempts while a Unix socket's queue is full.
const FULL_AGAIN: Duration = Duration::from_millis(10);

/// Returns all addresses of a name, in the resolver's order, each once.
pub(super) fn resolve(addr: &str) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for socket in addr.to_socket_addrs()?.take(ADDRESSES_MAX) {
        if !found.contains(&socket) {
            found.push(socket);
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// Joins the errors of several addresses into one error of the first one's kind.
pub(super) fn all_failed(mut failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if failures.len() == 1 {
        return failures.swap_remove(0).1;
    }
    let kind = failures.first().map_or(ErrorKind::NotFound, |(_, error)| error.kind());
    let each: Vec<_> = failures.iter().map(|(at, error)| format!("{at}: {error}")).collect();
    io::Error::new(kind, each.join("; "))
}

/// Listens on all addresses. An address that this host does not have (for instance of a disabled
/// family) is skipped if another one works. An address that another process uses is an error: that
/// process would get some of the connections.
pub(super) fn listen(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut failures) = (Vec::new(), Vec::new());
    for address in addresses {
        match TcpListener::bind(address).and_then(not_blocking) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_absent(&error) => failures.push((*address, error)),
            Err(error) => {
                return Err(all_failed(vec![(*address, error)]));
            }
        }
    }
    if listeners.is_empty() {
        return Err(all_failed(failures));
    }
    for (address, error) in failures {
        log::warn!("not listening on {address}: {error}; listening on the name's other addresses");
    }
    Ok(listeners)
}

fn not_blocking(listener: TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true).map(|()| listener)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Accepts the next connection of any of several listeners.
pub(super) fn accept(listeners: &[TcpListener]) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    loop {
        for listener in listeners {
            match listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
        let mut fds: Vec<_> =
            listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects to a Unix socket. If its owner hangs, its queue is full: waits for room at most
/// `timeout`.
pub(super) fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(FULL_AGAIN),
            Err(Errno::AGAIN) => {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    "it listens, but accepts no connection",
                ));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::net::{Ipv4Addr, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn loopback(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port))
    }

    #[test]
    fn all_addresses_are_listened_on() {
        let first = TcpListener::bind(loopback(1, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        let addresses = [loopback(1, port), loopback(2, port), loopback(3, port)];
        let listeners = listen(&addresses).unwrap();
        for address in addresses.iter().rev() {
            let near = TcpStream::connect(address).unwrap();
            let (far, from) = accept(&listeners).unwrap();
            assert_eq!(from, near.local_addr().unwrap());
            assert_eq!(far.local_addr().unwrap(), *address);
        }
        // An address that another process uses is not skipped.
        drop(listeners);
        let _other = TcpListener::bind(addresses[2]).unwrap();
        let taken = listen(&addresses).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        // An address that the host does not have is skipped. If none is left, its error is
        // reported.
        let absent = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 77), port));
        assert_eq!(listen(&[absent, addresses[0]]).unwrap().len(), 1);
        let none = listen(&[absent, SocketAddr::from((Ipv4Addr::new(203, 0, 113, 78), port))]);
        let text = none.unwrap_err().to_string();
        assert!(text.contains("203.0.113.77") && text.contains("203.0.113.78"), "{text}");
    }

    #[test]
    fn a_unix_socket_whose_owner_hangs_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _hangs = UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(&path, patience) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
