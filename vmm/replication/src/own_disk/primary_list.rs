//! The driver of a primary's own disks: it keeps the list, the marks and the order (R1 to R3, R10,
//! R12 of `docs/own-disks.md`) between the gate and its lanes. It does no I/O: a thread of the
//! caller makes the marks durable, and the gate's lanes perform.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use ft_core::disks::{
    Area, Extent, Lane, Limits, List, Marks, Operation, Payload, Reach, Report, Sealed, Seq, Ticket,
};
use io_gate::Port;
use io_gate::host::{
    EffectId, EffectOp, InputOp, Ledger, ListAuthority, Listable, OwnOp, OwnRequest, Performable,
    Record, Recorded, Request,
};
use io_gate_host::ListDriver;

const SECTOR: u64 = 512;

/// An own disk of the machine.
#[derive(Debug)]
pub struct DiskPlace {
    /// The slot of its device.
    pub slot: u16,
    /// Its port.
    pub port: Port,
    /// The marks of its image, as its sidecar has them.
    pub marks: Marks,
}

/// What the driver orders of others. Called with no lock of the driver held.
pub trait Orders: Send + Sync {
    /// Has the gate perform these (`GateHost::perform_own`).
    fn perform(&self, requests: Vec<Performable>);

    /// A mark has to be made durable: the thread of the marks looks at
    /// [`next_marks`](PrimaryList::next_marks).
    fn mark(&self);

    /// The standby has room again (`GateHost::resume_own`).
    fn resume(&self);

    /// An image of this side has failed (R5): the protocol core gets `OwnFailed`.
    fn failed(&self, reason: &str);
}

/// See the module. The device thread, the vCPUs' threads, the lanes and the thread of the marks use
/// it.
pub struct PrimaryList {
    /// Guards the bookkeeping only. The gate's threads take it under the ledger's lock; nothing is
    /// called under it that can block.
    state: Mutex<State>,
    orders: Box<dyn Orders>,
}

struct State {
    authority: ListAuthority,
    list: List,
    /// Its length is bounded by the requests in flight.
    lane: Lane<Option<Item>>,
    /// The disks, by their slots and ports, with their places in the list.
    places: BTreeMap<(u16, Port), u16>,
    marks: Vec<Marks>,
    /// What the lanes perform, and what it changes.
    running: BTreeMap<EffectId, (Ticket, Option<Extent>)>,
}

/// What waits in the lane.
enum Item {
    Operation(Recorded),
    Read(Performable),
}

impl PrimaryList {
    /// The driver of these disks. The list continues after `last`, and records nothing.
    #[must_use]
    pub fn new(
        authority: ListAuthority,
        limits: Limits,
        last: Seq,
        disks: Vec<DiskPlace>,
        orders: Box<dyn Orders>,
    ) -> Self {
        let place = |(at, disk): (usize, &DiskPlace)| ((disk.slot, disk.port), at as u16);
        let places = disks.iter().enumerate().map(place).collect();
        let state = State {
            authority,
            list: List::new(limits, last),
            lane: Lane::of_primary(last),
            places,
            marks: disks.into_iter().map(|disk| disk.marks).collect(),
            running: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), orders }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a thread has panicked with this lock")
    }

    /// Recording begins, if the lane is empty (R12). Returns whether it has.
    #[must_use]
    pub fn begin(&self) -> bool {
        let mut state = self.state();
        let empty = state.lane.is_empty();
        if empty {
            state.list.begin();
            state.authority.begin();
            state.marks.iter_mut().for_each(Marks::peer_connects);
        }
        empty
    }

    /// Recording ends: the standby is gone. What waited for it continues.
    pub fn end(&self) {
        let mut state = self.state();
        state.list.end();
        state.authority.end();
        state.marks.iter_mut().for_each(Marks::peer_gone);
        drop(state);
        self.orders.resume();
    }

    /// Takes the list of the epoch that is sealed. The guest is paused.
    #[must_use]
    pub fn seal(&self) -> Sealed {
        self.state().list.seal()
    }

    /// What the standby reports (R2).
    pub fn report(&self, report: &Report) {
        let mut state = self.state();
        let was_full = state.is_full();
        state.list.report(report);
        let resumes = was_full && !state.is_full();
        drop(state);
        if resumes {
            self.orders.resume();
        }
    }

    /// The mark area to make durable now, and the disk that it is of.
    /// [`marks_written`](Self::marks_written) when it is.
    #[must_use]
    pub fn next_marks(&self) -> Option<(u16, Area)> {
        let mut state = self.state();
        let marks = state.marks.iter_mut().enumerate();
        marks.into_iter().find_map(|(at, marks)| Some((at as u16, marks.next_write()?.clone())))
    }

    /// The mark area of a disk is durable: writes that waited for it may begin (R3).
    pub fn marks_written(&self, disk: u16) {
        let mut state = self.state();
        if let Some(marks) = state.marks.get_mut(usize::from(disk)) {
            marks.written();
        }
        self.go_on(state);
    }

    /// A mark area cannot be written (R5).
    pub fn marks_failed(&self, reason: &str) {
        self.failed(reason);
    }

    /// Has performed what may begin now, and orders marks that are wanted.
    fn go_on(&self, mut state: MutexGuard<'_, State>) {
        let ready = state.startable();
        drop(state);
        if !ready.is_empty() {
            self.orders.perform(ready);
        }
        self.orders.mark();
    }
}

