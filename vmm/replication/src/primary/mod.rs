//! The primary's engine: it drives the protocol core with KVM, the link, the arbiter and the clock.
//!
//! ```text
//!   device thread   Sealer: policy, pause, collect, resume ──► sender thread ──► link
//!   reader thread   link ──► frames ──┐
//!   ticker thread   deadlines ────────┼──► Engine::event ──► Primary ──► actions, performed
//!   claim thread    answers ──────────┘     (one lock)                    in order under it
//! ```
//!
//! Lock order: first the engine's state, then the locks that an action needs (the gate's locks, a
//! channel). A thread that holds a device slot or the ledger never calls [`Engine::event`].

mod actions;
mod capture;
mod claims;
mod connect;
mod counter_mark;
mod end;
mod events;
mod images;
mod item;
mod live;
mod operator;
mod options;
mod outbox;
mod output;
mod pause;
mod precopy;
mod require;
mod resources;
mod sealer;
mod sender;
mod session;
mod status;
mod steps;
mod watchdog;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ft_core::pages::PAGE_SIZE;
use ft_core::primary::{Action, Event, Phase, Primary};
use ft_core::standby::TakenOver;
use ft_core::{LinkId, Term, Time};
use io_gate::host::CommitAuthority;
use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::Launcher;
use kemari_machine::{Ended, Machine};
use vmm_sys_util::timerfd::TimerFd;

use crate::link::LinkAddr;

pub use options::EngineOptions;
pub use resources::EngineResources;
pub use sealer::{Sealer, SealerError};
pub use status::{EngineStats, Takeover};
pub use steps::{Step, StepHooks};

/// How long an operator's request waits for a stuck engine before it fails.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
pub struct Engine {
    machine: Arc<Machine>,
    arbiter: Option<Arc<dyn Arbiter>>,
    options: EngineOptions,
    origin: Instant,
    state: Mutex<EngineState>,
    deadline_changed: Condvar,
    /// The sealer takes it when it is created.
    epoch_timer: Mutex<Option<TimerFd>>,
    /// The data that only the live session may use.
    tracking: live::Tracking,
    stats: Mutex<EngineStats>,
    watchdog: watchdog::Watchdog,
    /// Counts the connection attempts under way: each holds one more reference.
    attempts: Arc<()>,
    /// See [`Engine::mark_for`]. Lock order: taken with no lock held; the engine's lock is taken
    /// under it. Only threads that connect to a standby take it.
    marking: Mutex<()>,
    claims: Arc<claims::Claims>,
    /// Starts the threads that connect and ask the arbiter: the threads that drive the engine may
    /// have lost the right to start any.
    launcher: Launcher,
    /// How the machine has ended. Set when no work is left.
    put_away: OnceLock<Ended>,
    /// The path to the standby of the session. Taken with or without the engine's state held; no
    /// lock is taken under it.
    final_sender: Mutex<Option<session::FinalSender>>,
    /// Whether a standby has acknowledged a checkpoint since the guest began to run here.
    checkpointed: AtomicBool,
}

struct EngineState {
    primary: Primary,
    standby: Option<LinkAddr>,
    /// Set and cleared together with the session that [`Engine::live`] accepts.
    session: Option<session::SendingSession>,
    /// The connection that is being opened. Results of earlier ones are ignored.
    connecting: Option<LinkId>,
    /// The state of the operator's last request for a standby.
    attempt: operator::Attempt,
    /// The link of the session whose first checkpoint has not been taken yet.
    seal_first: Option<LinkId>,
    next_link: u64,
    stopped: bool,
    /// When the ticker next looks at the clock; `None` while it is about to look.
    ticks_at: Option<Time>,
}

