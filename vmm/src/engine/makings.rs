//! What an engine takes of the system: had before there is an engine, so that a lack of it has changed nothing and can be
//! tried again (P7).

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::Launcher;
use kemari_confine::threads;
use vmm_sys_util::timerfd::TimerFd;

use super::Engine;

/// Tells a thread that waits for it of the engine. Dropped: the thread ends.
type Waiting = SyncSender<Weak<Engine>>;

/// See the module.
pub struct Makings {
    pub(super) epoch_timer: TimerFd,
    pub(super) launcher: Launcher,
    pub(super) threads: Waiters,
}

/// The engine's threads, which wait for it.
pub(super) struct Waiters(Vec<Waiting>);

impl Makings {
    /// Of an engine whose machine asks this arbiter.
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

/// A thread that does `work` once there is an engine.
fn waiting(name: &str, work: fn(Weak<Engine>)) -> io::Result<Waiting> {
    let (tell, told) = sync_channel(1);
    threads::start(name, move || {
        if let Ok(engine) = told.recv() {
            work(engine);
        }
    })?;
    Ok(tell)
}

impl Waiters {
    /// Has them begin.
    pub(super) fn begin(self, engine: &Arc<Engine>) {
        for thread in self.0 {
            // There is room for one, and none of them has ended.
            let _ = thread.send(Arc::downgrade(engine));
        }
    }
}
