//! Own disks, as the far side sees them: the driver that records their operations, and whether one
//! has failed.

use std::io;
use std::sync::{Arc, OnceLock};

use io_gate::host::{Ledger, OwnPorts, OwnRequest, Performable, Record};

/// The driver of the list, the marks and the order of a machine's own disks. This crate does not
/// know the protocol, so the driver is behind this trait.
pub trait ListDriver: Send + Sync {
    /// A session has ended that made these requests. Each operation is recorded at its place now,
    /// on this ledger. Returns what may be performed at once; the driver gives the rest to
    /// [`GateHost::perform_own`](crate::GateHost::perform_own) later.
    ///
    /// The ledger's lock is held, by the device thread or a vCPU's: the call must neither wait nor
    /// call the gate.
    fn staged(&self, ledger: &mut Ledger, requests: Vec<OwnRequest>) -> Vec<Performable>;

    /// An operation, or a read, is performed. `durable`: its completion tells the guest that it is
    /// durable, since it is a flush, or a write of a driver that cannot flush (R4). Called by the
    /// lane before the guest learns of it. No lock is held.
    fn performed(&self, record: &Record, durable: bool);

    /// The first failure (R5). Nothing is performed on any own disk any more, and what was not is
    /// not completed: it stays in flight for the standby. Called once, by a lane.
    fn failed(&self, reason: &str);

    /// R2: whether the standby has too much to do, so that nothing more is to be staged on an own
    /// disk. When it has room again, the driver calls
    /// [`GateHost::resume_own`](crate::GateHost::resume_own).
    fn is_full(&self) -> bool;
}

/// The own disks of a gate.
pub(crate) struct Own {
    ports: OwnPorts,
    driver: Option<Arc<dyn ListDriver>>,
    failure: OnceLock<String>,
}

impl Own {
    /// # Errors
    /// When there are own disks and no driver to record their operations.
    pub(crate) fn new(ports: OwnPorts, driver: Option<Arc<dyn ListDriver>>) -> io::Result<Self> {
        if !ports.is_empty() && driver.is_none() {
            let what = "expected a driver of the list for the machine's own disks, found none";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Self { ports, driver, failure: OnceLock::new() })
    }

    pub(crate) fn ports(&self) -> &OwnPorts {
        &self.ports
    }

    pub(crate) fn driver(&self) -> Option<&dyn ListDriver> {
        self.driver.as_deref()
    }

    /// Whether a slot with an own disk waits for the standby (R2).
    pub(crate) fn is_full(&self, slot: u16) -> bool {
        self.ports.has_slot(slot) && self.driver().is_some_and(ListDriver::is_full)
    }

    /// Why no operation begins any more (R5).
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn performed(&self, record: &Record, durable: bool) {
        if let Some(driver) = self.driver() {
            driver.performed(record, durable);
        }
    }

    pub(crate) fn failed(&self, reason: String) {
        // The first one counts.
        if self.failure.set(reason.clone()).is_ok() {
            log::error!("own disks: {reason}: nothing more is performed on them");
            if let Some(driver) = self.driver() {
                driver.failed(&reason);
            }
        }
    }
}