impl Engine {
    /// Creates the engine of a machine that starts the guest in `term`.
    pub fn begin(
        resources: EngineResources,
        machine: Arc<Machine>,
        authority: CommitAuthority,
        arbiter: Option<Arc<dyn Arbiter>>,
        term: Term,
        options: EngineOptions,
    ) -> Arc<Self> {
        let start = |origin: Time, options: &EngineOptions| {
            Primary::begin(authority, options.primary, term, origin)
        };
        Self::start(resources, machine, arbiter, options, start)
    }

    /// Creates the engine of a machine that this process has just taken over. P7: it cannot fail,
    /// because the guest exists only here, and `taken` and `authority` exist only once.
    pub fn after_takeover(
        resources: EngineResources,
        machine: Arc<Machine>,
        authority: CommitAuthority,
        arbiter: Option<Arc<dyn Arbiter>>,
        taken: TakenOver,
        options: EngineOptions,
    ) -> Arc<Self> {
        let start = |origin: Time, options: &EngineOptions| {
            Primary::after_takeover(authority, options.primary, taken, origin)
        };
        Self::start(resources, machine, arbiter, options, start)
    }

    fn start(
        resources: EngineResources,
        machine: Arc<Machine>,
        arbiter: Option<Arc<dyn Arbiter>>,
        mut options: EngineOptions,
        start: impl FnOnce(Time, &EngineOptions) -> (Primary, Vec<Action>),
    ) -> Arc<Self> {
        options.primary.arbiter = arbiter.is_some();
        options.primary.protect = options.standby.is_some();
        let (primary, actions) = start(Time(0), &options);
        let tracking = live::Tracking::new(machine.vm().dirty_tracker());
        let EngineResources { epoch_timer, launcher, threads } = resources;
        let engine = Arc::new(Self {
            machine,
            arbiter,
            origin: Instant::now(),
            state: Mutex::new(EngineState {
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
            final_sender: Mutex::default(),
            checkpointed: AtomicBool::new(false),
        });
        // P2: when the fence stops an effect, the term is lost, as it is by the arbiter's answer.
        let fenced = Arc::downgrade(&engine);
        engine.machine.set_fence_hook(move || {
            if let Some(engine) = fenced.upgrade() {
                let reason = "another machine holds a newer term".to_owned();
                engine.event(Event::Fenced { reason });
            }
        });
        // These threads first lock the state, which this thread holds until the actions are
        // performed.
        let mut state = engine.lock();
        threads.begin(&engine);
        engine.perform(&mut state, actions);
        drop(state);
        engine
    }

    /// Whether a standby has acknowledged a checkpoint since the guest began to run here.
    pub fn has_checkpointed(&self) -> bool {
        self.checkpointed.load(Ordering::Acquire)
    }

    /// Number of pages in the cache of sent pages, at most the number of the guest's pages.
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

    /// Why the machine is not protected, if the core knows a reason.
    pub fn reason(&self) -> Option<String> {
        self.lock().primary.reason().map(str::to_owned)
    }

    /// Why a standby refuses this machine, if one does.
    pub fn refusal(&self) -> Option<String> {
        self.lock().primary.refusal().map(str::to_owned)
    }

    /// The state of the protection.
    pub fn phase(&self) -> Phase {
        self.lock().primary.phase()
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state for a thread that must not wait for a stuck engine.
    fn lock_within(&self, limit: Duration) -> Option<MutexGuard<'_, EngineState>> {
        const LOOK_AGAIN: Duration = Duration::from_millis(2);
        let begun = Instant::now();
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begun.elapsed() >= limit => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn final_sender(&self) -> MutexGuard<'_, Option<session::FinalSender>> {
        self.final_sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineState {
    /// Requests the first checkpoint of the session over `link` again, if that session still
    /// exists.
    fn seal_first_again(&mut self, link: LinkId) {
        if self.seal_first.is_none() && self.session_of(link).is_some() {
            self.seal_first = Some(link);
        }
    }

    fn session_of(&self, link: LinkId) -> Option<&session::SendingSession> {
        self.session.as_ref().filter(|session| session.link() == link)
    }
}
