//! What every thread of the far side shares: the ledger, the fence, and what waits for the device
//! thread.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use io_gate::host::{EffectOp, GateId, Ledger, Origin, Performable, Request};
use io_gate::{Outcome, PowerEvent};
use vmm_sys_util::eventfd::EventFd;

use crate::asks::Asks;
use crate::backend::disk_error::DiskError;
use crate::backend::disk_fence::{Answer, DiskFence};
use crate::clock::Moment;
use crate::completion::{Completion, Performed};
use crate::descriptors::event;
use crate::fence::{Fence, Permission};
use crate::given_up::GivenUp;
use crate::guest_memory::GuestMemory;
use crate::observer::Observer;
use crate::poisoned::POISONED;

/// How long to wait at most before a fence that could not tell is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// After so long without a permission, the records beside the disks are looked at before the next (P2): this process may
/// have been stopped, and the arbiter's data may have gone back meanwhile. Far below the silence after which a standby asks
/// for the right; a machine that is busy looks at them before its writes only.
const VOUCHED_FOR: Duration = Duration::from_millis(20);

/// So many answers that are too old, one after the other, are told of.
const TOO_OLD: u32 = 3;

pub(crate) struct Core {
    /// The gate whose effects are performed here, and no other's (P1).
    gate: GateId,
    pub(crate) memory: Arc<GuestMemory>,
    fence: Arc<dyn Fence>,
    observer: Option<Arc<dyn Observer>>,
    fenced_off: AtomicBool,
    /// The machine has ended. What waits is left in flight, as at a power failure.
    closed: AtomicBool,
    fenced_event: EventFd,
    /// Threads that wait until the fence can tell.
    waiting: AtomicUsize,
    /// Why, as it was told, and when for the last time. Never held across a system call.
    told: Mutex<Option<(Vec<String>, Instant)>>,
    asks: Asks,
    give_up_at: OnceLock<Instant>,
    /// The records beside the disks. Guards the list only; looking at one may block.
    records: Mutex<Vec<Arc<DiskFence>>>,
    /// The term that those have agreed to, and when something was last permitted in it. Never held across a system call.
    vouched: Mutex<Option<(u64, Moment)>>,
    ledger: Mutex<Ledger>,
    /// As many as there are requests in flight, and one for each queue that is to be looked at again (P9).
    completions: Mutex<Completions>,
    completions_event: EventFd,
    /// Queues that were left alone because too much of their slots is not settled. Whatever is settled may take them up again.
    stalled: Mutex<BTreeSet<(u16, u16)>>,
    /// Whether there are any: looked at after each settlement.
    any_stalled: AtomicBool,
    /// Power events that the device thread has not taken yet: one of each kind at most, as what is asked for twice before it is
    /// done is done once (P9).
    power: Mutex<VecDeque<Performable>>,
    /// Those that it has taken: in flight until they have taken effect.
    power_under_way: Mutex<Vec<Performable>>,
    power_event: EventFd,
}

/// What waits for the device thread.
#[derive(Default)]
struct Completions {
    waiting: Vec<Completion>,
    /// Queues that are among them, to be looked at again: once is enough.
    again: BTreeSet<(u16, u16)>,
}

