//! The primary's engine: it drives the protocol core with KVM, the link, the arbiter and the clock.
//!
//! ```text
//!   device thread   Sealer: policy, pause, collect, resume ──► sender thread ──► link
//!   reader thread   link ──► frames ──┐
//!   ticker thread   deadlines ────────┼──► Engine::event ──► Primary ──► actions, performed
//!   arbiter thread  answers ──────────┘     (one lock)                    in order under it
//! ```
//!
//! Lock order: first the core, then the locks that an action needs (the gate's locks, a channel). A thread that holds a device
//! slot or the ledger never calls [`Engine::event`].

mod checkpoint;
mod claims;
mod counter_mark;
mod images;
mod live;
mod makings;
mod operator;
mod outbox;
mod precopy;
mod sealer;
mod sender;
mod session;
mod status;
mod steps;
mod watchdog;

pub use checkpoint::{MachineState, StateBlobError, hash_memory};
use kemari_arbiter::{Answer, Arbiter, ask};
use kemari_audit::{Recorder, Won};
use kemari_confine::logging::STATE;
use kemari_confine::seccomp::{self, Launcher, Role};
pub use makings::Makings;
pub use sealer::Sealer;
pub(crate) use session::{ReadEnd, Watched, describe, read_frames};
pub use status::{EngineStats, Takeover};
pub use steps::{Step, Steps};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use ft_core::pages::PAGE_SIZE;
use ft_core::primary::{Action, Event, Phase, Primary, PrimaryOptions, Report};
use ft_core::standby::TakenOver;
use ft_core::wire::{ByeReason, Message};
use ft_core::{LinkId, Term, Time};
use io_gate::host::CommitAuthority;
use vmm_sys_util::timerfd::TimerFd;

use crate::link::{LinkAddr, LinkSecurity};
use kemari_machine::{Ended, Machine};

use claims::Last;

/// How long a failed machine that ends waits for the core to see whether it has a standby.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// How long a machine that ends waits until its standby has its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a machine that ends waits for released effects: longer than a fence without an answer and a console that is not
/// read take.
const REST: Duration = Duration::from_secs(8);
/// As [`REST`], for a machine that is known to be stuck.
const STUCK_REST: Duration = Duration::from_secs(1);
/// How long an operator's request waits for a stuck engine before it is refused.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// How long a machine that ends waits for the arbiter's answer to a claim: a winner keeps still for at most two seconds.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// The options of the protection.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The virtual machine's name.
    pub name: String,
    /// The standby's address; `None`: not protected until `kemari ctl protect`.
    pub standby: Option<LinkAddr>,
    /// How the link is secured.
    pub security: LinkSecurity,
    /// The audit log: what each side did, and when.
    pub audit: Option<Arc<Recorder>>,
    /// Whether both sides hash memory and state at each epoch.
    pub verify: bool,
    /// Bytes of the cache of sent pages; 0: changed pages are always sent whole.
    pub delta_cache: u64,
    /// How long the machine may make no progress before its standby takes over.
    pub stall_timeout: Duration,
    /// The protocol core's options.
    pub primary: PrimaryOptions,
    /// When epochs end.
    pub policy: ft_core::policy::PolicyOptions,
    /// Hooks for tests.
    pub steps: Steps,
}

/// See the module.
pub struct Engine {
    machine: Arc<Machine>,
    arbiter: Option<Arc<dyn Arbiter>>,
    options: EngineOptions,
    origin: Instant,
    core: Mutex<Core>,
    deadline_changed: Condvar,
    /// Taken by the sealer when it is made.
    epoch_timer: Mutex<Option<TimerFd>>,
    /// What only the live session may touch.
    tracking: live::Tracking,
    stats: Mutex<EngineStats>,
    watchdog: watchdog::Watchdog,
    /// Counts connections under way: one more reference for each.
    attempts: Arc<()>,
    /// See [`Engine::mark_for`]. Lock order: taken with no lock held, and the core under it; only threads that connect to a
    /// standby take it.
    marking: Mutex<()>,
    claims: Arc<claims::Claims>,
    /// Starts threads that connect and ask the arbiter: threads that drive the engine may have given up the right to start any.
    launcher: Launcher,
    /// How the machine has ended; set when nothing is left to do.
    put_away: OnceLock<Ended>,
    /// The way to the standby of the session. Taken with or without the core held; no lock is taken under it.
    voice: Mutex<Option<session::Voice>>,
    /// Whether a standby has acknowledged a checkpoint since the guest runs here.
    checkpointed: AtomicBool,
}

