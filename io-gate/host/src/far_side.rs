//! The state that all threads of the far side share: the ledger, the fence, and the completions for
//! the device thread.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use io_gate::host::{EffectOp, GateId, Ledger, Origin, Performable, Request};
use io_gate::{Outcome, PowerEvent};
use vmm_sys_util::eventfd::EventFd;

use crate::asks::Asks;
use crate::clock::Moment;
use crate::completion::{Completion, Performed};
use crate::descriptors::event;
use crate::disk_use::disk_error::DiskError;
use crate::disk_use::disk_fence::{DiskFence, FenceAnswer};
use crate::fence::{Fence, Permission};
use crate::given_up::GivenUp;
use crate::guest_memory::GuestMemory;
use crate::list_driver::{ListDriver, Own};
use crate::observer::Observer;
use crate::poisoned::POISONED;

/// The maximum wait before a fence that gave no answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// After this long without a permission, the records beside the disks are read before the next one
/// (P2): meanwhile this process may have been stopped, and the arbiter's data may have gone back to
/// an earlier state. It is far shorter than the silence after which a standby asks for the right. A
/// machine that performs effects more often than this reads the records only before its writes.
const VOUCHED_FOR: Duration = Duration::from_millis(20);

/// Log after this many successive answers that were older than the limit.
const TOO_OLD: u32 = 3;

pub(crate) struct FarSide {
    /// The only gate whose effects are performed here (P1).
    gate: GateId,
    pub(crate) memory: Arc<GuestMemory>,
    fence: Arc<dyn Fence>,
    observer: Option<Arc<dyn Observer>>,
    own: Own,
    fenced_off: AtomicBool,
    /// The machine has ended. Effects that wait stay in flight, as at a power failure.
    closed: AtomicBool,
    fenced_event: EventFd,
    /// Number of threads that wait because the fence gave no answer.
    waiting: AtomicUsize,
    /// The reasons that were logged, and the time of the last one. Never held across a system call.
    reported: Mutex<Option<(Vec<String>, Instant)>>,
    asks: Asks,
    /// The time from which effects no longer wait for the fence. It is set when the machine ends.
    give_up_at: OnceLock<Instant>,
    /// The records beside the disks. Guards the list only; reading a record may block.
    records: Mutex<Vec<Arc<DiskFence>>>,
    /// The term that all records have granted, and the time of the last permission in it. Never
    /// held across a system call.
    vouched: Mutex<Option<(u64, Moment)>>,
    ledger: Mutex<Ledger>,
    /// At most one for each request in flight, and one for each queue to process again (P9).
    completions: Mutex<Completions>,
    completions_event: EventFd,
    /// Queues that wait because their slots have too many unsettled requests. Each settlement may
    /// resume them.
    stalled: Mutex<BTreeSet<(u16, u16)>>,
    /// Whether `stalled` has entries; checked after each settlement.
    any_stalled: AtomicBool,
    /// Power events that the device thread has not taken yet. There is at most one of each kind
    /// (P9): the waiting event stands for later ones.
    power: Mutex<VecDeque<Performable>>,
    /// Power events that the device thread has taken. They stay in flight until they have taken
    /// effect.
    power_under_way: Mutex<Vec<Performable>>,
    power_event: EventFd,
}

/// Completions for the device thread.
#[derive(Default)]
struct Completions {
    waiting: Vec<Completion>,
    /// The queues to process again in `waiting`, each listed once.
    again: BTreeSet<(u16, u16)>,
}

impl FarSide {
    pub(crate) fn new(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
        observer: Option<Arc<dyn Observer>>,
        list: Option<Arc<dyn ListDriver>>,
    ) -> io::Result<Self> {
        let own = Own::new(ledger.own_ports().clone(), list)?;
        Ok(Self {
            gate: ledger.gate(),
            memory,
            fence,
            observer,
            own,
            fenced_off: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            fenced_event: event()?,
            waiting: AtomicUsize::new(0),
            reported: Mutex::default(),
            asks: Asks::default(),
            give_up_at: OnceLock::new(),
            records: Mutex::default(),
            vouched: Mutex::default(),
            ledger: Mutex::new(ledger),
            completions: Mutex::new(Completions::default()),
            completions_event: event()?,
            stalled: Mutex::new(BTreeSet::new()),
            any_stalled: AtomicBool::new(false),
            power: Mutex::new(VecDeque::new()),
            power_under_way: Mutex::new(Vec::new()),
            power_event: event()?,
        })
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect(POISONED)
    }

