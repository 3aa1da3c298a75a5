//! The backends of a gate: attaching them, and their input for the device thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_gate::Port;

use super::GateHost;
use crate::attached::Attached;
use crate::backend::Backend;
use crate::inputs::{Role, Token};
use crate::lane::LaneJob;
use crate::poisoned::POISONED;

fn taken(slot: u16, port: Port) -> io::Error {
    let what = format!("slot {slot}, port {}: expected no backend yet, found one", port.0);
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

impl GateHost {
    /// Attaches a backend to a port of a slot. Requests to a port without a backend end as
    /// unsupported.
    ///
    /// # Errors
    /// When the port already has a backend, or the process is out of threads or descriptors.
    pub fn attach(&self, slot: u16, port: Port, backend: Backend) -> io::Result<()> {
        self.attach_all(vec![(slot, port, backend)])
    }

    /// Attaches all of the backends or none, so that the caller may try again after a failure.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_all(&self, backends: Vec<(u16, Port, Backend)>) -> io::Result<()> {
        let mut made = BTreeMap::new();
        let mut records = Vec::new();
        for (slot, port, backend) in backends {
            if self.backend(slot, port).is_some() || made.contains_key(&(slot, port)) {
                return Err(taken(slot, port));
            }
            self.check_kind(slot, port, &backend)?;
            if let Backend::Disk(disk) = &backend {
                records.extend(disk.fence().cloned());
            }
            // Connect to peers before taking the lock: a peer may be slow, and the device thread
            // and the vCPU threads take that lock.
            let token = Token { slot, port, role: Role::Data };
            let backend =
                Attached::new(backend, &self.far_side, &self.inputs, token, &self.lane_start)?;
            made.insert((slot, port), Arc::new(backend));
        }
        let mut attached = self.attached.write().expect(POISONED);
        if let Some((slot, port)) = made.keys().find(|place| attached.contains_key(place)) {
            return Err(taken(*slot, *port));
        }
        // P2: add the records before anything is performed on their disks.
        records.into_iter().for_each(|record| self.far_side.add_record(record));
        attached.extend(made.iter().map(|(place, backend)| (*place, backend.clone())));
        drop(attached);
        let negotiated = self.negotiated.lock().expect(POISONED);
        for ((slot, _), backend) in &made {
            if let Some(features) = negotiated.get(slot) {
                backend.negotiated(*features);
            }
        }
        Ok(())
    }

    /// An own disk's port takes an image that is open by a right of this gate (R7), and no other
    /// port does.
    fn check_kind(&self, slot: u16, port: Port, backend: &Backend) -> io::Result<()> {
        let own = self.far_side.own().ports().contains(slot, port);
        let found = match backend {
            Backend::OwnDisk(disk) if own && disk.gate() == self.ledger().gate() => return Ok(()),
            Backend::OwnDisk(_) if own => "one that another machine has opened",
            Backend::OwnDisk(_) => "one in a place that is not declared as an own disk's",
            Backend::Disk(_) if own => "a shared disk",
            _ => return Ok(()),
        };
        let what = format!(
            "slot {slot}, port {}: expected an own disk only where one is declared, opened by this machine; found {found}",
            port.0
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, what))
    }

    /// Passes the features that the driver has accepted to the slot's backends, also to those that
    /// are attached later.
    pub(crate) fn negotiated(&self, slot: u16, features: u64) {
        self.negotiated.lock().expect(POISONED).insert(slot, features);
        self.of_slot(slot).iter().for_each(|backend| backend.negotiated(features));
    }

    /// Takes input that waits at a port. Returns whether there was any.
    pub(crate) fn receive(&self, slot: u16, port: Port, into: &mut Vec<u8>) -> bool {
        self.backend(slot, port).is_some_and(|backend| backend.receive(into))
    }

    /// Sets whether input of a port is wanted now.
    pub(crate) fn want_input(&self, slot: u16, port: Port, wanted: bool) {
        if let Some(backend) = self.backend(slot, port) {
            backend.want_input(wanted);
        }
    }

    /// A descriptor that is readable when a backend has work for the device thread: input, room for
    /// output, or a connection to retry.
    #[must_use]
    pub fn inputs_fd(&self) -> RawFd {
        self.inputs.fd()
    }

    /// Returns the ports that have input. If a backend has work of its own (sending the rest of its
    /// output, reconnecting), its lane gets that work.
    #[must_use]
    pub fn ready_inputs(&self) -> Vec<(u16, Port)> {
        let mut ready = Vec::new();
        for (token, events) in self.inputs.ready() {
            let Some(backend) = self.backend(token.slot, token.port) else { continue };
            if backend.handle(token.role, events) {
                ready.push((token.slot, token.port));
            }
        }
        ready
    }

    /// Announces the slot's MAC address to the network: one RARP broadcast, as other hypervisors
    /// send after a migration. The caller repeats it. The broadcast contains no guest data, so it
    /// waits for no acknowledgement. The fence is asked nevertheless (P2).
    pub fn announce(&self, slot: u16) {
        let _performer = self.performer();
        self.of_slot(slot).iter().for_each(|backend| backend.lane().announce());
    }

    /// The jobs of the lanes that have work: each lane is in a system call, or waits for the
    /// [fence](Self::waits_for_fence).
    #[must_use]
    pub fn lane_jobs(&self) -> Vec<LaneJob> {
        self.every_attached().iter().filter_map(|backend| backend.lane().busy_with()).collect()
    }

    /// Number of frames dropped because a network backend could not take them.
    #[must_use]
    pub fn dropped_frames(&self) -> u64 {
        self.every_attached().iter().map(|backend| backend.dropped_frames()).sum()
    }

    pub(super) fn backend(&self, slot: u16, port: Port) -> Option<Arc<Attached>> {
        self.attached.read().expect(POISONED).get(&(slot, port)).cloned()
    }

    pub(super) fn of_slot(&self, slot: u16) -> Vec<Arc<Attached>> {
        let attached = self.attached.read().expect(POISONED);
        let ports = (slot, Port(0))..=(slot, Port(u8::MAX));
        attached.range(ports).map(|(_, backend)| backend.clone()).collect()
    }

    pub(super) fn every_attached(&self) -> Vec<Arc<Attached>> {
        self.attached.read().expect(POISONED).values().cloned().collect()
    }
}
