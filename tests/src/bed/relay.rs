//! A TCP relay that can go silent, or slow: what both sides send stays where it is until the link heals, or has the time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// A relay in front of one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    target: SocketAddr,
    gate: Arc<Gate>,
}

/// Bytes that are under way in one direction, at most.
const BUFFER: usize = 256 * 1024;

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    /// How long everything takes on its way, in milliseconds.
    delay: AtomicU64,
    changed: Condvar,
    /// Bytes a second, each way; 0: as many as come.
    rate: AtomicU64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum GateState {
    #[default]
    Open,
    Cut,
    Closed,
}

impl Gate {
    fn set(&self, state: GateState) {
        *self.state.lock().expect("no holder panics") = state;
        self.changed.notify_all();
    }

    /// How many bytes to take at once, at most, and how long each of them takes.
    fn pace(&self) -> (usize, Duration) {
        match self.rate.load(Ordering::Relaxed) {
            0 => (BUFFER, Duration::ZERO),
            // So little that a slow link is smooth: fifty portions a second.
            rate => (
                usize::try_from(rate / 50).unwrap_or(BUFFER).clamp(1, BUFFER),
                Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX),
            ),
        }
    }

    /// Waits while the link is cut; `false` when the relay is gone.
    fn passes(&self) -> bool {
        let state = self.state.lock().expect("no holder panics");
        let state = self
            .changed
            .wait_while(state, |state| *state == GateState::Cut)
            .expect("no holder panics");
        *state == GateState::Open
    }
}

impl Relay {
    pub(super) fn new() -> Result<Self> {
        // The port is free again for the standby that will listen there.
        Self::to(bind()?.local_addr()?)
    }

    /// A relay in front of `target`.
    ///
    /// # Errors
    /// When it cannot listen on the loopback interface.
    pub fn to(target: SocketAddr) -> Result<Self> {
        let listener = bind()?;
        let address = listener.local_addr()?;
        let gate = Arc::new(Gate::default());
        let shared = Arc::clone(&gate);
        thread::spawn(move || accept(&listener, target, &shared));
        Ok(Self { address, target, gate })
    }

    /// Where it listens.
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

    /// Cuts the link silently, or heals it.
    pub fn set_cut(&self, cut: bool) {
        self.gate.set(if cut { GateState::Cut } else { GateState::Open });
    }

    /// From now on everything takes so long on its way.
    pub fn set_delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.gate.delay.store(millis, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.gate.set(GateState::Closed);
        // Wakes the acceptor, which then sees that the relay is closed.
        let _ = TcpStream::connect(self.address);
    }
}

fn bind() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")
}

fn accept(listener: &TcpListener, target: SocketAddr, gate: &Arc<Gate>) {
    while let Ok((near, _)) = listener.accept() {
        if !gate.passes() {
            return;
        }
        // No standby there: the caller's connection ends, as if refused.
        let Ok(far) = TcpStream::connect(target) else { continue };
        for socket in [&near, &far] {
            let _ = socket.set_nodelay(true);
        }
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
        for (from, to) in [(near, far), (far_too, near_too)] {
            let gate = Arc::clone(gate);
            thread::spawn(move || pump(from, to, &gate));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (portion, each) = gate.pace();
        let Ok(count) = from.read(&mut buffer[..portion]) else { break };
        // A slow network is what this is; nothing waits for it to be over.
        let delay = Duration::from_millis(gate.delay.load(Ordering::SeqCst));
        thread::sleep(delay + each * u32::try_from(count).unwrap_or(u32::MAX));
        if !gate.passes() || count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