    /// P1: this gate does not perform effects that another gate has released.
    ///
    /// # Panics
    /// When the effect belongs to another gate.
    pub(crate) fn assert_own(&self, request: &Performable) {
        assert!(
            request.gate() == self.gate,
            "P1: an effect of another gate cannot be performed by this one"
        );
    }

    /// The observer of effects, if there is one.
    pub(crate) fn observer(&self) -> Option<&dyn Observer> {
        self.observer.as_deref()
    }

    /// The own disks.
    pub(crate) fn own(&self) -> &Own {
        &self.own
    }

    /// The term for which the fence grants the right, if there are terms.
    pub(crate) fn term(&self) -> Option<u64> {
        self.fence.term()
    }

    /// How long an answer of the fence may be reused.
    pub(crate) fn good_for(&self) -> Duration {
        self.fence.good_for()
    }

    /// The maximum age of an answer on which a thread acts.
    pub(crate) fn max_age(&self) -> Duration {
        self.fence.max_age()
    }

    /// Asks the fence, and first the records beside the disks. Returns when the fence was asked if
    /// the right is granted; see [`Permits`](crate::permit::Permits). `None` is final: the effect
    /// must not be performed.
    ///
    /// While there is no answer, the effect waits here, and all later effects of its lane wait
    /// behind it. The effect is neither performed nor dropped. It continues when the arbiter
    /// answers again, unless it is given up.
    pub(crate) fn permitted_by(
        &self,
        given_up: &GivenUp,
        record: Option<&DiskFence>,
    ) -> Option<Moment> {
        let mut waiting = None;
        let mut too_old = 0;
        loop {
            if self.lets_nothing_out() || given_up.is_set() {
                return None;
            }
            let under_way = self.asks.begin();
            // Ask the storage first: it may be slow, and the arbiter's answer must be recent.
            let (mut answer, mut reason) = self.ask_storage(record);
            let asked = Moment::now();
            if answer == Permission::Granted {
                (answer, reason) = (self.fence.ask(), None);
            }
            drop(under_way);
            let reason = || reason.unwrap_or_else(|| self.fence.reason());
            match answer {
                Permission::Granted if asked.elapsed() <= self.max_age() => {
                    self.vouch(asked);
                    return Some(asked);
                }
                Permission::Lost => {
                    log::warn!("fenced, no effect is performed any more: {}", reason());
                    self.fence_off();
                    return None;
                }
                Permission::Granted | Permission::Unknown if self.has_given_up() => return None,
                Permission::Granted => {
                    too_old += 1;
                    if too_old >= TOO_OLD {
                        let (took, limit) = (asked.elapsed(), self.max_age());
                        // Log it once: the text contains the time, and so differs each time.
                        if waiting.is_none() {
                            let why = format!(
                                "expected the arbiter's answer within {limit:?}, found it after {took:?}"
                            );
                            Waiting::tell(&mut waiting, self, why);
                        }
                    }
                }
                Permission::Unknown => {
                    Waiting::tell(&mut waiting, self, reason());
                    self.fence.wait(ASK_AGAIN);
                }
            }
        }
    }

