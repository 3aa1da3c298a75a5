//! What is behind the gate: disks, networks, consoles; and what no gate can be before: shared guest memory. All opening happens here.
//!
//! A backend that is attached falls into two halves. [`Output`] is owned by its lane, which may be held up in it for ever;
//! [`Input`] is what other threads look at: its locks are held for a moment, never across a system call that can block (P9).

mod claim;
pub mod console;
mod direct;
pub mod disk;
pub(crate) mod disk_error;
pub mod disk_fence;
pub mod disk_lock;
pub mod image_format;
mod interest;
pub mod memory;
pub mod net;
pub(crate) mod output;
mod sector;
pub mod terminal;
pub(crate) mod work;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use vmm_sys_util::epoll::EventSet;

use crate::core::Core;
use crate::inputs::{Inputs, Role, Token};
use crate::lane::{Lane, LaneStart};
use output::Output;

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

/// Why a disk cannot be had by another host as well.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There is none behind this port.
    #[error("expected a disk, found none")]
    NoDisk,
    /// Another process has it locked.
    #[error(transparent)]
    Lock(#[from] disk::DiskError),
    /// What the guest has written cannot be brought to the storage.
    #[error("what was written before cannot be brought to the storage: {0}")]
    Sync(io::Error),
}

/// What other threads take input from, and see.
enum Input {
    /// There is none; what the driver says matters.
    Disk(disk::Input),
    Net(net::Input),
    Console(console::Input),
}

/// What an event of one of a backend's descriptors asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handled {
    /// The lane has to attend to it.
    pub(crate) attend: bool,
    /// There is input.
    pub(crate) input: bool,
}

/// A backend in its place, and the thread that performs its effects.
pub(crate) struct Attached {
    /// First, so that it ends first (P5): what is left of a backend closes, and its socket's name goes, in the thread that takes
    /// it apart, and not in the lane, which may touch no files.
    lane: Lane,
    name: String,
    input: Input,
}

impl Attached {
    pub(crate) fn new(
        backend: Backend,
        core: &Arc<Core>,
        inputs: &Inputs,
        token: Token,
        start: &LaneStart,
    ) -> io::Result<Self> {
        let (kind, output, input) = match backend {
            Backend::Disk(disk) => {
                let input = disk.input();
                ("disk", Output::Disk(disk), Input::Disk(input))
            }
            Backend::Net(net) => {
                let (output, input) = net.attach(inputs, token)?;
                ("net", Output::Net(output), Input::Net(input))
            }
            Backend::Console(console) => {
                let (output, input) = console.attach(inputs, token)?;
                ("console", Output::Console(output), Input::Console(input))
            }
        };
        let name = format!("{kind}{}", token.slot);
        let lane = Lane::start(name.clone(), core.clone(), output, start.clone())?;
        Ok(Self { name, input, lane })
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Whether it is a disk that is written to.
    pub(crate) fn may_write(&self) -> bool {
        matches!(&self.input, Input::Disk(disk) if !disk.is_read_only())
    }

    /// Whether this record says who may write to it.
    pub(crate) fn has_record(&self, record: &Arc<disk_fence::DiskFence>) -> bool {
        let Input::Disk(disk) = &self.input else { return false };
        disk.fence().is_some_and(|own| Arc::ptr_eq(own, record))
    }

    /// For people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An event of one of the backend's descriptors; whether input waits. What has to be written
    /// or connected is the lane's to do.
    pub(crate) fn handle(&self, role: Role, events: EventSet) -> bool {
        let handled = match &self.input {
            Input::Disk(_) => Handled::default(),
            Input::Net(net) => net.handle(role, events),
            Input::Console(console) => console.handle(role, events),
        };
        if handled.attend {
            self.lane.attend();
        }
        handled.input
    }

    /// Takes one piece of input.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        let (received, attend) = match &self.input {
            Input::Disk(_) => (false, false),
            Input::Net(net) => net.receive(into),
            Input::Console(console) => (console.receive(into), false),
        };
        if attend {
            self.lane.attend();
        }
        received
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        match &self.input {
            Input::Disk(_) => {}
            Input::Net(net) => net.want_input(wanted),
            Input::Console(console) => console.want_input(wanted),
        }
    }

    /// The driver's features. The backend takes them over in its lane, and gives no input until it has: none of the former
    /// driver's kind comes any more, and nobody waits.
    pub(crate) fn negotiated(&self, features: u64) {
        let attend = match &self.input {
            Input::Disk(disk) => {
                disk.negotiated(features);
                false
            }
            Input::Net(net) => net.negotiated(features),
            Input::Console(_) => false,
        };
        if attend {
            self.lane.attend();
        }
    }

    /// See [`GateHost::share_disk`](crate::GateHost::share_disk).
    pub(crate) fn share_disk(&self, durably: bool, has_terms: bool) -> Result<(), ShareError> {
        let Input::Disk(disk) = &self.input else { return Err(ShareError::NoDisk) };
        // Where the former side of a pair is stopped, its lock is still there: the record beside the disk keeps it away.
        disk.share(disk::Side::Successor, has_terms)?;
        if !durably {
            return Ok(());
        }
        let (answer, answered) = sync_channel(1);
        self.lane.write_through(answer);
        let ended = |_| io::Error::other("its lane has ended");
        answered.recv().map_err(ended).flatten().map_err(ShareError::Sync)
    }

    pub(crate) fn dropped_frames(&self) -> u64 {
        match &self.input {
            Input::Net(net) => net.dropped(),
            _ => 0,
        }
    }
}
