//! The sealer ends epochs. It runs on the device thread, so no device is inside a request when a
//! checkpoint is taken.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use ft_core::policy::{Decision, EpochPolicy, PolicyInputs};
use ft_core::{LinkId, Time};
use kemari_machine::LoopError;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::Engine;
use super::item::Item;
use super::pause::Pause;
use super::session::SendingSession;

/// A guest that has written at most this many pages in an epoch counts as idle: these are its timer
/// tick and little else.
const IDLE_PAGES: u64 = 24;

/// Time to the next look when a vCPU cannot continue or the guest has not run: this same thread
/// serves its reset or start.
const SOON: Duration = Duration::from_millis(1);

/// Why an engine has no sealer.
#[derive(Debug, thiserror::Error)]
pub enum SealerError {
    /// The sealer cannot be created.
    #[error("cannot set up checkpoints: {0}")]
    Make(#[from] io::Error),
    /// The device thread is gone, or stuck.
    #[error(transparent)]
    Thread(#[from] LoopError),
}

impl Engine {
    /// Makes the device thread end epochs.
    ///
    /// # Errors
    /// When the engine already has a sealer, or the device thread does not accept it.
    pub fn install_sealer(self: &Arc<Self>) -> Result<(), SealerError> {
        let sealer = Sealer::new(self.clone())?;
        let added = self.machine.device_loop().call(move |context| {
            context.add(Box::new(sealer));
        });
        Ok(added?)
    }
}

/// Ends epochs; subscribes to the device thread's loop.
pub struct Sealer {
    engine: Arc<Engine>,
    policy: EpochPolicy,
    timer: TimerFd,
    last_seal: Time,
    last_dirty: u64,
    last_pause: Duration,
    /// See [`PolicyInputs::expected`].
    expected: usize,
    first_held_at: Option<Time>,
    /// The number of held effects when it last changed, and the time of that change.
    last_held: (usize, Option<Time>),
}

impl Sealer {
    /// Creates the sealer of an engine.
    ///
    /// # Errors
    /// When the engine already has one.
    pub fn new(engine: Arc<Engine>) -> io::Result<Self> {
        let policy = EpochPolicy::new(engine.options.policy);
        let timer = engine.epoch_timer.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Self {
            engine,
            policy,
            timer: timer.ok_or_else(|| {
                io::Error::other("expected one sealer of an engine, found a second")
            })?,
            last_seal: Time(0),
            last_dirty: 0,
            last_pause: Duration::ZERO,
            expected: 0,
            first_held_at: None,
            last_held: (0, None),
        })
    }

    fn look(&mut self) {
        let engine = self.engine.clone();
        let (seal_first, may_seal, link) = {
            let mut state = engine.lock();
            engine.watchdog.looked();
            let first = state.seal_first.take();
            let primary = &state.primary;
            let room = state.session.as_ref().is_none_or(SendingSession::has_room);
            (first, primary.may_seal() && room, primary.link())
        };
        if let Some(link) = seal_first {
            if !self.seal(link) {
                engine.lock().seal_first_again(link);
            }
            return;
        }
        // The next acknowledgement wakes this thread, if too many epochs are unacknowledged now.
        let Some(link) = link.filter(|_| may_seal) else { return };
        let now = engine.now();
        // Count the effects of this epoch only: those of earlier epochs wait for their
        // acknowledgement, not for a checkpoint.
        let held = engine.machine.gate().held_in_epoch();
        self.first_held_at = match held {
            0 => None,
            _ => self.first_held_at.or(Some(now)),
        };
        if held != self.last_held.0 {
            self.last_held = (held, Some(now));
        }
        let inputs = PolicyInputs {
            held,
            first_held_at: self.first_held_at,
            last_held_at: self.last_held.1,
            expected: self.expected,
            last_pause: self.last_pause,
            dirty_pages: self.last_dirty.max(1),
            last_seal: self.last_seal,
            guest_idle: self.last_dirty <= IDLE_PAGES,
        };
        match self.policy.next(now, &inputs) {
            Decision::SealNow(_) => {
                self.seal(link);
            }
            Decision::WaitUntil(time) => {
                if let Err(error) = self.look_again_in(time.since(now)) {
                    log::error!(
                        "cannot set the epoch timer, so that the epoch ends at once: {error}"
                    );
                    self.seal(link);
                }
            }
        }
    }

    fn look_again_in(&mut self, wait: Duration) -> io::Result<()> {
        // A timer set to zero never fires.
        let wait = wait.max(Duration::from_micros(1));
        self.timer.reset(wait, None).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn look_again_soon(&mut self) {
        if let Err(error) = self.look_again_in(SOON) {
            log::error!("cannot set the epoch timer: {error}");
        }
    }

    /// Ends the epoch for the session over `link`. Returns `false` if that is not possible yet: the
    /// guest has not run, or a vCPU cannot continue.
    fn seal(&mut self, link: LinkId) -> bool {
        let engine = self.engine.clone();
        if !engine.machine.has_run() {
            self.look_again_soon();
            return false;
        }
        let waited = self.first_held_at.map(|first| engine.now().since(first));
        let mut pause = Pause::begin();
        engine.machine.vcpus().pause();
        pause.kicked = Instant::now();
        if engine.machine.vcpus().has_dead() {
            // P4: no machine could continue from this state. The event that resets or ends the
            // machine will reach this thread.
            engine.machine.vcpus().resume();
            self.look_again_soon();
            return false;
        }
        let taken = engine.take(link, &mut pause);
        engine.machine.vcpus().resume();
        pause.resumed = Instant::now();
        self.last_pause = pause.resumed - pause.begun;
        // The guest runs again: the rest does not lengthen its pause.
        if let Ok(Some(taken)) = &taken {
            // Decaying maximum: one small epoch between large ones says little.
            self.expected = taken.staged.max(self.expected * 3 / 4);
        }
        let sealed = match taken {
            Ok(Some(taken)) => engine.seal_taken(link, taken),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match sealed {
            Ok(Some(checkpoint)) => {
                self.last_dirty = checkpoint.page_numbers.len() as u64;
                if let Ok(mut live) = engine.live(link) {
                    live.note(|stats| {
                        pause.note(stats, self.last_dirty);
                        stats.encode.add_time(pause.resumed.elapsed());
                        if let Some(waited) = waited {
                            stats.wait.add_time(waited);
                        }
                    });
                }
                if let Some(session) = engine.lock().session_of(link) {
                    session.send_checkpoint(Item::Checkpoint(Box::new(checkpoint)));
                }
            }
            Ok(None) => {}
            Err(error) => engine.give_session_up(link, &error),
        }
        self.last_seal = engine.now();
        self.first_held_at = None;
        self.last_held = (0, None);
        // The next acknowledgement or held effect wakes this thread. So does this timer.
        if let Err(error) = self.look_again_in(self.policy.least_gap(self.last_pause)) {
            // An acknowledgement or a held effect still wakes this thread.
            log::error!("cannot set the epoch timer: {error}");
        }
        true
    }
}

impl MutEventSubscriber for Sealer {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        // Each of the three events only wakes this thread: the core decides what there is to do.
        let fd = events.fd();
        let gate = self.engine.machine.gate().clone();
        if fd == gate.held_event().as_raw_fd() {
            let _ = gate.held_event().read();
        } else if fd == self.engine.machine.engine_event().as_raw_fd() {
            let _ = self.engine.machine.engine_event().read();
        } else {
            // Do not read the timer: an event served before this one may have set it again, and the
            // read would block the device thread. Clearing the timer drops the expiry; `look` sets
            // it again.
            let _ = self.timer.clear();
        }
        self.look();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let gate = self.engine.machine.gate().clone();
        for fd in [
            gate.held_event().as_raw_fd(),
            self.engine.machine.engine_event().as_raw_fd(),
            self.timer.as_raw_fd(),
        ] {
            let event = Events::new_raw(fd, EventSet::IN);
            if let Err(error) = ops.add(event) {
                log::error!("cannot watch for the end of an epoch: {error}");
            }
        }
    }
}
