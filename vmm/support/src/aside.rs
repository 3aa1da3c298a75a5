//! Work that may block, done aside: by a thread of its own, which is waited for, and not for ever (P9).

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why nothing has come of it.
#[derive(Debug)]
pub enum NoAnswer {
    /// There was no thread for it.
    NoThread(io::Error),
    /// It has not come to an end in time, and is left to itself.
    Late,
    /// Its thread has panicked.
    Panicked,
}

/// What will come of such work.
pub struct Answer<T>(Receiver<io::Result<T>>);

/// Says what has come of it; where nobody waits any more, drops it: that is part of the work.
pub struct Tell<T>(SyncSender<io::Result<T>>);

/// For work that a thread of the caller's choice will do.
pub fn answer<T>() -> (Tell<T>, Answer<T>) {
    // No room: what comes too late is never with whoever has waited.
    let (tell, told) = sync_channel(0);
    (Tell(tell), Answer(told))
}

/// Has `thread` do `work`.
///
/// # Errors
/// When there is no thread for it.
pub fn begin<T: Send + 'static>(
    thread: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Answer<T>, NoAnswer> {
    let (tell, answer) = answer();
    let begun = std::thread::Builder::new().name(thread.to_owned()).spawn(|| tell.done(work()));
    begun.map(|_| answer).map_err(NoAnswer::NoThread)
}

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// When nothing comes of it within `patience`.
    pub fn within(self, patience: Duration) -> Result<T, NoAnswer> {
        match self.0.recv_timeout(patience) {
            Ok(told) => told.map_err(NoAnswer::NoThread),
            Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Panicked),
        }
    }
}

impl<T> Tell<T> {
    /// The work is done.
    pub fn done(self, answer: T) {
        let _ = self.0.send(Ok(answer));
    }

    /// Its double says that there is no thread for the work. Not to be called by whoever will wait.
    pub fn or_no_thread(&self) -> impl FnOnce(io::Error) + Send + use<T>
    where
        T: Send + 'static,
    {
        let tell = self.0.clone();
        move |error| drop(tell.send(Err(error)))
    }
}

/// Whether such work is under way: one thread at most is stuck in it.
#[derive(Clone, Debug, Default)]
pub struct Aside(Arc<State>);

#[derive(Debug, Default)]
struct State {
    under_way: Mutex<bool>,
    over: Condvar,
}

/// Work is under way until this is dropped.
struct UnderWay(Arc<State>);

impl Aside {
    /// Has `thread` do `work`, which is about `what`, and waits for what comes of it. Where other work is under way it is not
    /// begun.
    ///
    /// # Errors
    /// What came of it, or that nothing has within `patience`; it is left to itself then.
    pub fn run<T: Send + 'static>(
        &self,
        (thread, what): (&str, &str),
        patience: Duration,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let Some(under_way) = self.begin() else { return Err(format!("{what}: still no answer")) };
        let begun = begin(thread, move || (work(), under_way));
        match begun.and_then(|answer| answer.within(patience)) {
            Ok((done, _under_way)) => done,
            Err(NoAnswer::NoThread(error)) => Err(format!("{what}: no thread for it: {error}")),
            Err(NoAnswer::Late) => Err(format!("{what}: no answer for {patience:?}")),
            Err(NoAnswer::Panicked) => Err(format!("{what}: its thread has panicked")),
        }
    }

    /// Waits until no work is under way any more: whether that is so within `patience`.
    pub fn is_over_within(&self, patience: Duration) -> bool {
        let waited =
            self.0.over.wait_timeout_while(self.0.lock(), patience, |under_way| *under_way);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn begin(&self) -> Option<UnderWay> {
        let was_under_way = std::mem::replace(&mut *self.0.lock(), true);
        (!was_under_way).then(|| UnderWay(self.0.clone()))
    }
}

impl State {
    /// Guards a word only.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const TASK: (&str, &str) = ("work", "the work");

    /// What takes until the test says so to be dropped.
    struct Clings(Receiver<()>);

    impl Drop for Clings {
        fn drop(&mut self) {
            self.0.recv().unwrap();
        }
    }

    /// P9. Fails where what came too late is dropped by whoever waited for it, or after other work may begin.
    #[test]
    fn what_comes_too_late_is_dropped_before_other_work_begins() {
        let aside = Aside::default();
        let (go_on, may_go_on) = channel();
        let (let_go, is_let_go) = channel();
        let late = aside.run(TASK, Duration::from_millis(1), move || {
            may_go_on.recv().unwrap();
            Ok(Clings(is_let_go))
        });
        assert!(late.is_err_and(|error| error.contains("no answer for")));
        go_on.send(()).unwrap();
        assert!(!aside.is_over_within(Duration::from_millis(50)));
        let refused = aside.run(TASK, LONG, || Ok(()));
        assert_eq!(refused, Err("the work: still no answer".to_owned()));
        let_go.send(()).unwrap();
        assert!(aside.is_over_within(LONG));
        assert_eq!(aside.run(TASK, LONG, || Ok(7)), Ok(7));
        assert!(aside.is_over_within(Duration::ZERO));
    }
}
