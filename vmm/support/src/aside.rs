//! Work that may block: it runs in a thread of its own, and the caller waits for it only for a limited time (P9).

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why there is no result.
#[derive(Debug)]
pub enum NoAnswer {
    /// The thread could not be started.
    NoThread(io::Error),
    /// The work has not ended in time and is left alone.
    Late,
    /// The thread has panicked.
    Panicked,
}

/// The result of such work, to be waited for.
pub struct Answer<T>(Receiver<io::Result<T>>);

/// Delivers the result. If the caller does not wait any more, the result is dropped here, as a part of the work.
pub struct Tell<T>(SyncSender<io::Result<T>>);

/// For work that a thread of the caller's choice will do.
pub fn answer<T>() -> (Tell<T>, Answer<T>) {
    // A channel without a buffer: a late result never reaches the caller's side.
    let (tell, told) = sync_channel(0);
    (Tell(tell), Answer(told))
}

/// Makes a thread named `thread` do `work`.
///
/// # Errors
/// When the thread cannot be started.
pub fn begin<T: Send + 'static>(
    thread: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Answer<T>, NoAnswer> {
    let (tell, answer) = answer();
    let begun = std::thread::Builder::new().name(thread.to_owned()).spawn(|| tell.done(work()));
    begun.map(|_| answer).map_err(NoAnswer::NoThread)
}

impl<T> Answer<T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// When there is no result within `patience`.
    pub fn within(self, patience: Duration) -> Result<T, NoAnswer> {
        match self.0.recv_timeout(patience) {
            Ok(told) => told.map_err(NoAnswer::NoThread),
            Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Panicked),
        }
    }
}

impl<T> Tell<T> {
    /// Delivers the result.
    pub fn done(self, answer: T) {
        let _ = self.0.send(Ok(answer));
    }

    /// A function that reports that there is no thread for the work. Do not call it in the thread that waits for the result.
    pub fn or_no_thread(&self) -> impl FnOnce(io::Error) + Send + use<T>
    where
        T: Send + 'static,
    {
        let tell = self.0.clone();
        move |error| drop(tell.send(Err(error)))
    }
}

/// Runs one such work at a time, so that at most one thread is stuck in it.
#[derive(Clone, Debug, Default)]
pub struct Aside(Arc<State>);

#[derive(Debug, Default)]
struct State {
    under_way: Mutex<bool>,
    over: Condvar,
}

/// Marks the work as under way until this is dropped.
struct UnderWay(Arc<State>);

impl Aside {
    /// Makes a thread named `thread` do `work`, which concerns `what`, and waits for the result. Does not start it while
    /// other work is under way.
    ///
    /// # Errors
    /// The work's error, or that it has no result within `patience`; it is left alone then.
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
            Err(NoAnswer::NoThread(error)) => {
                Err(format!("{what}: cannot start a thread for it: {error}"))
            }
            Err(NoAnswer::Late) => Err(format!("{what}: no answer for {patience:?}")),
            Err(NoAnswer::Panicked) => Err(format!("{what}: its thread has panicked")),
        }
    }

    /// Waits until no work is under way; returns `false` if `patience` has passed before.
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
    /// Guards one word only.
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

    /// A value whose drop blocks until the test allows it.
    struct Clings(Receiver<()>);

    impl Drop for Clings {
        fn drop(&mut self) {
            self.0.recv().unwrap();
        }
    }

    /// P9. Fails if a late result is dropped by the waiting thread, or after other work may begin.
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