impl ListDriver for PrimaryList {
    fn staged(&self, ledger: &mut Ledger, requests: Vec<OwnRequest>) -> Vec<Performable> {
        let mut state = self.state();
        requests.into_iter().for_each(|request| state.add(ledger, request));
        let ready = state.startable();
        let waits = state.lane.len() > state.running.len();
        drop(state);
        if waits {
            self.orders.mark();
        }
        ready
    }

    fn performed(&self, record: &Record, durable: bool) {
        let mut state = self.state();
        state.performed(record, durable);
        self.go_on(state);
    }

    fn failed(&self, reason: &str) {
        self.state().lane.sync_failed();
        self.orders.failed(reason);
    }

    fn is_full(&self) -> bool {
        self.state().is_full()
    }
}

impl State {
    fn is_full(&self) -> bool {
        !self.list.admits(&Operation::Flush)
    }

    fn add(&mut self, ledger: &mut Ledger, request: OwnRequest) {
        match request {
            OwnRequest::Operation(operation) => self.record(ledger, operation),
            OwnRequest::Read(read) => {
                let reach = self.extent(read.record()).map_or(Reach::Flush, Reach::Reads);
                self.lane.push(None, reach, Some(Item::Read(read)));
            }
        }
    }

    /// R1: the operation gets its place now, in the order of the requests.
    fn record(&mut self, ledger: &mut Ledger, operation: Listable) {
        let extent = self.extent(operation.record());
        let entry = entry(&operation, extent);
        let reach = extent.map_or(Reach::Flush, Reach::Changes);
        let seq = self.list.record(entry);
        let place = if self.list.is_recording() {
            self.authority.listed(&operation, seq)
        } else {
            self.authority.not_recording(&operation, seq)
        };
        if let Some(extent) = extent {
            self.marks[usize::from(extent.disk)].begin(&extent, seq);
        }
        let recorded = ledger.record_own(operation, place);
        self.lane.push(Some(seq), reach, Some(Item::Operation(recorded)));
    }

    /// The bytes that a request reads or changes; `None` for a flush.
    fn extent(&self, record: &Record) -> Option<Extent> {
        let (port, sector, len) = match &record.request {
            Request::Own(OwnOp { op, .. }) => match op {
                EffectOp::BlockWrite { port, sector, data } => (*port, *sector, data.len() as u64),
                EffectOp::BlockDiscard { port, sector, sectors }
                | EffectOp::BlockWriteZeroes { port, sector, sectors, .. } => {
                    (*port, *sector, sectors.saturating_mul(SECTOR))
                }
                EffectOp::BlockFlush { .. }
                | EffectOp::NetTx { .. }
                | EffectOp::ConsoleTx { .. }
                | EffectOp::Power(_) => return None,
            },
            Request::Input(InputOp::BlockRead { port, sector, into }) => {
                (*port, *sector, into.len() as u64)
            }
            Request::Input(InputOp::Entropy { .. }) | Request::Effect(_) => return None,
        };
        let disk = *self.places.get(&(record.origin.slot(), port))?;
        Some(Extent { disk, start: sector.saturating_mul(SECTOR), len })
    }

    /// What may begin now: nothing before it overlaps, and its mark is durable (R1, R3).
    fn startable(&mut self) -> Vec<Performable> {
        let tickets: Vec<Ticket> = self.lane.startable().collect();
        tickets.into_iter().filter_map(|ticket| self.start(ticket)).collect()
    }

    fn start(&mut self, ticket: Ticket) -> Option<Performable> {
        let item = self.lane.get(ticket)?.as_ref()?;
        let changed = match item {
            Item::Operation(recorded) => self.extent(recorded.record()),
            Item::Read(_) => None,
        };
        let covered = |extent: &Extent| self.marks[usize::from(extent.disk)].covers(extent);
        if !changed.as_ref().is_none_or(covered) {
            return None;
        }
        let request = match self.lane.start(ticket)?.take()? {
            Item::Operation(recorded) => {
                let flush = recorded.mark_of_flush();
                let marked = flush.unwrap_or_else(|| self.authority.marked(&recorded));
                recorded.performable(marked)
            }
            Item::Read(read) => read,
        };
        self.running.insert(request.record().id, (ticket, changed));
        Some(request)
    }

    fn performed(&mut self, record: &Record, durable: bool) {
        let Some((ticket, changed)) = self.running.remove(&record.id) else { return };
        if let Some(extent) = changed {
            self.marks[usize::from(extent.disk)].performed(&extent);
        }
        if let Some(seq) = self.lane.seq(ticket).filter(|_| durable) {
            // R4. The guest sees it a moment later: outputs may wait a moment longer than they
            // must.
            self.list.flush_completed(seq);
        }
        self.lane.done(ticket);
    }
}

/// The entry of the list, with the bytes of the staging.
fn entry(operation: &Listable, extent: Option<Extent>) -> Operation {
    match (extent, operation.bytes()) {
        (Some(extent), Some(bytes)) => {
            Operation::Write { extent, payload: Payload::Inline(bytes.to_vec()) }
        }
        (Some(extent), None) => Operation::Zero { extent },
        (None, _) => Operation::Flush,
    }
}
