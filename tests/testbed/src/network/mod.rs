//! The two hosts: a network namespace for each, joined by a cable; if that is not permitted,
//! loopback with a relay between them. Both can cut the replication link silently.

mod namespaces;
mod relay;
mod taps;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::tied_to_us;
use kemari_not_tested::MUST_RUN;
use namespaces::Namespaces;
pub use relay::{Direction, Relay};
pub use taps::GUEST_TAP;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host {
    /// The host on which the virtual machine starts.
    A,
    /// The host of its first standby.
    B,
}

impl Host {
    /// The other host.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The host's index in an array with an entry for each host.
    pub const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// The host's name in file names and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// The hosts and the replication link between them. Dropping it removes them.
#[derive(Debug)]
pub enum TestNetwork {
    /// Each host is a network namespace.
    Namespaces(Namespaces),
    /// Both hosts are on loopback. A relay is in front of each standby.
    Loopback {
        /// The relay in front of each host's standby.
        relays: [Relay; 2],
        /// The reason for the lack of namespaces.
        reason: String,
    },
}

impl TestNetwork {
    /// Creates namespaces if permitted, else uses loopback.
    ///
    /// # Errors
    /// Loopback cannot be set up, or namespaces are missing where [every test must run](MUST_RUN).
    pub fn new() -> Result<Self> {
        match Namespaces::new() {
            Ok(namespaces) => Ok(Self::Namespaces(namespaces)),
            Err(error) if std::env::var_os(MUST_RUN).is_some() => {
                Err(error
                    .context(format!("NOT TESTED, and {MUST_RUN} is set: hosts in namespaces")))
            }
            Err(error) => Self::loopback(format!("{error:#}")),
        }
    }

    /// Uses loopback, because of `reason`.
    ///
    /// # Errors
    /// No port is free.
    pub fn loopback(reason: String) -> Result<Self> {
        Ok(Self::Loopback { relays: [Relay::new()?, Relay::new()?], reason })
    }

    /// A description for a report.
    pub fn describe(&self) -> String {
        match self {
            Self::Namespaces(namespaces) => format!(
                "two network namespaces ({}, {}) and a cable between them",
                namespaces.name(Host::A),
                namespaces.name(Host::B)
            ),
            Self::Loopback { reason, .. } => {
                format!("one loopback and a relay that can go silent (no namespaces: {reason})")
            }
        }
    }

    /// A command that runs `program` on `host`. The program ends with this process.
    pub fn command(&self, host: Host, program: &Path) -> Command {
        match self {
            Self::Namespaces(namespaces) => {
                let mut command = tied_to_us(Path::new("ip"));
                command.args(["netns", "exec", namespaces.name(host)]).arg(program);
                command
            }
            Self::Loopback { .. } => tied_to_us(program),
        }
    }

    /// The command that enters the arbiter's network namespace; empty if the arbiter runs in this
    /// one.
    pub fn arbiter_prefix(&self) -> Vec<String> {
        match self {
            Self::Namespaces(namespaces) => {
                ["/usr/sbin/ip", "netns", "exec", namespaces.arbiter()].map(str::to_owned).to_vec()
            }
            Self::Loopback { .. } => Vec::new(),
        }
    }

    /// The address at which `host` reaches the arbiter.
    pub fn arbiter_address(&self, host: Host) -> &str {
        match self {
            Self::Namespaces(namespaces) => namespaces.arbiter_address(host),
            Self::Loopback { .. } => "127.0.0.1",
        }
    }

    /// Drops all packets from `host` to the arbiter.
    ///
    /// # Errors
    /// The hosts are on loopback, where the arbiter's own relays do this; or a command fails.
    pub fn cut_arbiter(&self, host: Host) -> Result<()> {
        self.namespaces()?.cut_arbiter(host)
    }

