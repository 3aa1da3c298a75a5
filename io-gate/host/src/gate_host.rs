//! The host side of one gate: one ledger, the backends behind it, and who performs what.
//!
//! Locks are taken in this order: a slot (by its owner), `performer`, the ledger, one backend.
//! Effects of one backend are performed in the order of their release (P1), because releasing and
//! performing, or queueing for a lane, happen under `performer`.

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
use crate::core::{Core, signal};
use crate::descriptors::event;
use crate::fence::Fence;
use crate::guest_memory::{GuestMemory, copy_out};
use crate::inputs::{Inputs, Role, Token};
use crate::lane::{Lane, LaneStart};
use crate::latency::{Latencies, LatencySummary};
use crate::observer::{Noted, Observer};
use crate::perform;
use crate::poisoned::POISONED;

/// How long the end of a machine waits for a fence that cannot tell, and for backends that do not answer.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How long a lane that only waits for the fence may take to see that nothing more is let out.
const CLOSING: Duration = Duration::from_millis(500);

/// How long a reset waits: of a device, for what was released, and then for a system call that reads what was the driver's
/// memory; of the machine, for power events that a fence which cannot tell holds up.
pub const RESET_PATIENCE: Duration = Duration::from_secs(1);

fn taken(slot: u16, port: Port) -> io::Error {
    let what = format!("slot {slot}, port {}: expected no backend yet, found one", port.0);
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

/// A backend, where it is, and its part of a batch.
type Share = ((u16, Port), Arc<Attached>, Vec<Performable>);

/// What [`GateHost::seal`] gives for the checkpoint.
#[derive(Debug)]
pub struct Sealed {
    /// The epoch that has ended.
    pub epoch: Epoch,
    /// Everything asked for and not settled, oldest first.
    pub in_flight: Vec<Record>,
    /// The number that the next request gets.
    pub next_id: EffectId,
    /// How many effects the sealed epoch holds back.
    pub staged: usize,
}

/// The gate's host side; shared by the device thread, the vCPU threads and the link thread.
pub struct GateHost {
    core: Arc<Core>,
    /// Orders releasing and handing over to lanes. Never held while a lane is waited for (P7): whoever learns of an
    /// acknowledgement takes it, on a thread that has to hear the standby meanwhile.
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
    /// A gate without backends, that holds.
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

    /// As [`new`](Self::new); each thread that performs effects calls `lane_start` before anything
    /// else.
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

    /// As [`with_lane_start`](Self::with_lane_start); `observer` is told what happens to effects.
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
        let core = Arc::new(Core::new(ledger, memory, fence, observer)?);
        let power =
            Lane::start("power".to_owned(), core.clone(), Output::Power, lane_start.clone())?;
        Ok(Arc::new(Self {
            core,
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

    /// Puts a backend behind a port of a slot. A port without one answers that it cannot.
    ///
    /// # Errors
    /// When the port has a backend already, or the process is out of threads or descriptors.
    pub fn attach(&self, slot: u16, port: Port, backend: Backend) -> io::Result<()> {
        self.attach_all(vec![(slot, port, backend)])
    }

    /// Puts backends behind ports, all of them or none: whoever fails may try again.
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
            // Without the lock, which the device thread and vCPU threads take: a peer may be slow to be found.
            let token = Token { slot, port, role: Role::Data };
            let backend =
                Attached::new(backend, &self.core, &self.inputs, token, &self.lane_start)?;
            made.insert((slot, port), Arc::new(backend));
        }
        let mut attached = self.attached.write().expect(POISONED);
        if let Some((slot, port)) = made.keys().find(|place| attached.contains_key(place)) {
            return Err(taken(*slot, *port));
        }
        // P2: before anything is performed on their disks.
        records.into_iter().for_each(|record| self.core.add_record(record));
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

    /// Another host is to have this disk, too (P3): its lock becomes that of a pair's active side; where `durably`, each write
    /// from now on is in the storage when it completes, and all that were made before are when this returns. Waits for the
    /// disk's lane.
    ///
    /// # Errors
    /// When the disk cannot be shared; the guest's use of it goes on as it was.
    pub fn share_disk(&self, slot: u16, port: Port, durably: bool) -> Result<(), ShareError> {
        let backend = self.backend(slot, port).ok_or(ShareError::NoDisk)?;
        backend.share_disk(durably, self.has_term())
    }

    /// Has the records beside the disks say that this machine holds them.
    ///
    /// # Errors
    /// When one cannot be written, or says that another may write.
    pub fn claim_disks(&self) -> Result<(), DiskError> {
        self.core.records().iter().try_for_each(|record| self.core.claim(record))
    }

    /// As [`claim_disks`](Self::claim_disks); each record is written anew, so that no copy that was made before says the same.
    ///
    /// # Errors
    /// As that.
    pub fn renew_records(&self) -> Result<(), DiskError> {
        self.core.records().iter().try_for_each(|record| self.core.renew(record))
    }

    /// The machine has ended in good order in this term: nothing more is let out, and the disks are anybody's. Whether all of
    /// them are. After [`drain`](Self::drain).
    ///
    /// P2: a disk whose lane is in a system call that has not come back may still be written to, whenever its storage answers.
    /// Its record goes on saying that this machine holds it.
    #[must_use]
    pub fn free_disks(&self) -> bool {
        // First: a lane that is found idle then begins no write afterwards, whatever it is given.
        self.core.close();
        let until = Instant::now() + CLOSING;
        let busy = |disk: &Arc<Attached>| disk.may_write() && !disk.lane().drain(until);
        let busy: Vec<_> = self.every_attached().into_iter().filter(busy).collect();
        for record in self.core.records() {
            if busy.iter().any(|disk| disk.has_record(&record)) {
                continue;
            }
            if let Err(error) = self.core.free(&record) {
                log::warn!("the next start on this disk needs --seize: {error}");
            }
        }
        for disk in &busy {
            log::error!(
                "{}: expected its storage to have answered by the end of the machine, found a request under way, which may \
                 still be carried out: the disk is not given free, and the next start needs --seize; see to it first that \
                 this host's process has ended",
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
        let mut ledger = self.core.ledger();
        let staged = ledger.held_in(ledger.epoch());
        let epoch = ledger.seal();
        self.held_signalled.store(false, Ordering::Release);
        Sealed { epoch, in_flight: ledger.in_flight(), next_id: ledger.next_id(), staged }
    }

    /// Spends a proof: the effects that it covers are performed, in order, by their lanes.
    pub fn release(&self, proof: Committed) {
        let performer = self.performer();
        let batch = self.core.ledger().release(proof);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Spends a proof: performs everything that is held, replays first, and lets everything after
    /// it straight through until [`hold`](Self::hold).
    pub fn run_alone(&self, proof: Alone) {
        let performer = self.performer();
        let mut ledger = self.core.ledger();
        if let Some(observer) = self.core.observer() {
            observer.opened(proof.term());
        }
        let mut batch = ledger.run_alone(proof);
        batch.extend(ledger.take_ready());
        self.tell_staged(&batch);
        drop(ledger);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Makes the gate hold what is staged from now on.
    pub fn hold(&self) {
        let performer = self.performer();
        // What was staged while the gate was open leaves first: it has no copy, and it is not to
        // wait for a standby that knows nothing of it.
        let mut ledger = self.core.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        if let Some(observer) = self.core.observer()
            && !ledger.holds()
        {
            observer.held(ledger.next_id());
        }
        ledger.hold();
        drop(ledger);
        self.hand_over_all(&performer, batch);
        self.held_signalled.store(false, Ordering::Release);
    }

    /// Whether effects wait for an acknowledgement.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.core.ledger().holds()
    }

    /// Effects that wait to be released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.core.ledger().held()
    }

    /// Effects of the current epoch that wait to be released.
    #[must_use]
    pub fn held_in_epoch(&self) -> usize {
        let ledger = self.core.ledger();
        ledger.held_in(ledger.epoch())
    }

    /// What has passed so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.core.ledger().counts()
    }

    /// The epoch to which what is staged now belongs.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.core.ledger().epoch()
    }

    /// Takes over the requests in flight of a checkpoint; [`run_alone`](Self::run_alone) performs
    /// them again.
    ///
    /// # Panics
    /// When this gate has been used already.
    pub fn adopt(&self, epoch: Epoch, next_id: EffectId, in_flight: Vec<Record>) {
        if let Some(observer) = self.core.observer() {
            let effects: Vec<Noted> = in_flight.iter().filter_map(Noted::of).collect();
            observer.adopted(&effects, next_id);
        }
        self.core.ledger().adopt(epoch, next_id, in_flight);
    }

    /// The right to perform is lost (P2): nothing is performed ever again.
    pub fn set_fenced_off(&self) {
        self.core.fence_off();
    }

    /// Whether the right to perform has been lost.
    #[must_use]
    pub fn is_fenced_off(&self) -> bool {
        self.core.is_fenced_off()
    }

    /// Whether terms decide who may perform: then a disk that others can reach is to have a record of
    /// the term beside it ([`DiskFence`](crate::backend::disk_fence::DiskFence)).
    #[must_use]
    pub fn has_term(&self) -> bool {
        self.core.has_term()
    }

    /// Whether released effects wait because nobody can tell whether this machine may perform them.
    #[must_use]
    pub fn waits_for_fence(&self) -> bool {
        self.core.waits_for_fence()
    }

    /// Says so where effects wait for an answer that does not come, once each time. To be called now and then, by a thread that
    /// performs nothing.
    pub fn tell_of_late_answers(&self) {
        self.core.asks().tell();
    }

    /// Since when a lane waits for the answer of the fence, or of a disk's record: of the one that waits for longest.
    #[must_use]
    pub fn asks_since(&self) -> Option<Instant> {
        self.core.asks().oldest()
    }

    /// Whether a write may be on its way to a disk at this moment, in a system call that has not come back. P2: it may arrive
    /// whenever the storage answers.
    #[must_use]
    pub fn may_be_writing(&self) -> bool {
        let writes =
            |at: &Arc<Attached>| at.may_write() && at.lane().may_be_letting_out(self.core.asks());
        self.every_attached().iter().any(writes)
    }

    /// Signalled when the right to perform has been lost.
    #[must_use]
    pub fn fenced_event(&self) -> &EventFd {
        self.core.fenced_event()
    }

    /// Whether everything that was released has been performed.
    #[must_use]
    pub fn lanes_idle(&self) -> bool {
        self.power.is_idle() && self.every_attached().iter().all(|backend| backend.lane().is_idle())
    }

    /// Waits until everything that was released has been performed and consoles have taken their
    /// output: for a clean shutdown. Where nobody can tell whether this machine may perform, or a backend does not answer,
    /// the wait has an end after [`LAST_PATIENCE`], and what was not performed by then never is.
    pub fn drain(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        self.core.give_up_after(LAST_PATIENCE);
        if self.core.is_fenced_off() {
            return;
        }
        let attached = self.every_attached();
        attached.iter().for_each(|backend| backend.lane().finish(until));
        for (lane, name) in
            attached.iter().map(|at| (at.lane(), at.name())).chain([(&self.power, "power")])
        {
            if !lane.drain(until) {
                log::warn!(
                    "{name}: has not taken its output within {LAST_PATIENCE:?}: it is given up, as at a power failure"
                );
            }
        }
    }

    /// Signalled when an effect is held: at most once between two calls of [`seal`](Self::seal).
    #[must_use]
    pub fn held_event(&self) -> &EventFd {
        &self.held_event
    }

    /// Signalled when completions wait for the device thread.
    #[must_use]
    pub fn completions_event(&self) -> &EventFd {
        self.core.completions_event()
    }

    /// The counters by which this crate wakes other threads: all that a thread which runs device
    /// code has to write to.
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

    /// Takes the completions that wait, and resets their event. Each is to be given to the slot
    /// that it names, before the next [`seal`](Self::seal).
    #[must_use]
    pub fn take_completions(&self) -> Vec<Completion> {
        self.core.take_completions()
    }

    /// Drops a completion whose slot does not exist (a checkpoint of another machine).
    pub fn discard(&self, completion: Completion) {
        if let Kind::Performed(done) = completion.0 {
            self.settle(done);
        }
    }

    /// A descriptor that is readable when a backend has something for the device thread: input,
    /// room for output, a connection to try again.
    #[must_use]
    pub fn inputs_fd(&self) -> RawFd {
        self.inputs.fd()
    }

    /// The ports that have input. What a backend does for itself (sending the rest of its output,
    /// connecting again) its lane is told to do.
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

    /// Tells the network where the slot's MAC address now is: one RARP broadcast, as other
    /// hypervisors send after a migration. The caller repeats it. It carries nothing of the guest,
    /// so it waits for no acknowledgement, but the fence is asked (P2).
    pub fn announce(&self, slot: u16) {
        let _performer = self.performer();
        self.of_slot(slot).iter().for_each(|backend| backend.lane().announce());
    }

    /// Signalled when a power event has been performed.
    #[must_use]
    pub fn power_event(&self) -> &EventFd {
        self.core.power_event()
    }

    /// Takes the power events that have been performed, and resets their event.
    #[must_use]
    pub fn take_power_events(&self) -> Vec<PowerEvent> {
        self.core.take_power_events()
    }

    /// Takes the first of the power events that have been performed.
    #[must_use]
    pub fn next_power_event(&self) -> Option<PowerEvent> {
        self.core.next_power_event()
    }

    /// The machine has been reset: whatever else asked for that before, several times over while
    /// it was held, is not performed any more.
    pub fn forget_resets(&self) {
        // Those that wait first: what is released while the lane is waited for is none of them.
        let performer = self.performer();
        let mut ledger = self.core.ledger();
        let cancelled = ledger.cancel_resets();
        self.tell_cancelled(&cancelled);
        self.core.take_up(ledger);
        drop(performer);
        if !self.power.drain(Instant::now() + RESET_PATIENCE) {
            self.give_up_resets();
        }
        self.core.forget_resets();
    }

    /// The power lane waits for an arbiter that is away: what waits there is not wanted any more.
    fn give_up_resets(&self) {
        let _performer = self.performer();
        let given_up = self.power.give_up_resets();
        let mut ledger = self.core.ledger();
        let abandoned = ledger.abandon_resets();
        self.tell_cancelled(&abandoned);
        given_up.into_iter().for_each(|request| ledger.settle(request));
        self.core.take_up(ledger);
    }

    /// How long effects have waited at the gate, by class.
    #[must_use]
    pub fn latencies(&self) -> Vec<LatencySummary> {
        self.latencies.lock().expect(POISONED).summaries()
    }

    /// Waits count from now on.
    pub fn reset_latencies(&self) {
        self.latencies.lock().expect(POISONED).reset();
    }

    /// Frames that were dropped because a network backend could not take them.
    #[must_use]
    pub fn dropped_frames(&self) -> u64 {
        self.every_attached().iter().map(|backend| backend.dropped_frames()).sum()
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.core.memory
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.core.ledger()
    }

    /// Ends the staging that was done under one hold of the ledger's lock: what is held is copied,
    /// so that the guest cannot change it any more (P1); what may leave at once is performed.
    /// Completions of `own` slot are given back, since its owner is the caller.
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
        let observer = self.core.observer();
        let mut noted = Vec::new();
        ledger.copy_held(|record| {
            staged.push(record.id);
            if observer.is_some() {
                noted.extend(Noted::of(record));
            }
            let Request::Effect(op) = &record.request else { return None };
            let ranges = op.payload()?.guest_ranges()?;
            copy_out(&self.core.memory, ranges).ok()
        });
        if staged.is_empty() {
            return;
        }
        if let Some(observer) = observer {
            // Copied newest first.
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
        let mut ledger = self.core.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        drop(ledger);
        let mut own_done = Vec::new();
        for done in self.hand_over(&performer, batch) {
            if done.request.record().origin.slot() == own {
                own_done.push(done);
            } else {
                self.core.post(Completion(Kind::Performed(done)));
            }
        }
        own_done
    }

    fn hand_over_all(&self, performer: &MutexGuard<'_, ()>, batch: Vec<Performable>) {
        for done in self.hand_over(performer, batch) {
            self.core.post(Completion(Kind::Performed(done)));
        }
    }

    /// Hands requests to their lanes, each lane its part of the batch in one piece (P1: the order
    /// of release is the order of performing). What needs no lane is done here: it is given back
    /// if a chain waits for it.
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
                    let (outcome, data) = perform::entropy(&self.core.memory, into);
                    done.push(Performed { request, outcome, data });
                    continue;
                }
                Request::Input(InputOp::BlockRead { port, .. }) => Some(*port),
                Request::Effect(op) => op.port(),
            };
            let place = port.map(|port| (record.origin.slot(), port));
            // Most of a batch is for one backend, which is looked up once.
            if let Some((.., jobs)) = lanes.iter_mut().find(|(of, ..)| Some(*of) == place) {
                jobs.push(request);
                continue;
            }
            match place.and_then(|place| Some((place, self.backend(place.0, place.1)?))) {
                Some((place, backend)) => lanes.push((place, backend, vec![request])),
                None => {
                    if let (Some(observer), Some(effect)) =
                        (self.core.observer(), Noted::of(record))
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
        let core = self.core.clone();
        done.into_iter().filter_map(move |done| core.settle_detached(done))
    }

    /// What passes an open gate is told of as it passes. With the ledger's lock held, so that what
    /// is staged later is told of later.
    fn tell_staged(&self, batch: &[Performable]) {
        let Some(observer) = self.core.observer() else { return };
        let own = batch.iter().filter(|request| !request.is_replay());
        let effects: Vec<Noted> = own.filter_map(|request| Noted::of(request.record())).collect();
        observer.staged(&effects);
    }

    fn tell_cancelled(&self, effects: &[EffectId]) {
        if let Some(observer) = self.core.observer() {
            observer.cancelled(effects);
        }
    }

    fn note_released(&self, batch: &[Performable]) {
        let now = Instant::now();
        let mut latencies = self.latencies.lock().expect(POISONED);
        batch.iter().for_each(|request| latencies.released(request.record(), now));
    }

    pub(crate) fn settle(&self, done: Performed) {
        self.core.settle([done.request]);
    }

    /// Settles requests under one hold of the ledger's lock.
    pub(crate) fn settle_all(&self, done: Vec<Performable>) {
        if !done.is_empty() {
            self.core.settle(done);
        }
    }

    /// The driver of a slot has reset its device: afterwards none of its chains is in flight, nothing writes the memory they
    /// point to, and, where this gives `true`, nothing reads it. Reads are not waited for. What was released is performed
    /// first, as far as that takes no longer than [`RESET_PATIENCE`]; what was not begun by then is dropped, which the driver
    /// cannot tell from a device that was slower, and a system call that reads the driver's own memory is waited for as long
    /// again (P9).
    #[must_use]
    pub(crate) fn forget_chains(&self, slot: u16) -> bool {
        let lanes = self.of_slot(slot);
        self.forget(slot, &lanes, Lane::give_up_reads, Ledger::cancel_chains_of);
        // Whoever had released some has handed them over by then, and the caller makes no new ones. Nothing is locked.
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
        // First, so that nobody is told afterwards that one of them is performed.
        let given_up: Vec<Performable> =
            lanes.iter().flat_map(|backend| give_up(backend.lane())).collect();
        let mut ledger = self.core.ledger();
        self.tell_cancelled(&cancel(&mut ledger, slot));
        given_up.into_iter().for_each(|request| ledger.settle(request));
        for completion in self.core.take_completions_of(slot) {
            if let Kind::Performed(done) = completion.0 {
                ledger.settle(done.request);
            }
        }
        self.core.take_up(ledger);
    }

    /// Whether no system call reads, for a driver's request of before its reset, memory that is the driver's again; waits a
    /// while for that.
    pub(crate) fn lets_go_of_memory(&self, slot: u16, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.of_slot(slot).iter().all(|backend| backend.lane().lets_go_of_memory(until))
    }

    /// Whether so much of a slot is not settled that its queues have to wait; the queue is then taken up again when some of
    /// it is. A guest cannot make the machine buffer without end (P9).
    pub(crate) fn stalls(&self, ledger: &Ledger, slot: u16, queue: u16) -> bool {
        let full = ledger.is_full(slot);
        if full {
            self.core.stall(ledger, slot, queue);
        }
        full
    }

    /// A register device has more to do: soon, or when something of it is settled if it has to wait for that.
    pub(crate) fn proceed_later(&self, ledger: &Ledger, slot: u16) {
        if !self.stalls(ledger, slot, 0) {
            self.post_again(slot, 0);
        }
    }

    /// Whether a vCPU that has made this slot ask for more than it may goes on.
    #[must_use]
    pub fn has_room(&self, slot: u16) -> bool {
        self.core.ledger().has_room(slot)
    }

    /// What everything weighs that was asked for and is not settled.
    #[must_use]
    pub fn load(&self) -> Weight {
        self.core.ledger().load()
    }

    /// A queue is to be processed again soon.
    pub(crate) fn post_again(&self, slot: u16, queue: u16) {
        self.core.post_again(slot, queue);
    }

    /// The driver's choice of features, for backends that can take work off it.
    pub(crate) fn negotiated(&self, slot: u16, features: u64) {
        self.negotiated.lock().expect(POISONED).insert(slot, features);
        self.of_slot(slot).iter().for_each(|backend| backend.negotiated(features));
    }

    /// Takes input that waits at a port, if any: its length.
    pub(crate) fn receive(&self, slot: u16, port: Port, into: &mut Vec<u8>) -> bool {
        self.backend(slot, port).is_some_and(|backend| backend.receive(into))
    }

    /// Whether input of a port is wanted now.
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
