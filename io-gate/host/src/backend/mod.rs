//! What is behind the gate: disks, networks, consoles. All opening happens here.

pub mod console;
pub mod disk;
pub mod net;
pub mod terminal;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use io_gate::Outcome;
use io_gate::host::{EffectOp, Performable};
use vmm_sys_util::epoll::EventSet;

use crate::core::{Core, POISONED};
use crate::guest_memory::GuestMemory;
use crate::inputs::{Inputs, Role, Token};
use crate::lane::Lane;
use crate::perform::bytes_of;

/// A backend, ready to be put behind a port with [`GateHost::attach`](crate::GateHost::attach).
#[derive(Debug)]
pub enum Backend {
    /// A disk.
    Disk(disk::Disk),
    /// A network.
    Net(net::Net),
    /// A console.
    Console(console::Console),
}

/// A backend in its place.
pub(crate) enum Attached {
    Disk(Lane),
    Net(Mutex<net::Net>),
    Console(Mutex<console::Console>),
}

impl Attached {
    pub(crate) fn new(
        backend: Backend,
        core: &Arc<Core>,
        inputs: &Inputs,
        token: Token,
    ) -> io::Result<Self> {
        Ok(match backend {
            Backend::Disk(disk) => {
                Self::Disk(Lane::start(format!("disk{}", token.slot), core.clone(), disk)?)
            }
            Backend::Net(mut net) => {
                net.attach(inputs, token)?;
                Self::Net(Mutex::new(net))
            }
            Backend::Console(mut console) => {
                console.attach(inputs, token)?;
                Self::Console(Mutex::new(console))
            }
        })
    }

    /// Sends what an effect carries. Disks have their lanes instead.
    pub(crate) fn send(
        &self,
        memory: &GuestMemory,
        request: &Performable,
        op: &EffectOp,
    ) -> Outcome {
        match (self, op) {
            (Self::Net(net), EffectOp::NetTx { frame, .. }) => {
                let Ok(frame) = bytes_of(memory, request, frame) else { return Outcome::Failed };
                lock(net).send(frame)
            }
            (Self::Console(console), EffectOp::ConsoleTx { bytes, .. }) => {
                let Ok(bytes) = bytes_of(memory, request, bytes) else { return Outcome::Failed };
                lock(console).write(&bytes)
            }
            _ => Outcome::Unsupported,
        }
    }

    /// Reacts to an event of one of the backend's descriptors; whether input waits.
    pub(crate) fn handle(&self, role: Role, events: EventSet) -> bool {
        match self {
            Self::Disk(_) => false,
            Self::Net(net) => lock(net).handle(role, events),
            Self::Console(console) => lock(console).handle(role, events),
        }
    }

    /// Takes one piece of input.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        match self {
            Self::Disk(_) => false,
            Self::Net(net) => lock(net).receive(into),
            Self::Console(console) => lock(console).receive(into),
        }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        match self {
            Self::Disk(_) => {}
            Self::Net(net) => lock(net).want_input(wanted),
            Self::Console(console) => lock(console).want_input(wanted),
        }
    }

    pub(crate) fn negotiated(&self, features: u64) {
        if let Self::Net(net) = self {
            lock(net).negotiated(features);
        }
    }

    pub(crate) fn announce(&self) {
        if let Self::Net(net) = self {
            lock(net).announce();
        }
    }

    pub(crate) fn dropped_frames(&self) -> u64 {
        match self {
            Self::Net(net) => lock(net).dropped(),
            Self::Disk(_) | Self::Console(_) => 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Self::Disk(lane) => lane.is_idle(),
            Self::Net(_) | Self::Console(_) => true,
        }
    }

    /// Waits until no request is being performed.
    pub(crate) fn drain_requests(&self) {
        if let Self::Disk(lane) = self {
            lane.drain();
        }
    }

    /// As [`drain_requests`](Self::drain_requests), and gives consoles time to take their output.
    pub(crate) fn drain(&self) {
        self.drain_requests();
        if let Self::Console(console) = self {
            lock(console).drain();
        }
    }
}

fn lock<T>(backend: &Mutex<T>) -> MutexGuard<'_, T> {
    backend.lock().expect(POISONED)
}
