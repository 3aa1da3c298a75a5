//! The host side of one gate: one ledger, the backends behind it, and the hand-over to their lanes.
//!
//! Locks are taken in this order: a slot (by its owner), `performer`, the ledger, one backend.
//! Effects of one backend are performed in the order of their release (P1): releasing and queueing
//! for a lane both happen under `performer`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use io_gate::host::{
    Alone, Committed, Counts, EffectId, EffectOp, Epoch, InputOp, Ledger, Performable, Record,
    Request, Weight,
};
use io_gate::{Outcome, Port, PowerEvent};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::disk::DiskError;
use crate::backend::output::Output;
use crate::backend::{Attached, Backend, ShareError};
use crate::completion::{Completion, Kind, Performed};
use crate::descriptors::event;
use crate::far_side::{FarSide, signal};
use crate::fence::Fence;
use crate::guest_memory::{GuestMemory, copy_out};
use crate::inputs::{Inputs, Role, Token};
use crate::lane::{Lane, LaneStart};
use crate::latency::{Latencies, LatencySummary};
use crate::observer::{Noted, Observer};
use crate::perform;
use crate::poisoned::POISONED;

/// How long the end of a machine waits for a fence without an answer, and for backends that do not
/// answer.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How long a lane that waits only for the fence may take to see that the gate is closed.
const CLOSING: Duration = Duration::from_millis(500);

/// How long a reset waits. A device's reset waits for released effects, and then as long again for
/// a system call that reads the driver's former memory. The machine's reset waits for power events
/// that a fence without an answer delays.
pub const RESET_PATIENCE: Duration = Duration::from_secs(1);