    /// Ends [`cut_arbiter`](Self::cut_arbiter).
    ///
    /// # Errors
    /// As [`cut_arbiter`](Self::cut_arbiter).
    pub fn heal_arbiter(&self, host: Host) -> Result<()> {
        self.namespaces()?.heal_arbiter(host)
    }

    /// Creates the guest's network on each host, with a tap for the guest ([`GUEST_TAP`]). Returns
    /// the harness's end of each network.
    ///
    /// # Errors
    /// The hosts are on loopback, or a command fails.
    pub fn make_networks(&self) -> Result<[File; 2]> {
        let namespaces = self.namespaces()?;
        let make = |host| taps::make_network(namespaces.name(host));
        Ok([make(Host::A)?, make(Host::B)?])
    }

    /// Creates the guest's tap on `host` again.
    ///
    /// # Errors
    /// The hosts are on loopback, or a command fails.
    pub fn make_tap(&self, host: Host) -> Result<()> {
        taps::make_guest_tap(self.namespaces()?.name(host))
    }

    /// Deletes the guest's tap on `host`.
    ///
    /// # Errors
    /// The hosts are on loopback, or a command fails.
    pub fn delete_tap(&self, host: Host) -> Result<()> {
        taps::delete_guest_tap(self.namespaces()?.name(host))
    }

    /// Whether each host is a network namespace.
    pub fn is_of_namespaces(&self) -> bool {
        matches!(self, Self::Namespaces(_))
    }

    fn namespaces(&self) -> Result<&Namespaces> {
        match self {
            Self::Namespaces(namespaces) => Ok(namespaces),
            Self::Loopback { .. } => bail!("expected hosts in namespaces, found loopback"),
        }
    }

    /// The address at which a standby on `host` listens.
    pub fn listen_address(&self, host: Host) -> String {
        match self {
            Self::Namespaces(namespaces) => namespaces.address(host),
            Self::Loopback { relays, .. } => relays[host.index()].target().to_string(),
        }
    }

    /// The address at which the other host reaches the standby on `host`.
    pub fn dial_address(&self, host: Host) -> String {
        match self {
            Self::Namespaces(namespaces) => namespaces.address(host),
            Self::Loopback { relays, .. } => relays[host.index()].address().to_string(),
        }
    }

    /// Cuts the replication link silently in the direction from each of `senders`. The bytes are
    /// lost, or arrive after the link heals.
    ///
    /// # Errors
    /// A command fails.
    pub fn cut_replication(&self, senders: &[Host]) -> Result<()> {
        match self {
            Self::Namespaces(namespaces) => namespaces.cut(senders),
            Self::Loopback { relays, .. } => {
                for sender in senders {
                    relays[sender.other().index()].cut(Direction::Forth);
                    relays[sender.index()].cut(Direction::Back);
                }
                Ok(())
            }
        }
    }

    /// Limits the replication link to this many bytes per second in each direction. `None` removes
    /// the limit.
    ///
    /// # Errors
    /// The hosts are namespaces, which have no relay.
    pub fn throttle_replication(&self, bytes_per_second: Option<u64>) -> Result<()> {
        for relay in self.relays()? {
            relay.set_rate(bytes_per_second);
        }
        Ok(())
    }

    /// Flips one bit after `after` more bytes from `sender`; with `every`, flips another after each
    /// further `every` bytes.
    ///
    /// # Errors
    /// The hosts are namespaces, which have no relay.
    pub fn corrupt_replication(
        &self,
        sender: Host,
        after: u32,
        every: Option<usize>,
    ) -> Result<()> {
        let relays = self.relays()?;
        relays[sender.other().index()].flip(Direction::Forth, after, every);
        relays[sender.index()].flip(Direction::Back, after, every);
        Ok(())
    }

    /// Stops flipping bits.
    ///
    /// # Errors
    /// The hosts are namespaces, which have no relay.
    pub fn stop_corrupting(&self) -> Result<()> {
        self.relays()?.iter().for_each(Relay::stop_flipping);
        Ok(())
    }