struct Core {
    primary: Primary,
    standby: Option<LinkAddr>,
    /// Set and cleared together with the session that [`Engine::live`] accepts.
    session: Option<session::Session>,
    /// The connection that is being made; results of earlier ones are ignored.
    connecting: Option<LinkId>,
    /// The state of the operator's last request for a standby.
    attempt: operator::Attempt,
    /// The session whose first checkpoint has not been taken yet.
    seal_first: Option<LinkId>,
    next_link: u64,
    stopped: bool,
    /// When the ticker next looks at the clock; `None`: it is about to.
    ticks_at: Option<Time>,
}

impl Engine {
    /// Makes the engine of a machine that starts the guest in `term`.
    pub fn begin(
        makings: Makings,
        machine: Arc<Machine>,
        authority: CommitAuthority,
        arbiter: Option<Arc<dyn Arbiter>>,
        term: Term,
        options: EngineOptions,
    ) -> Arc<Self> {
        let start = |origin: Time, options: &EngineOptions| {
            Primary::begin(authority, options.primary, term, origin)
        };
        Self::start(makings, machine, arbiter, options, start)
    }

    /// Makes the engine of a machine that this process has just taken over. P7: it cannot fail: the guest exists only here, and
    /// `taken` and `authority` exist only once.
    pub fn after_takeover(
        makings: Makings,
        machine: Arc<Machine>,
        authority: CommitAuthority,
        arbiter: Option<Arc<dyn Arbiter>>,
        taken: TakenOver,
        options: EngineOptions,
    ) -> Arc<Self> {
        let start = |origin: Time, options: &EngineOptions| {
            Primary::after_takeover(authority, options.primary, taken, origin)
        };
        Self::start(makings, machine, arbiter, options, start)
    }

    fn start(
        makings: Makings,
        machine: Arc<Machine>,
        arbiter: Option<Arc<dyn Arbiter>>,
        mut options: EngineOptions,
        start: impl FnOnce(Time, &EngineOptions) -> (Primary, Vec<Action>),
    ) -> Arc<Self> {
        options.primary.arbiter = arbiter.is_some();
        options.primary.protect = options.standby.is_some();
        let (primary, actions) = start(Time(0), &options);
        let tracking = live::Tracking::new(machine.vm().dirty_tracker());
        let Makings { epoch_timer, launcher, threads } = makings;
        let engine = Arc::new(Self {
            machine,
            arbiter,
            origin: Instant::now(),
            core: Mutex::new(Core {
                primary,
                standby: options.standby.clone(),
                session: None,
                connecting: None,
                attempt: operator::Attempt::default(),
                seal_first: None,
                next_link: 1,
                stopped: false,
                ticks_at: None,
            }),
            options,
            deadline_changed: Condvar::new(),
            epoch_timer: Mutex::new(Some(epoch_timer)),
            tracking,
            stats: Mutex::new(EngineStats::default()),
            watchdog: watchdog::Watchdog::default(),
            attempts: Arc::default(),
            marking: Mutex::default(),
            claims: Arc::default(),
            launcher,
            put_away: OnceLock::new(),
            voice: Mutex::default(),
            checkpointed: AtomicBool::new(false),
        });
        // P2: an effect that the fence has stopped proves the loss of the term as well as the arbiter's answer does.
        let fenced = Arc::downgrade(&engine);
        engine.machine.set_fence_hook(move || {
            if let Some(engine) = fenced.upgrade() {
                let reason = "another machine holds a newer term".to_owned();
                engine.event(Event::Fenced { reason });
            }
        });
        // The threads wait for the core and end with it.
        let mut core = engine.lock();
        threads.begin(&engine);
        engine.perform(&mut core, actions);
        drop(core);
        engine
    }

    /// Gives an event to the core and performs the actions that it returns.
    pub fn event(self: &Arc<Self>, event: Event) {
        let mut core = self.lock();
        self.event_locked(&mut core, event);
    }

    fn event_locked(self: &Arc<Self>, core: &mut Core, event: Event) {
        self.tell_progress(core);
        if core.stopped {
            return;
        }
        if let Event::Frame { link, frame } = &event {
            self.record_bye(core, *link, &frame.message);
        }
        let actions = core.primary.handle(self.now(), event);
        match actions {
            Ok(actions) => self.perform(core, actions),
            // Expected: a race between two of our threads, for instance an answer for a link that has gone.
            Err(illegal) => log::debug!("{illegal}"),
        }
        self.tell_ticker(core);
    }