    /// Asks the records beside the disks. Before a write to a disk, that is the disk's record.
    /// Otherwise it is all records, if they have not granted this term yet or nothing was permitted
    /// for `VOUCHED_FOR`.
    fn ask_storage(&self, record: Option<&DiskFence>) -> (Permission, Option<String>) {
        let Some(term) = self.fence.term() else { return (Permission::Granted, None) };
        if let Some(record) = record {
            return self.ask_record(record, term);
        }
        let vouched = *self.vouched.lock().expect(POISONED);
        if vouched.is_some_and(|(of, at)| of == term && at.elapsed() < VOUCHED_FOR) {
            return (Permission::Granted, None);
        }
        for record in self.records() {
            let (answer, reason) = self.ask_record(&record, term);
            if answer != Permission::Granted {
                return (answer, reason);
            }
        }
        *self.vouched.lock().expect(POISONED) = Some((term, Moment::now()));
        (Permission::Granted, None)
    }

    fn ask_record(&self, record: &DiskFence, term: u64) -> (Permission, Option<String>) {
        match record.ask(term, self.fence.holder()) {
            Ok(FenceAnswer::Granted) => (Permission::Granted, None),
            Ok(FenceAnswer::Lost(claim)) => {
                (Permission::Lost, Some(format!("the disk's fence record says: {claim}")))
            }
            Err(error) => (Permission::Unknown, Some(error.to_string())),
        }
    }

    /// Remembers the time of a permission: a process that has not been stopped since then need not
    /// read the records again.
    fn vouch(&self, at: Moment) {
        if let Some((_, vouched)) = &mut *self.vouched.lock().expect(POISONED)
            && vouched.elapsed() < VOUCHED_FOR
        {
            *vouched = at;
        }
    }

    /// Adds the fence record of a disk of this machine.
    pub(crate) fn add_record(&self, record: Arc<DiskFence>) {
        self.records.lock().expect(POISONED).push(record);
    }

    pub(crate) fn records(&self) -> Vec<Arc<DiskFence>> {
        self.records.lock().expect(POISONED).clone()
    }

