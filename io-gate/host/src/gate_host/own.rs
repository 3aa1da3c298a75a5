//! The gate's own disks: their operations go to the driver of the list, and come back to be
//! performed.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use io_gate::Port;
use io_gate::host::{InputOp, Ledger, OwnOp, Performable, Record, Request};

use super::GateHost;
use crate::guest_memory::copy_out;

impl GateHost {
    /// Gives the requests of a session to the driver, which records them. Their bytes are copied
    /// before the guest runs on (R1). Returns what may be performed at once.
    pub(super) fn record_own(&self, ledger: &mut MutexGuard<'_, Ledger>) -> Vec<Performable> {
        let Some(driver) = self.far_side.own().driver() else { return Vec::new() };
        let requests = ledger.take_own(|record| {
            let Request::Own(OwnOp { op, .. }) = &record.request else { return None };
            copy_out(&self.far_side.memory, op.payload()?.guest_ranges()?).ok()
        });
        driver.staged(ledger, requests)
    }

    /// Has the lanes perform requests for own disks, each lane in this order. The driver of the
    /// list calls it: overlapping requests are not handed over at the same time (R1).
    ///
    /// A lane's queue holds at most the requests in flight, whose weight is bounded (P9). A request
    /// whose disk is not attached stays in flight.
    pub fn perform_own(&self, requests: Vec<Performable>) {
        let mut lanes: BTreeMap<(u16, Port), Vec<Performable>> = BTreeMap::new();
        for request in requests {
            if let Some(place) = place(request.record()) {
                lanes.entry(place).or_default().push(request);
            }
        }
        for ((slot, port), requests) in lanes {
            match self.backend(slot, port) {
                Some(backend) => backend.lane().push(requests),
                None => log::error!("slot {slot}, port {}: its own disk is not attached", port.0),
            }
        }
    }

    /// R2: the standby has room again, so slots with own disks continue.
    pub fn resume_own(&self) {
        self.far_side.take_up(self.far_side.ledger());
    }

    /// Why nothing is performed on own disks any more (R5).
    #[must_use]
    pub fn own_failure(&self) -> Option<&str> {
        self.far_side.own().failure()
    }
}

fn place(record: &Record) -> Option<(u16, Port)> {
    let port = match &record.request {
        Request::Own(OwnOp { op, .. }) => op.port(),
        Request::Input(InputOp::BlockRead { port, .. }) => Some(*port),
        Request::Effect(_) | Request::Input(InputOp::Entropy { .. }) => None,
    };
    port.map(|port| (record.origin.slot(), port))
}
