//! What is behind the gate: disks, networks, consoles; and what no gate can be before: shared guest memory. All opening happens here.

pub mod console;
mod direct;
pub mod disk;
pub mod disk_fence;
pub mod image_format;
pub mod memory;
pub mod net;
pub mod terminal;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use io_gate::Outcome;
use io_gate::host::{EffectOp, Performable, Request};
use vmm_sys_util::epoll::EventSet;

use crate::core::{Core, POISONED};
use crate::inputs::{Inputs, Role, Token};
use crate::lane::{Job, Lane, LaneStart};
use crate::perform::{self, bytes_of};

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

/// What a lane works on. Input is taken from it by the device thread, which only reads.
pub(crate) enum Sink {
    Disk(disk::Disk),
    Net(Mutex<net::Net>),
    Console(Mutex<console::Console>),
    /// The machine itself: power events.
    Power,
}

/// A backend in its place, and the thread that performs its effects.
pub(crate) struct Attached {
    sink: Arc<Sink>,
    lane: Lane,
}

impl Sink {
    /// Performs one request; none when it turns out not to be permitted any more. Lane.
    pub(crate) fn perform(&self, core: &Core, request: &Performable) -> Option<(Outcome, Vec<u8>)> {
        match self {
            Self::Disk(disk) => perform::on_disk(core, disk, request),
            _ => Some(match &request.record().request {
                Request::Effect(op) => (self.send(core, request, op), Vec::new()),
                Request::Input(_) => (Outcome::Unsupported, Vec::new()),
            }),
        }
    }

    fn send(&self, core: &Core, request: &Performable, op: &EffectOp) -> Outcome {
        let memory = &core.memory;
        match (self, op) {
            (Self::Net(net), EffectOp::NetTx { frame, .. }) => {
                let Ok(frame) = bytes_of(memory, request, frame) else { return Outcome::Failed };
                lock(net).send(frame)
            }
            (Self::Console(console), EffectOp::ConsoleTx { bytes, .. }) => {
                let Ok(bytes) = bytes_of(memory, request, bytes) else { return Outcome::Failed };
                lock(console).write(&bytes)
            }
            (Self::Power, EffectOp::Power(event)) => {
                core.power(*event);
                Outcome::Success(0)
            }
            _ => Outcome::Unsupported,
        }
    }

    /// Whether one request may take as long as a disk does.
    pub(crate) fn is_slow(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    pub(crate) fn negotiated(&self, features: u64) {
        if let Self::Net(net) = self {
            lock(net).negotiated(features);
        }
    }

    /// Sends what is queued, connects again. Lane.
    pub(crate) fn attend(&self) {
        match self {
            Self::Net(net) => lock(net).attend(),
            Self::Console(console) => lock(console).attend(),
            Self::Disk(_) | Self::Power => {}
        }
    }

    pub(crate) fn announce(&self) {
        if let Self::Net(net) = self {
            lock(net).announce();
        }
    }

    /// Gives a console time to take its output. Lane.
    pub(crate) fn finish(&self) {
        if let Self::Console(console) = self {
            lock(console).drain();
        }
    }
}

impl Attached {
    pub(crate) fn new(
        backend: Backend,
        core: &Arc<Core>,
        inputs: &Inputs,
        token: Token,
        start: &LaneStart,
    ) -> io::Result<Self> {
        let (name, sink) = match backend {
            Backend::Disk(disk) => ("disk", Sink::Disk(disk)),
            Backend::Net(mut net) => {
                net.attach(inputs, token)?;
                ("net", Sink::Net(Mutex::new(net)))
            }
            Backend::Console(mut console) => {
                console.attach(inputs, token)?;
                ("console", Sink::Console(Mutex::new(console)))
            }
        };
        let sink = Arc::new(sink);
        let name = format!("{name}{}", token.slot);
        let lane = Lane::start(name, core.clone(), sink.clone(), start.clone())?;
        Ok(Self { sink, lane })
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// An event of one of the backend's descriptors; whether input waits. What has to be written
    /// or connected is the lane's to do.
    pub(crate) fn handle(&self, role: Role, events: EventSet) -> bool {
        let (attend, input) = match &*self.sink {
            Sink::Net(net) => lock(net).handle(role, events),
            Sink::Console(console) => lock(console).handle(role, events),
            Sink::Disk(_) | Sink::Power => (false, false),
        };
        if attend {
            self.lane.push([Job::Attend]);
        }
        input
    }

    /// Takes one piece of input.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        match &*self.sink {
            Sink::Net(net) => {
                let mut net = lock(net);
                let received = net.receive(into);
                let attend = !received && net.is_broken();
                drop(net);
                if attend {
                    self.lane.push([Job::Attend]);
                }
                received
            }
            Sink::Console(console) => lock(console).receive(into),
            Sink::Disk(_) | Sink::Power => false,
        }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        match &*self.sink {
            Sink::Net(net) => lock(net).want_input(wanted),
            Sink::Console(console) => lock(console).want_input(wanted),
            Sink::Disk(_) | Sink::Power => {}
        }
    }

    /// The driver's features; returns when the backend has taken them, so that no input of the
    /// former ones comes any more.
    pub(crate) fn negotiated(&self, features: u64) {
        if let Sink::Disk(disk) = &*self.sink {
            disk.negotiated(features);
        }
        if matches!(&*self.sink, Sink::Net(net) if lock(net).has_offloads()) {
            self.lane.push([Job::Negotiated(features)]);
            self.lane.drain();
        }
    }

    pub(crate) fn announce(&self) {
        self.lane.push([Job::Announce]);
    }

    pub(crate) fn dropped_frames(&self) -> u64 {
        match &*self.sink {
            Sink::Net(net) => lock(net).dropped(),
            _ => 0,
        }
    }
}

fn lock<T>(backend: &Mutex<T>) -> MutexGuard<'_, T> {
    backend.lock().expect(POISONED)
}
