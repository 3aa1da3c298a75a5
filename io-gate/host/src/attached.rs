//! A backend that is attached to a port: its lane, and the half that other threads use. They hold
//! its locks only briefly, and never across a system call that can block (P9).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use vmm_sys_util::epoll::EventSet;

use crate::backend::output::Output;
use crate::backend::{Backend, Handled, ShareError, console, disk, net};
use crate::disk_use::disk_fence::DiskFence;
use crate::far_side::FarSide;
use crate::inputs::{Inputs, Role, Token};
use crate::lane::{Lane, LaneStart};

/// The half of a backend that other threads use.
enum Input {
    /// A disk has no input, but the driver's features matter to it.
    Disk(disk::Input),
    Net(net::Input),
    Console(console::Input),
}

/// An attached backend, and the thread that performs its effects.
pub(crate) struct Attached {
    /// Dropped first (P5). The thread that drops this then drops the rest of the backend, for
    /// instance the name of its socket. The lane could not: it may not touch files.
    lane: Lane,
    name: String,
    input: Input,
}

impl Attached {
    pub(crate) fn new(
        backend: Backend,
        far_side: &Arc<FarSide>,
        inputs: &Inputs,
        token: Token,
        start: &LaneStart,
    ) -> io::Result<Self> {
        let (kind, output, input) = match backend {
            Backend::Disk(disk) => {
                let input = disk.input();
                ("disk", Output::Disk(disk), Input::Disk(input))
            }
            Backend::OwnDisk(disk) => {
                let input = disk.input();
                ("disk", Output::OwnDisk(disk), Input::Disk(input))
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
        let lane = Lane::start(name.clone(), far_side.clone(), output, start.clone())?;
        Ok(Self { name, input, lane })
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Whether this is a disk that may be written.
    pub(crate) fn may_write(&self) -> bool {
        matches!(&self.input, Input::Disk(disk) if !disk.is_read_only())
    }

    /// Whether this is the disk's fence record.
    pub(crate) fn has_record(&self, record: &Arc<DiskFence>) -> bool {
        let Input::Disk(disk) = &self.input else { return false };
        disk.fence().is_some_and(|own| Arc::ptr_eq(own, record))
    }

    /// The name for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Handles an event of one of the backend's descriptors. Returns whether input waits. The lane
    /// sends and connects.
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

    /// Sets the features that the driver accepted. Does not block: the lane applies them later.
    /// Until then the backend returns no input, so no frame arrives in the previous driver's
    /// format.
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
        // If the former side of a pair is stopped, its lock still exists. The record beside the
        // disk keeps that side from writing.
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