    /// Writes into a record that this machine may write to its disk.
    pub(crate) fn claim(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) => record.claim(term, self.fence.holder()),
            None => Ok(()),
        }
    }

    /// As [`claim`](Self::claim), and rewrites the record.
    pub(crate) fn renew(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) => record.renew(term, self.fence.holder()),
            None => Ok(()),
        }
    }

    /// Marks a record as free: this machine has ended and writes no more.
    pub(crate) fn free(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) if !self.is_fenced_off() => record.free(term, self.fence.holder()),
            _ => Ok(()),
        }
    }

    /// Whether terms decide who may perform, so that the records beside disks carry a term.
    pub(crate) fn has_term(&self) -> bool {
        self.fence.term().is_some()
    }

    /// Whether effects wait for the fence.
    pub(crate) fn waits_for_fence(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0 || self.asks.are_late()
    }

    /// The pending questions to the fence.
    pub(crate) fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Ends all waiting for the fence after `patience`, since the machine ends. Effects that still
    /// wait then stay in flight, as at a power failure (P1: the end of the machine releases
    /// nothing).
    pub(crate) fn give_up_after(&self, patience: Duration) {
        // Later calls have no effect.
        let _ = self.give_up_at.set(Instant::now() + patience);
    }

    fn has_given_up(&self) -> bool {
        self.give_up_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    /// Lets nothing more out, since the machine has ended: no system call that lets data out begins
    /// from now on (P2).
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether nothing may leave any more.
    pub(crate) fn lets_nothing_out(&self) -> bool {
        self.is_fenced_off() || self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_fenced_off(&self) -> bool {
        self.fenced_off.load(Ordering::Acquire)
    }

    /// P2: nothing is performed from now on. The held effects are cancelled, and the ledger counts
    /// them.
    pub(crate) fn fence_off(&self) {
        if !self.fenced_off.swap(true, Ordering::AcqRel) {
            let mut ledger = self.ledger();
            let cancelled = ledger.cancel_held();
            if let Some(observer) = self.observer() {
                observer.cancelled(&cancelled);
                observer.fenced_off();
            }
            drop(ledger);
            signal(&self.fenced_event);
        }
    }

    pub(crate) fn fenced_event(&self) -> &EventFd {
        &self.fenced_event
    }

    /// Settles a request for which no chain waits, and hands a power event to the device thread.
    /// Returns any other request: it stays in flight until the device thread has completed its
    /// chain, so that a checkpoint taken before then contains it (P3).
    pub(crate) fn settle_detached(&self, done: Performed) -> Option<Performed> {
        if power_event_of(&done.request).is_some() && done.outcome != Outcome::Failed {
            self.power(done.request);
            return None;
        }
        if let Origin::Detached { slot } = done.request.record().origin {
            if done.outcome == Outcome::Failed {
                log::warn!("slot {slot}: an effect has failed, and no chain waits for it");
            }
            self.settle([done.request]);
            return None;
        }
        Some(done)
    }

    /// Settles requests under one hold of the ledger's lock, and resumes queues that have waited
    /// for room.
    pub(crate) fn settle(&self, done: impl IntoIterator<Item = Performable>) {
        let mut ledger = self.ledger();
        done.into_iter().for_each(|request| ledger.settle(request));
        self.take_up(ledger);
    }

    /// Makes a queue wait until its slot has fewer unsettled requests. The caller holds the
    /// ledger's lock, so that each settlement after its check finds the queue.
    pub(crate) fn stall(&self, _ledger: &Ledger, slot: u16, queue: u16) {
        self.stalled.lock().expect(POISONED).insert((slot, queue));
        self.any_stalled.store(true, Ordering::Release);
    }

    /// Resumes the waiting queues whose slots have room now.
    pub(crate) fn take_up(&self, ledger: MutexGuard<'_, Ledger>) {
        if !self.any_stalled.load(Ordering::Acquire) {
            return;
        }
        let mut stalled = self.stalled.lock().expect(POISONED);
        let (ready, others) =
            std::mem::take(&mut *stalled).into_iter().partition::<BTreeSet<_>, _>(|(slot, _)| {
                ledger.has_room(*slot) && !self.own.is_full(*slot)
            });
        self.any_stalled.store(!others.is_empty(), Ordering::Release);
        *stalled = others;
        drop(stalled);
        drop(ledger);
        ready.into_iter().for_each(|(slot, queue)| self.post_again(slot, queue));
    }

    /// Schedules the queue to be processed again soon.
    pub(crate) fn post_again(&self, slot: u16, queue: u16) {
        let mut completions = self.completions.lock().expect(POISONED);
        if completions.again.insert((slot, queue)) {
            self.add(completions, &mut vec![Completion::again(slot, queue)]);
        }
    }

    pub(crate) fn post(&self, completion: Completion) {
        self.post_all(&mut vec![completion]);
    }

    pub(crate) fn post_all(&self, completions: &mut Vec<Completion>) {
        if !completions.is_empty() {
            self.add(self.completions.lock().expect(POISONED), completions);
        }
    }

    fn add(&self, mut to: MutexGuard<'_, Completions>, completions: &mut Vec<Completion>) {
        let first = to.waiting.is_empty();
        to.waiting.append(completions);
        drop(to);
        if first {
            signal(&self.completions_event);
        }
    }

    pub(crate) fn completions_event(&self) -> &EventFd {
        &self.completions_event
    }

    pub(crate) fn take_completions(&self) -> Vec<Completion> {
        // Clear the event first: a completion that is posted after the list is taken signals it
        // again.
        drain(&self.completions_event);
        std::mem::take(&mut *self.completions.lock().expect(POISONED)).waiting
    }

    /// Takes the waiting completions of one slot, and leaves the others.
    pub(crate) fn take_completions_of(&self, slot: u16) -> Vec<Completion> {
        let mut completions = self.completions.lock().expect(POISONED);
        let all = std::mem::take(&mut completions.waiting);
        let (of_slot, others) = all.into_iter().partition(|completion| completion.slot() == slot);
        completions.waiting = others;
        completions.again.retain(|(of, _)| *of != slot);
        of_slot
    }

    /// Hands a permitted power event to the device thread. P7: the event is settled only when the
    /// machine is off or reset, so that a side that continues from an earlier checkpoint carries
    /// the event out.
    fn power(&self, request: Performable) {
        self.assert_own(&request);
        let event = power_event_of(&request);
        let mut waiting = self.power.lock().expect(POISONED);
        if waiting.iter().any(|other| power_event_of(other) == event) {
            drop(waiting);
            // The event that waits already stands for both requests.
            return self.settle([request]);
        }
        waiting.push_back(request);
        drop(waiting);
        signal(&self.power_event);
    }

    pub(crate) fn power_event(&self) -> &EventFd {
        &self.power_event
    }

    /// Settles all resets: the machine has been reset.
    pub(crate) fn forget_resets(&self) {
        let is_reset = |request: &Performable| power_event_of(request) == Some(PowerEvent::Reset);
        let mut waiting = self.power.lock().expect(POISONED);
        let (done, others): (VecDeque<_>, VecDeque<_>) = waiting.drain(..).partition(is_reset);
        *waiting = others;
        drop(waiting);
        self.settle(done);
        let mut under_way = self.power_under_way.lock().expect(POISONED);
        let (done, others): (Vec<_>, Vec<_>) = under_way.drain(..).partition(is_reset);
        *under_way = others;
        drop(under_way);
        self.settle(done);
    }

    pub(crate) fn next_power_event(&self) -> Option<PowerEvent> {
        // Clear the event first: a power event that comes after the check signals it again.
        drain(&self.power_event);
        let mut waiting = self.power.lock().expect(POISONED);
        let request = waiting.pop_front()?;
        if !waiting.is_empty() {
            signal(&self.power_event);
        }
        drop(waiting);
        let event = power_event_of(&request);
        self.power_under_way.lock().expect(POISONED).push(request);
        event
    }

    pub(crate) fn take_power_events(&self) -> Vec<PowerEvent> {
        drain(&self.power_event);
        let taken: Vec<_> = self.power.lock().expect(POISONED).drain(..).collect();
        let events = taken.iter().filter_map(power_event_of).collect();
        self.settle(taken);
        events
    }
}

fn power_event_of(request: &Performable) -> Option<PowerEvent> {
    match &request.record().request {
        Request::Effect(EffectOp::Power(event)) => Some(*event),
        _ => None,
    }
}

/// Wakes the threads that wait for an event.
pub(crate) fn signal(event: &EventFd) {
    // Fails only when the counter is at its limit. Then the event is signalled already.
    let _ = event.write(1);
}

fn drain(event: &EventFd) {
    // Fails only when nothing was signalled.
    let _ = event.read();
}

/// Number of reasons that are remembered (P9): several threads, or several members of an arbiter,
/// may give different reasons in turn.
const REMEMBERED: usize = 8;
/// Minimum interval between two logged reasons, since each thread may have another reason.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// A thread that waits for the fence. One log line stands for all these threads; a new reason gets
/// another line.
struct Waiting<'c> {
    far_side: &'c FarSide,
    since: Instant,
}

impl<'c> Waiting<'c> {
    /// Begins or continues to wait for `reason`.
    fn tell(waiting: &mut Option<Self>, far_side: &'c FarSide, reason: String) {
        waiting.get_or_insert_with(|| {
            far_side.waiting.fetch_add(1, Ordering::AcqRel);
            Self { far_side, since: Instant::now() }
        });
        let mut reported = far_side.reported.lock().expect(POISONED);
        let is_known = reported
            .as_ref()
            .is_some_and(|(known, at)| known.contains(&reason) || at.elapsed() < TELL_AGAIN);
        if !is_known {
            let (mut known, _) = reported.take().unwrap_or_else(|| (Vec::new(), Instant::now()));
            known.truncate(REMEMBERED - 1);
            known.insert(0, reason.clone());
            *reported = Some((known, Instant::now()));
            drop(reported);
            log::warn!("effects are held: {reason}");
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.far_side.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.far_side.reported.lock().expect(POISONED) = None;
            log::info!("effects are no longer held, after {:?}", self.since.elapsed());
        }
    }
}
