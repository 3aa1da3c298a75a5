//! A TCP relay. It can go silent in either direction, delay bytes, limit their rate, or flip bits.
//! Held bytes stay in the relay until the link heals.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ports::free_address;

/// A relay in front of one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    target: SocketAddr,
    gate: Arc<Gate>,
}

/// Maximum number of bytes held in one direction.
const BUFFER: usize = 256 * 1024;

/// A direction through the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the connecting side to the listening side.
    Forth,
    /// From the listening side to the connecting side.
    Back,
}

#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    /// Delay of each portion of bytes, in milliseconds.
    delay: AtomicU64,
    changed: Condvar,
    /// Limit in each direction, in bytes per second; 0 means no limit.
    rate: AtomicU64,
    /// One entry for each direction.
    flips: Mutex<[Option<Flip>; 2]>,
}

/// A bit to flip. Its position in the stream does not depend on the sizes of the reads.
#[derive(Debug, Clone, Copy)]
struct Flip {
    /// Number of bytes before it.
    left: usize,
    /// Mask of the bit in its byte.
    mask: u8,
    /// With `Some`, another bit is flipped after each further `every` bytes.
    every: Option<usize>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct GateState {
    /// One entry for each direction.
    cut: [bool; 2],
    closed: bool,
}

impl Gate {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            delay: AtomicU64::new(0),
            changed: Condvar::new(),
            rate: AtomicU64::new(0),
            flips: Mutex::default(),
        }
    }

    fn set(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.state.lock().expect("no holder panics"));
        self.changed.notify_all();
    }

    /// Flips a bit if it is among these bytes.
    fn tamper(&self, direction: Direction, bytes: &mut [u8]) {
        let flip = &mut self.flips.lock().expect("no holder panics")[direction as usize];
        let Some(Flip { left, mask, every }) = *flip else { return };
        *flip = match bytes.get_mut(left) {
            Some(byte) => {
                *byte ^= mask;
                every.map(|gap| Flip {
                    left: (left + gap).saturating_sub(bytes.len()),
                    mask,
                    every,
                })
            }
            None => Some(Flip { left: left - bytes.len(), mask, every }),
        };
    }

    /// The maximum number of bytes for one read, and the time that each byte takes.
    fn pace(&self) -> (usize, Duration) {
        match self.rate.load(Ordering::Relaxed) {
            0 => (BUFFER, Duration::ZERO),
            // Read small portions, fifty per second, so that a slow link is smooth.
            rate => (
                usize::try_from(rate / 50).unwrap_or(BUFFER).clamp(1, BUFFER),
                Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX),
            ),
        }
    }

    /// Waits while the link is cut in one of these directions. Returns `false` when the relay is
    /// closed.
    fn passes(&self, directions: &[Direction]) -> bool {
        let cut = |state: &mut GateState| {
            !state.closed && directions.iter().any(|direction| state.cut[*direction as usize])
        };
        let state = self.state.lock().expect("no holder panics");
        !self.changed.wait_while(state, cut).expect("no holder panics").closed
    }
}

impl Relay {
    pub(super) fn new() -> Result<Self> {
        // The address is free now; the standbys of this host will listen at it.
        Self::to(free_address()?)
    }

    /// Creates a relay in front of `target`.
    ///
    /// # Errors
    /// The relay cannot listen on the loopback interface.
    pub fn to(target: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let gate = Arc::new(Gate::new());
        let shared = Arc::clone(&gate);
        thread::spawn(move || accept(&listener, target, &shared));
        Ok(Self { address, target, gate })
    }

    /// The address at which the relay listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn target(&self) -> SocketAddr {
        self.target
    }

    pub(super) fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.gate.rate.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// Cuts the link silently in both directions, or heals it.
    pub fn set_cut(&self, cut: bool) {
        self.gate.set(|state| state.cut = [cut; 2]);
    }

    /// Cuts the link silently in one direction.
    pub fn cut(&self, direction: Direction) {
        self.gate.set(|state| state.cut[direction as usize] = true);
    }

    /// Flips one bit after `after` more bytes in this direction; with `every`, flips another after
    /// each further `every` bytes.
    pub fn flip(&self, direction: Direction, after: u32, every: Option<usize>) {
        let flip = Flip { left: after as usize, mask: 1 << (after % 8), every };
        self.gate.flips.lock().expect("no holder panics")[direction as usize] = Some(flip);
    }

    /// Stops flipping bits.
    pub fn stop_flipping(&self) {
        *self.gate.flips.lock().expect("no holder panics") = [None; 2];
    }

    /// Sets the delay of all bytes from now on.
    pub fn set_delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.gate.delay.store(millis, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.gate.set(|state| state.closed = true);
        // Connect to wake the acceptor, which then sees that the relay is closed.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, gate: &Arc<Gate>) {
    while let Ok((near, _)) = listener.accept() {
        if !gate.passes(&[Direction::Forth, Direction::Back]) {
            return;
        }
        // No standby listens: close the caller's connection.
        let Ok(far) = TcpStream::connect(target) else { continue };
        for socket in [&near, &far] {
            let _ = socket.set_nodelay(true);
        }
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
        for (from, to, direction) in
            [(near, far, Direction::Forth), (far_too, near_too, Direction::Back)]
        {
            let gate = Arc::clone(gate);
            thread::spawn(move || pump(from, to, direction, &gate));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, direction: Direction, gate: &Gate) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (portion, each) = gate.pace();
        let Ok(count) = from.read(&mut buffer[..portion]) else { break };
        // The sleep is the simulated network delay; it waits for no event.
        let delay = Duration::from_millis(gate.delay.load(Ordering::SeqCst));
        thread::sleep(delay + each * u32::try_from(count).unwrap_or(u32::MAX));
        gate.tamper(direction, &mut buffer[..count]);
        if !gate.passes(&[direction]) || count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flipped bit does not depend on the sizes of the reads, so a seed can be repeated.
    #[test]
    fn the_flipped_bit_is_the_same_in_every_portion() {
        for portion in 1..=9 {
            let relay = Relay::to(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))).expect("a relay");
            relay.flip(Direction::Forth, 5, None);
            let mut bytes = [0; 9];
            bytes.chunks_mut(portion).for_each(|part| relay.gate.tamper(Direction::Forth, part));
            assert_eq!(bytes, [0, 0, 0, 0, 0, 1 << 5, 0, 0, 0], "by {portion}");
        }
    }
    #[test]
    fn flips_go_on_until_they_are_stopped() {
        for portion in [1, 4, 5, 20] {
            let relay = Relay::to(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))).expect("a relay");
            relay.flip(Direction::Back, 2, Some(5));
            let mut bytes = [0; 20];
            bytes.chunks_mut(portion).for_each(|part| relay.gate.tamper(Direction::Back, part));
            assert_eq!(bytes[2], 1 << 2, "by {portion}");
            assert!(portion > 5 || bytes[7] == 1 << 2, "by {portion}");
            relay.stop_flipping();
            bytes = [0; 20];
            relay.gate.tamper(Direction::Back, &mut bytes);
            assert_eq!(bytes, [0; 20]);
        }
    }
}
