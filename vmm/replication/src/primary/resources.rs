//! The system resources that an engine needs: timer, launcher and threads. They are allocated
//! before the engine exists, so that a failure changes nothing and the caller can try again (P7).

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::Launcher;
use kemari_confine::threads;
use vmm_sys_util::timerfd::TimerFd;

use super::Engine;

/// Hands the engine to a thread that waits for it. The thread ends if this is dropped first.
type Waiting = SyncSender<Weak<Engine>>;

/// See the module.
pub struct EngineResources {
    pub(super) epoch_timer: TimerFd,
    pub(super) launcher: Launcher,
    pub(super) threads: Waiters,
}

/// The engine's threads. Each waits for the engine.
pub(super) struct Waiters(Vec<Waiting>);

impl EngineResources {
    /// Allocates the resources of an engine. `arbiter` is the arbiter of its machine.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn new(arbiter: Option<&Arc<dyn Arbiter>>) -> io::Result<Self> {
        let mut threads =
            vec![waiting("ticker", Engine::tick_on)?, waiting("watchdog", Engine::watch_on)?];
        if arbiter.is_some() {
            threads.push(waiting("term", Engine::look_at_term)?);
        }
        let timer = TimerFd::new();
        Ok(Self {
            epoch_timer: timer.map_err(|error| io::Error::from_raw_os_error(error.errno()))?,
            launcher: Launcher::start()?,
            threads: Waiters(threads),
        })
    }
}

/// Starts a thread that waits for the engine and then runs `work`.
fn waiting(name: &str, work: fn(Weak<Engine>)) -> io::Result<Waiting> {
    let (tell, told) = sync_channel(1);
    threads::start_without_role(name, move || {
        if let Ok(engine) = told.recv() {
            work(engine);
        }
    })?;
    Ok(tell)
}

impl Waiters {
    /// Hands the engine to the threads.
    pub(super) fn begin(self, engine: &Arc<Engine>) {
        for thread in self.0 {
            // The send cannot fail: the channel holds one message, and each thread is waiting.
            let _ = thread.send(Arc::downgrade(engine));
        }
    }
}