    /// Reports the begin and the end of a stall to the core before any event that may follow from it, for instance the loss of
    /// a link that was closed because of the stall.
    fn tell_progress(self: &Arc<Self>, core: &mut Core) {
        let primary = &core.primary;
        // P7: the standby could not go on either, so the guest waits here for the answer.
        let hands_over = self.watchdog.look_hangs()
            && (primary.is_stalled()
                || primary.phase().standby_may_take_over() && primary.lack().is_none());
        let event = match (self.watchdog.is_stalled() || hands_over, primary.is_stalled()) {
            (true, false) => Event::Stalled { reason: self.stall_reason() },
            (false, true) => Event::Recovered,
            _ => return,
        };
        if core.stopped {
            return;
        }
        match core.primary.handle(self.now(), event) {
            Ok(actions) => self.perform(core, actions),
            Err(illegal) => log::debug!("{illegal}"),
        }
    }

    /// Wakes the ticker if it would look too late.
    fn tell_ticker(&self, core: &Core) {
        let deadline = core.primary.next_deadline();
        let sooner = |at| deadline.is_some_and(|deadline| deadline < at);
        if core.stopped || core.ticks_at.is_some_and(sooner) {
            self.deadline_changed.notify_all();
        }
    }

    /// Stops a machine that has ended. Returns the term to release if no machine is to continue the guest and no disk can still
    /// be written.
    pub fn conclude(self: &Arc<Self>, ended: &Ended) -> Option<Term> {
        // P7: the standby is told first. What follows may take longer than it bears silence, and it would bring the guest back.
        let left = match ended {
            Ended::PoweredOff => self.leave(Event::GuestPoweredOff),
            Ended::Signal(_) | Ended::Unprotected(_) => self.leave(Event::OperatorStop),
            Ended::Failed(why) => self.leave_failed(why),
            Ended::Fenced(_) => None,
        };
        let limit = if self.watchdog.is_stalled() { STUCK_REST } else { REST };
        let rests = self.machine.stop_within(limit);
        if !rests {
            log::error!(
                "the machine has not come to rest within {limit:?}, expected its devices to; what was released and is not \
                 performed yet is lost with it"
            );
        }
        let (term, closed) = left?;
        let term = self.last_term(term)?;
        // P2: once nothing more is written, others may have the disks and the name. This holds even for a guest that runs on
        // because the device thread is stuck: from here on the gate lets nothing out.
        let free = self.machine.gate().free_disks();
        if let Some(closed) = closed {
            // Wait only so that the last words leave before the process exits.
            let _ = closed.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LAST_WORDS);
        }
        free.then_some(term)
    }

    /// The term in which the machine ends: `term`, or a later one whose claim is won by now; `None` if another machine has the
    /// later one.
    fn last_term(&self, term: Term) -> Option<Term> {
        match self.claims.settled(LAST_ANSWER) {
            Ok(None) => Some(term),
            Ok(Some(Last::Won(won))) => Some(term.max(won)),
            Ok(Some(Last::Lost)) => {
                log::warn!("another machine runs the guest now: nothing is released");
                None
            }
            Err(()) => {
                log::warn!(
                    "the arbiter has not answered within {LAST_ANSWER:?} whether term {} is this machine's: the next start may need \
                     --seize",
                    term.next()
                );
                Some(term)
            }
        }
    }

    /// Tells the standby that this side ends, if there is a standby. Returns the term, and what closes when the message has
    /// left; `None` when the engine is stuck.
    fn leave(self: &Arc<Self>, event: Event) -> Option<(Term, Option<session::Closed>)> {
        let Some(mut core) = self.lock_within(LAST_WORDS) else {
            log::error!("cannot tell the standby of the end: the engine is stuck");
            return None;
        };
        let (term, closed) =
            (core.primary.term(), core.session.as_ref().map(session::Session::closed));
        self.event_locked(&mut core, event);
        Some((term, closed))
    }

    /// Lets a standby take over at once, without waiting for the rest of this side's end. P7: without a standby that holds a
    /// checkpoint no other machine can continue the guest; this side then leaves as on an operator's stop, and the next start
    /// need not seize the name.
    fn leave_failed(self: &Arc<Self>, why: &str) -> Option<(Term, Option<session::Closed>)> {
        // Do not wait long: signs of life continue until the watchdog knows of the failure.
        let nobody_else = |phase: Phase| !phase.standby_may_take_over() && phase != Phase::Stopped;
        if let Some(mut core) = self.lock_within(LAST_LOOK)
            && nobody_else(core.primary.phase())
        {
            let term = core.primary.term();
            let closed = core.session.as_ref().map(session::Session::closed);
            self.event_locked(&mut core, Event::OperatorStop);
            return Some((term, closed));
        }
        self.watchdog.has_failed(why);
        let _ = self.leave(Event::Tick);
        None
    }

    /// Tells the standby why this process dies, whatever state its other threads are in, and waits at most `patience` until the
    /// standby has read it. The standby treats it as a lost link with a reason: it asks the arbiter (P2).
    pub fn last_word(&self, reason: String, patience: Duration) {
        let voice = self.voice().take();
        // P7: take the voice first: the standby closes the link now, and this side must not claim the next term because of
        // that.
        if let Some(voice) = &voice {
            voice.last_word(reason.clone());
        }
        self.watchdog.has_failed(&reason);
        if let Some(voice) = &voice {
            voice.is_heard(patience);
        }
    }

    /// Whether a standby has acknowledged a checkpoint since the guest runs here.
    pub fn has_checkpointed(&self) -> bool {
        self.checkpointed.load(Ordering::Acquire)
    }

    /// Writes an event to the audit log before this process dies.
    pub fn record_last(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.options.audit {
            audit.settle(event);
        }
    }

    /// Number of pages in the cache of sent pages; at most the guest's.
    fn delta_pages(&self) -> usize {
        let bytes = self.options.delta_cache.min(self.machine.config().memory);
        usize::try_from(bytes).map_or(0, |bytes| bytes / PAGE_SIZE)
    }

    /// The machine that this engine protects.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The term in which the machine runs.
    pub fn term(&self) -> Term {
        self.lock().primary.term()
    }

    /// Why the machine is not protected, if there is a reason.
    pub fn reason(&self) -> Option<String> {
        self.lock().primary.reason().map(str::to_owned)
    }

    /// Why a standby refuses this machine, if so.
    pub fn refusal(&self) -> Option<String> {
        self.lock().primary.refusal().map(str::to_owned)
    }

    /// The state of the protection.
    pub fn phase(&self) -> Phase {
        self.lock().primary.phase()
    }

    fn perform(self: &Arc<Self>, core: &mut Core, actions: Vec<Action>) {
        for action in actions {
            self.perform_one(core, action);
        }
    }

    fn perform_one(self: &Arc<Self>, core: &mut Core, action: Action) {
        let gate = self.machine.gate();
        match action {
            Action::Connect => self.connect(core),
            Action::Send { link, frame } => {
                if let Some(session) = core.session_of(link) {
                    session.send_control(&frame);
                }
            }
            Action::CloseLink { link, reason } => {
                log::debug!("link {} closed: {reason}", link.0);
                if let Some(session) = core.session_of(link) {
                    self.record(kemari_audit::Event::Left { session: session.number() });
                    self.end_session(core);
                }
            }
            Action::StartPrecopy { link, session: number, images, .. } => {
                let sign = core.primary.sign_of_life(self.now()).map(|(_, sign)| sign);
                if let Some(session) = core.session_of(link) {
                    session.start_precopy(number, &images, sign.as_ref());
                }
            }
            Action::SealFirst { link } => {
                core.seal_first = Some(link);
                self.wake_sealer();
            }
            Action::Hold => gate.hold(),
            Action::Release { proof, latency } => {
                self.checkpointed.store(true, Ordering::Release);
                if let Some(session) = &core.session {
                    self.options.steps.reached(session.link(), Step::Releasing);
                }
                self.record_ack(core, proof.epoch());
                gate.release(proof);
                self.stats().commit_latency.add_time(latency);
                // A slot in the pipeline is free again.
                self.wake_sealer();
            }
            Action::RunAlone(proof) => gate.run_alone(proof),
            Action::AskArbiter { term, why } => self.ask_arbiter(term, why),
            Action::Stop { reason, fenced } => self.stop(core, reason, fenced),
            Action::Report(report) => {
                core.attempt.note(&report);
                if let Report::RunsAlone { term, .. } = &report {
                    let (how, term) = (Won::Alone, term.0);
                    let won =
                        kemari_audit::Event::TermWon { how, term, epoch: 0, session: 0, next: 0 };
                    self.record(won);
                }
                let is_new = self.stats().report(&report);
                match &report {
                    _ if !is_new => log::debug!("{report}"),
                    Report::Verified { verified, .. } if verified.agree => log::debug!("{report}"),
                    Report::Verified { .. } => log::error!(target: STATE, "{report}"),
                    Report::Joined { .. } | Report::Protected { .. } | Report::Recovered => {
                        log::info!(target: STATE, "{report}");
                    }
                    _ => log::warn!(target: STATE, "{report}"),
                }
            }
        }
    }

    /// Ends the session: its sender sends what is queued, then closes. The session touches nothing that the next one uses (P4,
    /// P8).
    fn end_session(&self, core: &mut Core) {
        self.tracking.end();
        *self.voice() = None;
        core.session = None;
        core.seal_first = None;
    }

    fn record(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.options.audit {
            audit.record(event);
        }
    }

    /// P1: records the acknowledgement before it releases anything.
    fn record_ack(&self, core: &Core, epoch: ft_core::Epoch) {
        if let Some(session) = &core.session {
            let (term, session) = (core.primary.term().0, session.number());
            self.record(kemari_audit::Event::AckReceived { epoch: epoch.0, term, session });
        }
    }

    /// P2: records that a standby gives up the right to take over, which may open the gate.
    fn record_bye(&self, core: &Core, link: LinkId, message: &Message) {
        if let Message::Bye { reason, session, .. } = message
            && *reason != ByeReason::Detach
            && core.session_of(link).is_some()
        {
            self.record(kemari_audit::Event::HeardGivenUp { session: *session });
        }
    }

    fn stop(&self, core: &mut Core, reason: String, fenced: bool) {
        core.stopped = true;
        self.end_session(core);
        if fenced {
            self.machine.gate().set_fenced_off();
            self.machine.end(Ended::Fenced(reason));
        }
    }

    /// Asks the arbiter in a thread of its own: see [`ask`].
    fn ask_arbiter(self: &Arc<Self>, term: Term, why: String) {
        let Some(arbiter) = self.arbiter.clone() else { return };
        let event = move |answer| match answer {
            Answer::Granted => Event::ArbiterGranted { term },
            Answer::Denied { holder } => Event::ArbiterDenied { term, holder },
            Answer::Unreachable { reason } => Event::ArbiterUnreachable { reason },
        };
        let (asking, failed) = (self.clone(), self.clone());
        let under_way = self.claims.begin();
        self.launcher.launch(
            "arbiter",
            move || {
                let answer = ask(&*arbiter, term, &why);
                under_way.is_answered(term, &answer);
                asking.event(event(answer));
            },
            move |error| failed.event(event(Answer::no_thread(&error))),
        );
    }

    /// The thread `ticker`.
    fn tick_on(engine: Weak<Self>) {
        let Some(engine) = engine.upgrade() else { return };
        seccomp::enter(Role::Timer, &engine.machine.wakes());
        engine.tick();
    }

    fn tick(self: &Arc<Self>) {
        let mut core = self.lock();
        while !core.stopped {
            let now = self.now();
            let deadline = core.primary.next_deadline();
            match deadline {
                Some(deadline) if deadline <= now => self.event_locked(&mut core, Event::Tick),
                _ => {
                    let wait = deadline.map_or(Duration::from_secs(3600), |d| d.since(now));
                    core.ticks_at = Some(now + wait);
                    core = self
                        .deadline_changed
                        .wait_timeout(core, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    core.ticks_at = None;
                }
            }
        }
    }

    fn wake_sealer(&self) {
        // The counter cannot overflow in the life of a machine, and a full one wakes the thread as well.
        let _ = self.machine.engine_event().write(1);
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the core for a thread that must not wait for a stuck engine.
    fn lock_within(&self, limit: Duration) -> Option<MutexGuard<'_, Core>> {
        const LOOK_AGAIN: Duration = Duration::from_millis(2);
        let begun = Instant::now();
        loop {
            match self.core.try_lock() {
                Ok(core) => return Some(core),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begun.elapsed() >= limit => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn voice(&self) -> MutexGuard<'_, Option<session::Voice>> {
        self.voice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Asks again for the first checkpoint of the session over `link`, if that session is still there.
    fn seal_first_again(&mut self, link: LinkId) {
        if self.seal_first.is_none() && self.session_of(link).is_some() {
            self.seal_first = Some(link);
        }
    }

    fn session_of(&self, link: LinkId) -> Option<&session::Session> {
        self.session.as_ref().filter(|session| session.link() == link)
    }
}
