//! The host side of one gate: one ledger, the backends behind it, and the hand-over to their lanes.
//!
//! Each file does one task of the gate. The locks are in this one, and are taken in this order: a
//! slot (by its owner), `performer`, the ledger, one backend.

mod backends;
mod commit;
mod device_thread;
mod disks;
mod end;
mod hand_over;
mod own;
mod power;
mod reset;
mod right;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use io_gate::Port;
use io_gate::host::Ledger;
use vmm_sys_util::eventfd::EventFd;

use crate::attached::Attached;
use crate::backend::output::Output;
use crate::descriptors::event;
use crate::far_side::FarSide;
use crate::fence::Fence;
use crate::guest_memory::GuestMemory;
use crate::inputs::Inputs;
use crate::lane::{Lane, LaneStart};
use crate::latency::Latencies;
use crate::list_driver::ListDriver;
use crate::observer::Observer;
use crate::poisoned::POISONED;

pub use commit::Sealed;

/// How long a reset waits. A device's reset waits this long for released effects, and then as long
/// again for a system call that reads the driver's former memory. The machine's reset waits this
/// long for queued power events, since a fence without an answer may delay them.
pub const RESET_PATIENCE: Duration = Duration::from_secs(1);

/// Callbacks of a gate. By default they do nothing.
pub struct GateOptions {
    /// Each thread that performs effects calls it first.
    pub lane_start: LaneStart,
    /// Called for each step of an effect.
    pub observer: Option<Arc<dyn Observer>>,
    /// Records the operations on own disks. A gate with own disks needs it.
    pub list: Option<Arc<dyn ListDriver>>,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self { lane_start: Arc::new(|| {}), observer: None, list: None }
    }
}

impl std::fmt::Debug for GateOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let observed = self.observer.is_some();
        f.debug_struct("GateOptions").field("observed", &observed).finish_non_exhaustive()
    }
}

/// The gate's host side. The device thread, the vCPU threads and the link thread share it.
pub struct GateHost {
    far_side: Arc<FarSide>,
    /// Held while effects are released and queued for their lanes, so that both have one order.
    /// Never held while waiting for a lane (P7): the thread that receives acknowledgements takes
    /// it, and that thread must keep receiving the standby's signs of life.
    performer: Mutex<()>,
    latencies: Mutex<Latencies>,
    held_event: EventFd,
    held_signalled: AtomicBool,
    inputs: Inputs,
    /// Performs power events, which have no backend.
    power: Lane,
    lane_start: LaneStart,
    /// The features that each slot's driver has accepted, for backends that are attached later.
    negotiated: Mutex<BTreeMap<u16, u64>>,
    attached: RwLock<BTreeMap<(u16, Port), Arc<Attached>>>,
}

impl GateHost {
    /// Makes a closed gate without backends.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn new(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
        options: GateOptions,
    ) -> io::Result<Arc<Self>> {
        let GateOptions { lane_start, observer, list } = options;
        let far_side = Arc::new(FarSide::new(ledger, memory, fence, observer, list)?);
        let power =
            Lane::start("power".to_owned(), far_side.clone(), Output::Power, lane_start.clone())?;
        Ok(Arc::new(Self {
            far_side,
            power,
            lane_start,
            performer: Mutex::new(()),
            latencies: Mutex::new(Latencies::new()),
            held_event: event()?,
            held_signalled: AtomicBool::new(false),
            inputs: Inputs::new()?,
            negotiated: Mutex::new(BTreeMap::new()),
            attached: RwLock::new(BTreeMap::new()),
        }))
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.far_side.memory
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.far_side.ledger()
    }

    fn performer(&self) -> MutexGuard<'_, ()> {
        self.performer.lock().expect(POISONED)
    }
}

impl std::fmt::Debug for GateHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateHost").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
