//! A TCP relay that can go silent: what both sides send stays where it is until the link heals.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use anyhow::{Context, Result};

/// A relay in front of one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    target: SocketAddr,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
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
        let bind =
            || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1");
        let listener = bind()?;
        let address = listener.local_addr()?;
        // The port is free again for the standby that will listen there.
        let target = bind()?.local_addr()?;
        let gate = Arc::new(Gate::default());
        let shared = Arc::clone(&gate);
        thread::spawn(move || accept(&listener, target, &shared));
        Ok(Self { address, target, gate })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn target(&self) -> SocketAddr {
        self.target
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.gate.set(if cut { GateState::Cut } else { GateState::Open });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.gate.set(GateState::Closed);
        // Wakes the acceptor, which then sees that the relay is closed.
        let _ = TcpStream::connect(self.address);
    }
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
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if !gate.passes() || count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