    fn relays(&self) -> Result<&[Relay; 2]> {
        match self {
            Self::Namespaces(_) => bail!("expected hosts on loopback, found namespaces"),
            Self::Loopback { relays, .. } => Ok(relays),
        }
    }

    /// Heals the replication link.
    ///
    /// # Errors
    /// A command fails.
    pub fn heal_replication(&self) -> Result<()> {
        match self {
            Self::Namespaces(namespaces) => namespaces.heal(),
            Self::Loopback { relays, .. } => {
                relays.iter().for_each(|relay| relay.set_cut(false));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// A cut is silent. The bytes that were sent during the cut arrive after the link heals, in
    /// both directions.
    #[test]
    fn the_relay_cuts_silently() {
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
        let mut near = TcpStream::connect(network.dial_address(Host::B)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"1").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        network.cut_replication(&[Host::A, Host::B]).unwrap();
        near.write_all(b"2").unwrap();
        far.write_all(b"3").unwrap();
        for socket in [&mut near, &mut far] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let error = socket.read(&mut byte).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
            socket.set_read_timeout(None).unwrap();
        }
        network.heal_replication().unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"2");
        near.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"3");
    }

    /// The relay holds one host's bytes and forwards the other's.
    #[test]
    fn the_relay_cuts_one_way() {
        for (sender, other) in [(Host::A, Host::B), (Host::B, Host::A)] {
            let network = TestNetwork::loopback("a test".to_owned()).unwrap();
            let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
            let a = TcpStream::connect(network.dial_address(Host::B)).unwrap();
            let (b, _) = listener.accept().unwrap();
            let mut ends = [a, b];
            // A byte that arrives shows that the relay has connected both ends.
            let mut byte = [0];
            ends[0].write_all(b"1").unwrap();
            ends[1].read_exact(&mut byte).unwrap();
            network.cut_replication(&[sender]).unwrap();
            for host in [sender, other] {
                ends[host.index()].write_all(host.name().as_bytes()).unwrap();
            }
            ends[sender.index()].read_exact(&mut byte).unwrap();
            assert_eq!(byte, other.name().as_bytes());
            let deaf = &mut ends[other.index()];
            deaf.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            assert_eq!(deaf.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn the_relay_flips_one_bit_of_what_one_host_sends() {
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
        let mut near = TcpStream::connect(network.dial_address(Host::B)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        network.corrupt_replication(Host::A, 5, None).unwrap();
        let (mut forth, mut back) = ([0; 9], [0; 9]);
        for part in [&[0; 3][..], &[0; 6]] {
            near.write_all(part).unwrap();
        }
        far.write_all(&[0; 9]).unwrap();
        far.read_exact(&mut forth).unwrap();
        near.read_exact(&mut back).unwrap();
        assert_eq!((forth, back), ([0, 0, 0, 0, 0, 1 << 5, 0, 0, 0], [0; 9]));
    }

    /// A transfer takes at least its time. The test checks no upper bound, which would depend on
    /// the machine.
    #[test]
    fn the_relay_is_no_faster_than_told() {
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
        let mut near = TcpStream::connect(network.dial_address(Host::B)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut bytes = [0; 40_000];
        network.throttle_replication(Some(200_000)).unwrap();
        // The relay may already be reading this byte at the former rate.
        near.write_all(&bytes[..1]).unwrap();
        far.read_exact(&mut bytes[..1]).unwrap();
        let begun = std::time::Instant::now();
        near.write_all(&bytes).unwrap();
        far.read_exact(&mut bytes).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        network.throttle_replication(None).unwrap();
        near.write_all(&bytes).unwrap();
        far.read_exact(&mut bytes).unwrap();
    }

    /// When one end closes, the relay closes the other end.
    #[test]
    fn the_relay_passes_an_end_on() {
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let listener = TcpListener::bind(network.listen_address(Host::A)).unwrap();
        let near = TcpStream::connect(network.dial_address(Host::A)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        drop(near);
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }
}
