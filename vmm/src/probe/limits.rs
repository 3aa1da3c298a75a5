//! The limits of this host: KVM's, measured by the hypervisor crate, and the time to send as many
//! bytes over loopback TCP and receive an acknowledgement.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_hypervisor::kvm::limits::{self, Limits, LimitsError};
use kemari_replication::link::do_not_pace;

/// Measures each of these counts of pages.
///
/// # Errors
/// When there is no KVM, a count is too large, or a system call fails.
pub fn limits(counts: &[u64]) -> Result<Limits, LimitsError> {
    let mut wire = Wire::new()?;
    limits::limits(counts, |len| wire.send(len))
}

/// A loopback connection to a peer that acknowledges each message when all of it has arrived.
struct Wire {
    stream: TcpStream,
    message: Vec<u8>,
    answer: [u8; ANSWER],
}

const ANSWER: usize = 64;

impl Wire {
    fn new() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        do_not_pace(&stream);
        let (peer, _) = listener.accept()?;
        for end in [&stream, &peer] {
            end.set_nodelay(true)?;
        }
        threads::start("wire", Role::Main, move || answer(&peer))?;
        Ok(Self { stream, message: Vec::new(), answer: [0; ANSWER] })
    }

    fn send(&mut self, len: usize) -> io::Result<Duration> {
        self.message.resize(len, 7);
        self.message[..8].copy_from_slice(&(len as u64).to_le_bytes());
        let begun = Instant::now();
        self.stream.write_all(&self.message)?;
        self.stream.read_exact(&mut self.answer)?;
        Ok(begun.elapsed())
    }
}

/// Acknowledges messages until the other side closes. The first eight bytes of a message are its
/// length.
fn answer(mut peer: &TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; 1 << 20];
    loop {
        let mut head = [0; 8];
        peer.read_exact(&mut head)?;
        let mut left = u64::from_le_bytes(head) as usize - head.len();
        while left > 0 {
            let most = left.min(chunk.len());
            let count = peer.read(&mut chunk[..most])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= count;
        }
        peer.write_all(&[1; ANSWER])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_limits() {
        let limits = limits(&[16]).expect("these tests need /dev/kvm");
        assert!(limits.round_trip_us > 0.0 && limits.pages[0].send_us > 0.0);
    }
}