impl Core {
    pub(crate) fn new(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
        observer: Option<Arc<dyn Observer>>,
    ) -> io::Result<Self> {
        Ok(Self {
            gate: ledger.gate(),
            memory,
            fence,
            observer,
            fenced_off: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            fenced_event: event()?,
            waiting: AtomicUsize::new(0),
            told: Mutex::default(),
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

    /// P1: what another gate has let out, by a proof of its own, is not performed here.
    ///
    /// # Panics
    /// When this is another gate's.
    pub(crate) fn assert_own(&self, request: &Performable) {
        assert!(request.gate() == self.gate, "P1: an effect of another gate was to be performed");
    }

    /// Who is told what happens to effects.
    pub(crate) fn observer(&self) -> Option<&dyn Observer> {
        self.observer.as_deref()
    }

    /// The term in which the fence permits, where there are terms.
    pub(crate) fn term(&self) -> Option<u64> {
        self.fence.term()
    }

    /// How long a yes of the fence may be used again.
    pub(crate) fn good_for(&self) -> Duration {
        self.fence.good_for()
    }

    /// The oldest yes that is acted upon.
    pub(crate) fn max_age(&self) -> Duration {
        self.fence.max_age()
    }

    /// When the question was asked to which the answer is yes; see [`Permits`](crate::permit::Permits). Once the answer was
    /// no, it stays no. While nobody can tell, the effect waits here, and with it everything behind it in its lane: it is
    /// neither performed nor dropped, and service goes on when the arbiter is back; unless nobody wants it any more.
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
            // The storage first: it may be slow, and the arbiter's answer is to be young.
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
                    log::warn!("effects are fenced off: {}", reason());
                    self.fence_off();
                    return None;
                }
                Permission::Granted | Permission::Unknown if self.has_given_up() => return None,
                Permission::Granted => {
                    too_old += 1;
                    if too_old >= TOO_OLD {
                        let (took, limit) = (asked.elapsed(), self.max_age());
                        // Not of a second one: it differs each time.
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

    /// What is written beside the disks: beside the one that is to be written to, or beside all of them when a term is new to
    /// them, or nothing was permitted for a while.
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
            Ok(Answer::Granted) => (Permission::Granted, None),
            Ok(Answer::Lost(claim)) => {
                (Permission::Lost, Some(format!("the disk's fence record says: {claim}")))
            }
            Err(error) => (Permission::Unknown, Some(error.to_string())),
        }
    }

    /// Something was permitted: whoever was not stopped since need not look at the records again.
    fn vouch(&self, at: Moment) {
        if let Some((_, vouched)) = &mut *self.vouched.lock().expect(POISONED)
            && vouched.elapsed() < VOUCHED_FOR
        {
            *vouched = at;
        }
    }

    /// A record that says who may write to a disk of this machine.
    pub(crate) fn add_record(&self, record: Arc<DiskFence>) {
        self.records.lock().expect(POISONED).push(record);
    }

    pub(crate) fn records(&self) -> Vec<Arc<DiskFence>> {
        self.records.lock().expect(POISONED).clone()
    }

    /// Has a record say that this machine may write to its disk.
    pub(crate) fn claim(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) => record.claim(term, self.fence.holder()),
            None => Ok(()),
        }
    }

