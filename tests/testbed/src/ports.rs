//! Free ports of this host, for servers that start later.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Ports below those that Linux assigns automatically (ip(7), `ip_local_port_range`). Such a port
/// stays free until the server starts, and while it restarts.
const RANGE: Range<u16> = 10_000..32_768;
/// Maximum number of attempts.
const ATTEMPTS: u32 = 1000;

/// An address on the loopback interface at which no process listens.
///
/// # Errors
/// All attempted ports are in use, or the kernel refuses.
pub fn free_address() -> io::Result<SocketAddr> {
    for _ in 0..ATTEMPTS {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(RANGE)));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("cannot find a free port"))
}
