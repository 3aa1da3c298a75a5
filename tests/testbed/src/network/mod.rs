//! The two hosts: a network namespace each, joined by a cable, if permitted; else loopback with a relay between them.
//! In both cases the replication link can be cut silently.

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
    /// Where the virtual machine starts.
    A,
    /// Where its first standby is.
    B,
}

impl Host {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its place in a pair of things.
    pub const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// A name for files and people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// The hosts and the replication link between them. They go away when dropped.
#[derive(Debug)]
pub enum TestNetwork {
    /// Each host is a network namespace.
    Namespaces(Namespaces),
    /// Both hosts are on loopback, each standby behind a relay.
    Loopback {
        /// The relay in front of each host's standby.
        relays: [Relay; 2],
        /// Why there are no namespaces.
        reason: String,
    },
}

impl TestNetwork {
    /// Namespaces where permitted, else loopback.
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

    /// Loopback, because of `reason`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn loopback(reason: String) -> Result<Self> {
        Ok(Self::Loopback { relays: [Relay::new()?, Relay::new()?], reason })
    }

    /// A description for people.
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

    /// A command that runs `program` on `host` and ends with this process.
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

    /// The command that starts a program where the arbiter runs; empty if that is this namespace.
    pub fn arbiter_prefix(&self) -> Vec<String> {
        match self {
            Self::Namespaces(namespaces) => {
                ["/usr/sbin/ip", "netns", "exec", namespaces.arbiter()].map(str::to_owned).to_vec()
            }
            Self::Loopback { .. } => Vec::new(),
        }
    }

    /// The address at which `host` finds the arbiter.
    pub fn arbiter_address(&self, host: Host) -> &str {
        match self {
            Self::Namespaces(namespaces) => namespaces.arbiter_address(host),
            Self::Loopback { .. } => "127.0.0.1",
        }
    }

    /// Drops what `host` sends to the arbiter.
    ///
    /// # Errors
    /// On loopback, where the arbiter's own relays do this, or when the system refuses.
    pub fn cut_arbiter(&self, host: Host) -> Result<()> {
        self.namespaces()?.cut_arbiter(host)
    }

    /// `host` reaches the arbiter again.
    ///
    /// # Errors
    /// As [`cut_arbiter`](Self::cut_arbiter).
    pub fn heal_arbiter(&self, host: Host) -> Result<()> {
        self.namespaces()?.heal_arbiter(host)
    }

    /// Makes a network for the guest on each host, with a tap of the guest ([`GUEST_TAP`]); returns the harness's
    /// ends.
    ///
    /// # Errors
    /// On loopback, or when the system refuses.
    pub fn make_networks(&self) -> Result<[File; 2]> {
        let namespaces = self.namespaces()?;
        let make = |host| taps::make_network(namespaces.name(host));
        Ok([make(Host::A)?, make(Host::B)?])
    }

    /// Makes the guest's tap on `host` again.
    ///
    /// # Errors
    /// On loopback, or when the system refuses.
    pub fn make_tap(&self, host: Host) -> Result<()> {
        taps::make_guest_tap(self.namespaces()?.name(host))
    }

    /// Deletes the guest's tap on `host`.
    ///
    /// # Errors
    /// On loopback, or when the system refuses.
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

    /// Cuts the replication link silently: what these hosts send is lost, or arrives after the heal.
    ///
    /// # Errors
    /// When the system refuses.
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

    /// Limits the replication link to this many bytes per second in each direction; none: no limit.
    ///
    /// # Errors
    /// On namespaces: there is no relay between them.
    pub fn throttle_replication(&self, bytes_per_second: Option<u64>) -> Result<()> {
        for relay in self.relays()? {
            relay.set_rate(bytes_per_second);
        }
        Ok(())
    }

    /// Flips one bit after `after` more bytes from this host, and another after each `every` bytes.
    ///
    /// # Errors
    /// On namespaces: there is no relay between them.
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
    /// On namespaces: there is no relay between them.
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
    /// When the system refuses.
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

    /// A cut is silent, and a heal delivers what was sent in the meantime, in both directions.
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

    /// Holds what one host sends and passes what the other host sends.
    #[test]
    fn the_relay_cuts_one_way() {
        for (sender, other) in [(Host::A, Host::B), (Host::B, Host::A)] {
            let network = TestNetwork::loopback("a test".to_owned()).unwrap();
            let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
            let a = TcpStream::connect(network.dial_address(Host::B)).unwrap();
            let (b, _) = listener.accept().unwrap();
            let mut ends = [a, b];
            // This byte shows that the relay has connected both ends.
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

    /// A transfer takes at least its time; the upper bound depends on the machine, so it is not tested.
    #[test]
    fn the_relay_is_no_faster_than_told() {
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let listener = TcpListener::bind(network.listen_address(Host::B)).unwrap();
        let mut near = TcpStream::connect(network.dial_address(Host::B)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut bytes = [0; 40_000];
        network.throttle_replication(Some(200_000)).unwrap();
        // The relay may already be reading this byte at the former speed.
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