fn taken(slot: u16, port: Port) -> io::Error {
    let what = format!("slot {slot}, port {}: expected no backend yet, found one", port.0);
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

/// A backend, its place, and its part of a batch.
type Share = ((u16, Port), Arc<Attached>, Vec<Performable>);

/// The result of [`GateHost::seal`], for the checkpoint.
#[derive(Debug)]
pub struct Sealed {
    /// The epoch that has ended.
    pub epoch: Epoch,
    /// All requests that are not settled, oldest first.
    pub in_flight: Vec<Record>,
    /// The id of the next request.
    pub next_id: EffectId,
    /// Number of effects that the sealed epoch holds.
    pub staged: usize,
}

/// The gate's host side. The device thread, the vCPU threads and the link thread share it.
pub struct GateHost {
    far_side: Arc<FarSide>,
    /// Orders releasing and queueing for lanes. Never held while waiting for a lane (P7): the
    /// thread that receives an acknowledgement takes it, and that thread must keep hearing the
    /// standby.
    performer: Mutex<()>,
    latencies: Mutex<Latencies>,
    held_event: EventFd,
    held_signalled: AtomicBool,
    inputs: Inputs,
    /// Performs power events, which have no backend.
    power: Lane,
    lane_start: LaneStart,
    /// The features that each slot's driver has accepted, for backends attached later.
    negotiated: Mutex<BTreeMap<u16, u64>>,
    attached: RwLock<BTreeMap<(u16, Port), Arc<Attached>>>,
}

impl GateHost {
    /// A holding gate without backends.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn new(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
    ) -> io::Result<Arc<Self>> {
        Self::with_lane_start(ledger, memory, fence, Arc::new(|| {}))
    }

    /// As [`new`](Self::new). Each thread that performs effects first calls `lane_start`.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn with_lane_start(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
        lane_start: LaneStart,
    ) -> io::Result<Arc<Self>> {
        Self::with_observer(ledger, memory, fence, lane_start, None)
    }

    /// As [`with_lane_start`](Self::with_lane_start). `observer` is called for each step of an
    /// effect.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn with_observer(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
        lane_start: LaneStart,
        observer: Option<Arc<dyn Observer>>,
    ) -> io::Result<Arc<Self>> {
        let far_side = Arc::new(FarSide::new(ledger, memory, fence, observer)?);
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
            if let Backend::Disk(disk) = &backend {
                records.extend(disk.fence().cloned());
            }
            // Connect to peers before taking the lock: a peer may be slow, and the device thread
            // and the vCPU threads take the lock.
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

    /// Prepares a disk that another host is to have too (P3). Its lock becomes that of a pair's
    /// active side. With `durably`, each later write is in the storage when it completes, and all
    /// earlier writes are when this returns. Waits for the disk's lane.
    ///
    /// # Errors
    /// When the disk cannot be shared. The guest's use of it then continues unchanged.
    pub fn share_disk(&self, slot: u16, port: Port, durably: bool) -> Result<(), ShareError> {
        let backend = self.backend(slot, port).ok_or(ShareError::NoDisk)?;
        backend.share_disk(durably, self.has_term())
    }

    /// Claims the disks for this machine in the records beside them.
    ///
    /// # Errors
    /// When a record cannot be written, or names another writer.
    pub fn claim_disks(&self) -> Result<(), DiskError> {
        self.far_side.records().iter().try_for_each(|record| self.far_side.claim(record))
    }

    /// As [`claim_disks`](Self::claim_disks), and rewrites each record, so that no earlier copy of
    /// it has the same content.
    ///
    /// # Errors
    /// As [`claim_disks`](Self::claim_disks).
    pub fn renew_records(&self) -> Result<(), DiskError> {
        self.far_side.records().iter().try_for_each(|record| self.far_side.renew(record))
    }

    /// Ends the machine in good order in this term: nothing more leaves, and the records free the
    /// disks. Returns whether all disks are freed. Call it after [`drain`](Self::drain).
    ///
    /// P2: a disk whose lane is in an unfinished system call may still be written when its storage
    /// answers. Its record continues to name this machine as the holder.
    #[must_use]
    pub fn free_disks(&self) -> bool {
        // Close first: a lane that is found idle then begins no write afterwards.
        self.far_side.close();
        let until = Instant::now() + CLOSING;
        let busy = |disk: &Arc<Attached>| disk.may_write() && !disk.lane().drain(until);
        let busy: Vec<_> = self.every_attached().into_iter().filter(busy).collect();
        for record in self.far_side.records() {
            if busy.iter().any(|disk| disk.has_record(&record)) {
                continue;
            }
            if let Err(error) = self.far_side.free(&record) {
                log::warn!("the next start on this disk needs --seize: {error}");
            }
        }
        for disk in &busy {
            log::error!(
                "{}: expected its storage to answer before the end of the machine, found a request in progress, which \
                 may still be carried out: the disk is not released, and the next start needs --seize; before it, \
                 make sure that the process on this host has ended",
                disk.name()
            );
        }
        busy.is_empty()
    }

    /// Ends the current epoch. Called on the device thread with the guest paused.
    ///
    /// # Panics
    /// When the gate's counts do not add up (P5).
    #[must_use]
    pub fn seal(&self) -> Sealed {
        let mut ledger = self.far_side.ledger();
        let staged = ledger.held_in(ledger.epoch());
        let epoch = ledger.seal();
        self.held_signalled.store(false, Ordering::Release);
        Sealed { epoch, in_flight: ledger.in_flight(), next_id: ledger.next_id(), staged }
    }

    /// Spends a proof: the lanes perform the covered effects in order.
    pub fn release(&self, proof: Committed) {
        let performer = self.performer();
        let batch = self.far_side.ledger().release(proof);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Spends a proof: performs everything held, replays first, and lets later effects pass at once
    /// until [`hold`](Self::hold).
    pub fn run_alone(&self, proof: Alone) {
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        if let Some(observer) = self.far_side.observer() {
            observer.opened(proof.term());
        }
        let mut batch = ledger.run_alone(proof);
        batch.extend(ledger.take_ready());
        self.tell_staged(&batch);
        drop(ledger);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Holds everything staged from now on.
    pub fn hold(&self) {
        let performer = self.performer();
        // Effects staged while the gate was open leave first: they have no copy, and must not wait
        // for a standby that does not know them.
        let mut ledger = self.far_side.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        if let Some(observer) = self.far_side.observer()
            && !ledger.holds()
        {
            observer.held(ledger.next_id());
        }
        ledger.hold();
        drop(ledger);
        self.hand_over_all(&performer, batch);
        self.held_signalled.store(false, Ordering::Release);
    }

    /// Whether effects wait for an acknowledgement before they leave.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.far_side.ledger().holds()
    }

    /// Number of effects that wait to be released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.far_side.ledger().held()
    }

    /// Number of effects of the current epoch that wait to be released.
    #[must_use]
    pub fn held_in_epoch(&self) -> usize {
        let ledger = self.far_side.ledger();
        ledger.held_in(ledger.epoch())
    }

    /// Counts of tokens and effects so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.far_side.ledger().counts()
    }

    /// The epoch of what is staged now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.far_side.ledger().epoch()
    }

    /// Adopts the requests in flight of a checkpoint. [`run_alone`](Self::run_alone) performs them
    /// again.
    ///
    /// # Panics
    /// When this gate is already in use.
    pub fn adopt(&self, epoch: Epoch, next_id: EffectId, in_flight: Vec<Record>) {
        if let Some(observer) = self.far_side.observer() {
            let effects: Vec<Noted> = in_flight.iter().filter_map(Noted::of).collect();
            observer.adopted(&effects, next_id);
        }
        self.far_side.ledger().adopt(epoch, next_id, in_flight);
    }

    /// Records that the right to perform is lost (P2): nothing is performed any more.
    pub fn set_fenced_off(&self) {
        self.far_side.fence_off();
    }

    /// Whether the right to perform has been lost.
    #[must_use]
    pub fn is_fenced_off(&self) -> bool {
        self.far_side.is_fenced_off()
    }

    /// Whether terms decide who may perform. If so, a disk that other hosts can reach must have a
    /// record of the term beside it ([`DiskFence`](crate::backend::disk_fence::DiskFence)).
    #[must_use]
    pub fn has_term(&self) -> bool {
        self.far_side.has_term()
    }

    /// Whether released effects wait because the fence gives no answer.
    #[must_use]
    pub fn waits_for_fence(&self) -> bool {
        self.far_side.waits_for_fence()
    }

    /// Logs, once each time, where effects wait for an answer that does not come. A thread that
    /// performs no effects calls it regularly.
    pub fn tell_of_late_answers(&self) {
        self.far_side.asks().tell();
    }

    /// Since when a lane has waited for an answer of the fence or of a disk's record: the longest
    /// wait.
    #[must_use]
    pub fn asks_since(&self) -> Option<Instant> {
        self.far_side.asks().oldest()
    }

    /// The lane that has been at one job for the longest time: when the job began, and the lane's
    /// name. The lane is in a system call, or waits for the [fence](Self::waits_for_fence).
    #[must_use]
    pub fn longest_job(&self) -> Option<(Instant, String)> {
        let attached = self.every_attached();
        let jobs = attached.iter().filter_map(|backend| backend.lane().busy_since());
        jobs.min_by_key(|(begun, _)| *begun).map(|(begun, name)| (begun, name.to_owned()))
    }

    /// Whether a write may be on its way to a disk now, in an unfinished system call. P2: it may
    /// arrive whenever the storage answers.
    #[must_use]
    pub fn may_be_writing(&self) -> bool {
        let writes = |at: &Arc<Attached>| {
            at.may_write() && at.lane().may_be_letting_out(self.far_side.asks())
        };
        self.every_attached().iter().any(writes)
    }

    /// Signalled when the right to perform is lost.
    #[must_use]
    pub fn fenced_event(&self) -> &EventFd {
        self.far_side.fenced_event()
    }

    /// Whether everything released has been performed.
    #[must_use]
    pub fn lanes_idle(&self) -> bool {
        self.power.is_idle() && self.every_attached().iter().all(|backend| backend.lane().is_idle())
    }

    /// Waits until everything released has been performed and consoles have taken their output: for
    /// a clean shutdown. If the fence or a backend does not answer, the wait ends after
    /// [`LAST_PATIENCE`], and what has not been performed by then never is.
    pub fn drain(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        self.far_side.give_up_after(LAST_PATIENCE);
        if self.far_side.is_fenced_off() {
            return;
        }
        let attached = self.every_attached();
        attached.iter().for_each(|backend| backend.lane().finish(until));
        for (lane, name) in
            attached.iter().map(|at| (at.lane(), at.name())).chain([(&self.power, "power")])
        {
            if !lane.drain(until) {
                log::warn!(
                    "{name}: has not accepted its output within {LAST_PATIENCE:?}: the output is lost, as at a power \
                     failure"
                );
            }
        }
    }

    /// Signalled when an effect is held, at most once between two calls of [`seal`](Self::seal).
    #[must_use]
    pub fn held_event(&self) -> &EventFd {
        &self.held_event
    }

    /// Signalled when completions wait for the device thread.
    #[must_use]
    pub fn completions_event(&self) -> &EventFd {
        self.far_side.completions_event()
    }

    /// The event descriptors by which this crate wakes other threads: all that a thread which runs
    /// device code must write to.
    #[must_use]
    pub fn wakes(&self) -> Vec<RawFd> {
        let own = [
            self.held_event.as_raw_fd(),
            self.completions_event().as_raw_fd(),
            self.power_event().as_raw_fd(),
            self.fenced_event().as_raw_fd(),
        ];
        own.to_vec()
    }

    /// Takes the waiting completions and resets their event. The caller must give each one to the
    /// slot that it names before the next [`seal`](Self::seal).
    #[must_use]
    pub fn take_completions(&self) -> Vec<Completion> {
        self.far_side.take_completions()
    }

    /// Drops a completion whose slot does not exist (a checkpoint of another machine).
    pub fn discard(&self, completion: Completion) {
        if let Kind::Performed(done) = completion.0 {
            self.settle(done);
        }
    }

    /// A descriptor that is readable when a backend has work for the device thread: input, room for
    /// output, or a connection to retry.
    #[must_use]
    pub fn inputs_fd(&self) -> RawFd {
        self.inputs.fd()
    }

    /// The ports that have input. A backend's own work (sending the rest of its output,
    /// reconnecting) is passed to its lane.
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
    /// send after a migration. The caller repeats it. The broadcast has no guest data, so it waits
    /// for no acknowledgement, but the fence is asked (P2).
    pub fn announce(&self, slot: u16) {
        let _performer = self.performer();
        self.of_slot(slot).iter().for_each(|backend| backend.lane().announce());
    }

    /// Signalled when a power event has been performed.
    #[must_use]
    pub fn power_event(&self) -> &EventFd {
        self.far_side.power_event()
    }

    /// Takes the power events that have been performed, and resets their event.
    #[must_use]
    pub fn take_power_events(&self) -> Vec<PowerEvent> {
        self.far_side.take_power_events()
    }

    /// Takes the first power event that has been performed.
    #[must_use]
    pub fn next_power_event(&self) -> Option<PowerEvent> {
        self.far_side.next_power_event()
    }

    /// Drops all other resets: the machine has been reset, and resets that were held or queued
    /// before are not performed.
    pub fn forget_resets(&self) {
        // Cancel held resets before waiting for the lane: nothing released during that wait is one
        // of them.
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        let cancelled = ledger.cancel_resets();
        self.tell_cancelled(&cancelled);
        self.far_side.take_up(ledger);
        drop(performer);
        if !self.power.drain(Instant::now() + RESET_PATIENCE) {
            self.give_up_resets();
        }
        self.far_side.forget_resets();
    }

    /// The power lane waits for an unreachable arbiter: gives up the resets in its queue.
    fn give_up_resets(&self) {
        let _performer = self.performer();
        let given_up = self.power.give_up_resets();
        let mut ledger = self.far_side.ledger();
        let abandoned = ledger.abandon_resets();
        self.tell_cancelled(&abandoned);
        given_up.into_iter().for_each(|request| ledger.settle(request));
        self.far_side.take_up(ledger);
    }

    /// How long effects have waited at the gate, by class.
    #[must_use]
    pub fn latencies(&self) -> Vec<LatencySummary> {
        self.latencies.lock().expect(POISONED).summaries()
    }

    /// Counts waits from now on.
    pub fn reset_latencies(&self) {
        self.latencies.lock().expect(POISONED).reset();
    }

    /// Number of frames dropped because a network backend could not take them.
    #[must_use]
    pub fn dropped_frames(&self) -> u64 {
        self.every_attached().iter().map(|backend| backend.dropped_frames()).sum()
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.far_side.memory
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.far_side.ledger()
    }

    /// Ends the staging done under one hold of the ledger's lock. Held payloads are copied, so that
    /// the guest cannot change them any more (P1). What may leave at once is performed. Completions
    /// of the `own` slot are returned, since the caller owns that slot.
    pub(crate) fn end_staging(
        &self,
        mut ledger: MutexGuard<'_, Ledger>,
        own: u16,
    ) -> Vec<Performed> {
        if ledger.holds() && ledger.held() > 0 {
            self.copy_held(&mut ledger);
        }
        let ready = ledger.has_ready();
        drop(ledger);
        if ready { self.flush(own) } else { Vec::new() }
    }

    fn copy_held(&self, ledger: &mut Ledger) {
        let mut staged = Vec::new();
        let observer = self.far_side.observer();
        let mut noted = Vec::new();
        ledger.copy_held(|record| {
            staged.push(record.id);
            if observer.is_some() {
                noted.extend(Noted::of(record));
            }
            let Request::Effect(op) = &record.request else { return None };
            let ranges = op.payload()?.guest_ranges()?;
            copy_out(&self.far_side.memory, ranges).ok()
        });
        if staged.is_empty() {
            return;
        }
        if let Some(observer) = observer {
            // `copy_held` visits the newest first.
            noted.reverse();
            observer.staged(&noted);
        }
        let now = Instant::now();
        let mut latencies = self.latencies.lock().expect(POISONED);
        staged.iter().rev().for_each(|id| latencies.staged(*id, now));
        drop(latencies);
        if !self.held_signalled.swap(true, Ordering::AcqRel) {
            signal(&self.held_event);
        }
    }

    fn flush(&self, own: u16) -> Vec<Performed> {
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        drop(ledger);
        let mut own_done = Vec::new();
        for done in self.hand_over(&performer, batch) {
            if done.request.record().origin.slot() == own {
                own_done.push(done);
            } else {
                self.far_side.post(Completion(Kind::Performed(done)));
            }
        }
        own_done
    }

    fn hand_over_all(&self, performer: &MutexGuard<'_, ()>, batch: Vec<Performable>) {
        for done in self.hand_over(performer, batch) {
            self.far_side.post(Completion(Kind::Performed(done)));
        }
    }

    /// Hands requests to their lanes, each lane its part of the batch in one piece (P1: the order
    /// of release is the order of performing). Requests without a lane are done here, and returned
    /// if a chain waits for them.
    fn hand_over(
        &self,
        _: &MutexGuard<'_, ()>,
        batch: Vec<Performable>,
    ) -> impl Iterator<Item = Performed> {
        let mut done = Vec::new();
        let mut power = Vec::new();
        let mut lanes: Vec<Share> = Vec::new();
        for request in batch {
            let record = request.record();
            let port = match &record.request {
                Request::Effect(EffectOp::Power(_)) => {
                    power.push(request);
                    continue;
                }
                Request::Input(InputOp::Entropy { into }) => {
                    let (outcome, data) = perform::entropy(&self.far_side.memory, into);
                    done.push(Performed { request, outcome, data });
                    continue;
                }
                Request::Input(InputOp::BlockRead { port, .. }) => Some(*port),
                Request::Effect(op) => op.port(),
            };
            let place = port.map(|port| (record.origin.slot(), port));
            // Most requests of a batch are for one backend: look it up once.
            if let Some((.., jobs)) = lanes.iter_mut().find(|(of, ..)| Some(*of) == place) {
                jobs.push(request);
                continue;
            }
            match place.and_then(|place| Some((place, self.backend(place.0, place.1)?))) {
                Some((place, backend)) => lanes.push((place, backend, vec![request])),
                None => {
                    if let (Some(observer), Some(effect)) =
                        (self.far_side.observer(), Noted::of(record))
                    {
                        observer.returned(effect);
                    }
                    let outcome = Outcome::Unsupported;
                    done.push(Performed { request, outcome, data: Vec::new() });
                }
            }
        }
        lanes.into_iter().for_each(|(_, backend, jobs)| backend.lane().push(jobs));
        self.power.push(power);
        let far_side = self.far_side.clone();
        done.into_iter().filter_map(move |done| far_side.settle_detached(done))
    }

    /// Reports effects that pass an open gate to the observer. The caller holds the ledger's lock,
    /// so that effects staged later are reported later.
    fn tell_staged(&self, batch: &[Performable]) {
        let Some(observer) = self.far_side.observer() else { return };
        let own = batch.iter().filter(|request| !request.is_replay());
        let effects: Vec<Noted> = own.filter_map(|request| Noted::of(request.record())).collect();
        observer.staged(&effects);
    }

    fn tell_cancelled(&self, effects: &[EffectId]) {
        if let Some(observer) = self.far_side.observer() {
            observer.cancelled(effects);
        }
    }

    fn note_released(&self, batch: &[Performable]) {
        let now = Instant::now();
        let mut latencies = self.latencies.lock().expect(POISONED);
        batch.iter().for_each(|request| latencies.released(request.record(), now));
    }

    pub(crate) fn settle(&self, done: Performed) {
        self.far_side.settle([done.request]);
    }

    /// Settles requests under one hold of the ledger's lock.
    pub(crate) fn settle_all(&self, done: Vec<Performable>) {
        if !done.is_empty() {
            self.far_side.settle(done);
        }
    }

    /// Ends the chains of a slot whose driver has reset its device. Afterwards none of its chains
    /// is in flight and nothing writes their memory; if this returns `true`, nothing reads it
    /// either.
    ///
    /// Released effects are performed first, within [`RESET_PATIENCE`]; reads are not waited for.
    /// Effects not begun by then are dropped, which to the driver looks like a slower device. A
    /// system call that reads the driver's memory is waited for as long again (P9).
    #[must_use]
    pub(crate) fn forget_chains(&self, slot: u16) -> bool {
        let lanes = self.of_slot(slot);
        self.forget(slot, &lanes, Lane::give_up_reads, Ledger::cancel_chains_of);
        // All released effects are queued in lanes by now, and the caller stages no new ones. No
        // lock is held.
        let until = Instant::now() + RESET_PATIENCE;
        lanes.iter().for_each(|backend| backend.lane().wait_for_effects(until));
        self.forget(slot, &lanes, Lane::give_up_chains, Ledger::abandon_chains_of);
        self.lets_go_of_memory(slot, RESET_PATIENCE)
    }

    fn forget(
        &self,
        slot: u16,
        lanes: &[Arc<Attached>],
        give_up: fn(&Lane) -> Vec<Performable>,
        cancel: fn(&mut Ledger, u16) -> Vec<EffectId>,
    ) {
        let _performer = self.performer();
        // Give up queued requests first, so that none of them is reported as performed after it is
        // cancelled.
        let given_up: Vec<Performable> =
            lanes.iter().flat_map(|backend| give_up(backend.lane())).collect();
        let mut ledger = self.far_side.ledger();
        self.tell_cancelled(&cancel(&mut ledger, slot));
        given_up.into_iter().for_each(|request| ledger.settle(request));
        for completion in self.far_side.take_completions_of(slot) {
            if let Kind::Performed(done) = completion.0 {
                ledger.settle(done.request);
            }
        }
        self.far_side.take_up(ledger);
    }

    /// Waits a while until no system call for an earlier request reads the memory that the driver
    /// owns again. Returns whether that is so.
    pub(crate) fn lets_go_of_memory(&self, slot: u16, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.of_slot(slot).iter().all(|backend| backend.lane().lets_go_of_memory(until))
    }

    /// Whether the slot has so many unsettled requests that its queues must wait. The queue is
    /// processed again when some of them are settled. This bounds what the machine buffers for a
    /// guest (P9).
    pub(crate) fn stalls(&self, ledger: &Ledger, slot: u16, queue: u16) -> bool {
        let full = ledger.is_full(slot);
        if full {
            self.far_side.stall(ledger, slot, queue);
        }
        full
    }

    /// Schedules more work of a register device: soon, or, if the slot is full, when some requests
    /// are settled.
    pub(crate) fn proceed_later(&self, ledger: &Ledger, slot: u16) {
        if !self.stalls(ledger, slot, 0) {
            self.post_again(slot, 0);
        }
    }

    /// Whether a vCPU that waits for this slot may go on.
    #[must_use]
    pub fn has_room(&self, slot: u16) -> bool {
        self.far_side.ledger().has_room(slot)
    }

    /// The weight of all requests that are not settled.
    #[must_use]
    pub fn load(&self) -> Weight {
        self.far_side.ledger().load()
    }

    /// Schedules the queue to be processed again soon.
    pub(crate) fn post_again(&self, slot: u16, queue: u16) {
        self.far_side.post_again(slot, queue);
    }

    /// Passes the driver's accepted features to backends that can take work off the driver.
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

    fn performer(&self) -> MutexGuard<'_, ()> {
        self.performer.lock().expect(POISONED)
    }

    fn backend(&self, slot: u16, port: Port) -> Option<Arc<Attached>> {
        self.attached.read().expect(POISONED).get(&(slot, port)).cloned()
    }

    fn of_slot(&self, slot: u16) -> Vec<Arc<Attached>> {
        let attached = self.attached.read().expect(POISONED);
        let ports = (slot, Port(0))..=(slot, Port(u8::MAX));
        attached.range(ports).map(|(_, backend)| backend.clone()).collect()
    }

    fn every_attached(&self) -> Vec<Arc<Attached>> {
        self.attached.read().expect(POISONED).values().cloned().collect()
    }
}

impl std::fmt::Debug for GateHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateHost").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