    /// As [`claim`](Self::claim); the record is written anew.
    pub(crate) fn renew(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) => record.renew(term, self.fence.holder()),
            None => Ok(()),
        }
    }

    /// This machine has ended, and writes no more.
    pub(crate) fn free(&self, record: &DiskFence) -> Result<(), DiskError> {
        match self.fence.term() {
            Some(term) if !self.is_fenced_off() => record.free(term, self.fence.holder()),
            _ => Ok(()),
        }
    }

    /// Whether terms decide who may perform, so that records beside disks have one to carry.
    pub(crate) fn has_term(&self) -> bool {
        self.fence.term().is_some()
    }

    /// Whether effects wait for the fence.
    pub(crate) fn waits_for_fence(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0 || self.asks.are_late()
    }

    /// What to look at now and then.
    pub(crate) fn asks(&self) -> &Asks {
        &self.asks
    }

    /// The machine ends: what waits for the fence does so no longer than `patience`, and is then
    /// left in flight, as at a power failure (P1: nothing is let out because the machine ends).
    pub(crate) fn give_up_after(&self, patience: Duration) {
        // The first call counts.
        let _ = self.give_up_at.set(Instant::now() + patience);
    }

    fn has_given_up(&self) -> bool {
        self.give_up_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    /// The machine has ended: no system call that lets something out begins any more (P2).
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether nothing is let out ever again.
    pub(crate) fn lets_nothing_out(&self) -> bool {
        self.is_fenced_off() || self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_fenced_off(&self) -> bool {
        self.fenced_off.load(Ordering::Acquire)
    }

    /// P2: from now on nothing is performed. What is held is dropped; the ledger counts it.
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

    /// Settles a request that nothing waits for; gives back any other. Whoever waits for that one
    /// is told on the device thread, and it stays in flight until then: a checkpoint taken before
    /// must carry it (P3).
    pub(crate) fn settle_detached(&self, done: Performed) -> Option<Performed> {
        if power_event_of(&done.request).is_some() && done.outcome != Outcome::Failed {
            self.power(done.request);
            return None;
        }
        if let Origin::Detached { slot } = done.request.record().origin {
            if done.outcome == Outcome::Failed {
                log::warn!("slot {slot}: an effect that nothing waits for has failed");
            }
            self.settle([done.request]);
            return None;
        }
        Some(done)
    }

    /// Settles requests under one hold of the ledger's lock, and has queues looked at again that have waited for that.
    pub(crate) fn settle(&self, done: impl IntoIterator<Item = Performable>) {
        let mut ledger = self.ledger();
        done.into_iter().for_each(|request| ledger.settle(request));
        self.take_up(ledger);
    }

    /// A queue waits until less of its slot is unsettled. With the ledger's lock held, so that what is settled later finds it.
    pub(crate) fn stall(&self, _ledger: &Ledger, slot: u16, queue: u16) {
        self.stalled.lock().expect(POISONED).insert((slot, queue));
        self.any_stalled.store(true, Ordering::Release);
    }

    /// Has the queues looked at again that wait and whose slots have room now.
    pub(crate) fn take_up(&self, ledger: MutexGuard<'_, Ledger>) {
        if !self.any_stalled.load(Ordering::Acquire) {
            return;
        }
        let mut stalled = self.stalled.lock().expect(POISONED);
        let (ready, others) = std::mem::take(&mut *stalled)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|(slot, _)| ledger.has_room(*slot));
        self.any_stalled.store(!others.is_empty(), Ordering::Release);
        *stalled = others;
        drop(stalled);
        drop(ledger);
        ready.into_iter().for_each(|(slot, queue)| self.post_again(slot, queue));
    }

    /// A queue is to be processed again soon.
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
        // The event first: what is posted after the list was taken signals again.
        drain(&self.completions_event);
        std::mem::take(&mut *self.completions.lock().expect(POISONED)).waiting
    }

    /// Takes the completions that wait for one slot, leaving the others.
    pub(crate) fn take_completions_of(&self, slot: u16) -> Vec<Completion> {
        let mut completions = self.completions.lock().expect(POISONED);
        let all = std::mem::take(&mut completions.waiting);
        let (of_slot, others) = all.into_iter().partition(|completion| completion.slot() == slot);
        completions.waiting = others;
        completions.again.retain(|(of, _)| *of != slot);
        of_slot
    }

    /// A power event that may happen. P7: it has not happened before the machine is off, or reset: it is settled then, so
    /// that whoever goes on from a checkpoint of before carries it out.
    fn power(&self, request: Performable) {
        self.assert_own(&request);
        let event = power_event_of(&request);
        let mut waiting = self.power.lock().expect(POISONED);
        if waiting.iter().any(|other| power_event_of(other) == event) {
            drop(waiting);
            // The one that waits stands for both.
            return self.settle([request]);
        }
        waiting.push_back(request);
        drop(waiting);
        signal(&self.power_event);
    }

    pub(crate) fn power_event(&self) -> &EventFd {
        &self.power_event
    }

    /// The machine has been reset: all that asked for it has taken effect.
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
        // The event first: what comes after the look signals again.
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

/// Wakes whoever waits for an event.
pub(crate) fn signal(event: &EventFd) {
    // Fails only when the counter is at its limit, and then the event is signalled anyway.
    let _ = event.write(1);
}

fn drain(event: &EventFd) {
    // Fails only when nothing was signalled.
    let _ = event.read();
}

/// So many reasons are remembered (P9): those of several threads, or of several members of an arbiter, take turns.
const REMEMBERED: usize = 8;
/// A reason that is new is told after so long: of several threads each may have another one.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// A thread that waits for the fence; one line tells of all of them, and another one when the reason is a new one.
struct Waiting<'c> {
    core: &'c Core,
    since: Instant,
}

impl<'c> Waiting<'c> {
    /// Begins to wait, or goes on waiting, for `reason`.
    fn tell(waiting: &mut Option<Self>, core: &'c Core, reason: String) {
        waiting.get_or_insert_with(|| {
            core.waiting.fetch_add(1, Ordering::AcqRel);
            Self { core, since: Instant::now() }
        });
        let mut told = core.told.lock().expect(POISONED);
        let is_known = told
            .as_ref()
            .is_some_and(|(known, at)| known.contains(&reason) || at.elapsed() < TELL_AGAIN);
        if !is_known {
            let (mut known, _) = told.take().unwrap_or_else(|| (Vec::new(), Instant::now()));
            known.truncate(REMEMBERED - 1);
            known.insert(0, reason.clone());
            *told = Some((known, Instant::now()));
            drop(told);
            log::warn!("effects are held: {reason}");
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.core.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.core.told.lock().expect(POISONED) = None;
            log::info!("effects are held no longer, after {:?}", self.since.elapsed());
        }
    }
}
