//! Runs work that may block on a thread of its own; the caller waits a limited time for the result
//! (P9).

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kemari_confine::seccomp::Role;
use kemari_confine::threads;

/// Why there is no result.
#[derive(Debug)]
pub enum NoAnswer {
    /// The thread could not be started.
    NoThread(io::Error),
    /// The work did not end in time; it continues without a caller.
    Late,
    /// The thread has panicked.
    Panicked,
}

/// The receiving end of a result.
pub struct ResultReceiver<T>(Receiver<io::Result<T>>);

/// The sending end of a result. If the caller no longer waits, the working thread drops the result
/// here.
pub struct ResultSender<T>(SyncSender<io::Result<T>>);

/// Both ends, for work on a thread that the caller chooses.
pub fn result_channel<T>() -> (ResultSender<T>, ResultReceiver<T>) {
    // No buffer: a late result never reaches the caller's side, so the working thread drops it.
    let (sender, receiver) = sync_channel(0);
    (ResultSender(sender), ResultReceiver(receiver))
}

/// Runs `work` on a thread named `thread`.
///
/// # Errors
/// When the thread cannot be started.
pub fn begin<T: Send + 'static>(
    thread: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<ResultReceiver<T>, NoAnswer> {
    let (sender, receiver) = result_channel();
    let begun = threads::start(thread, Role::Main, || sender.done(work()));
    begun.map(|_| receiver).map_err(NoAnswer::NoThread)
}

impl<T> ResultReceiver<T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// When there is no result within `patience`.
    pub fn within(self, patience: Duration) -> Result<T, NoAnswer> {
        match self.0.recv_timeout(patience) {
            Ok(result) => result.map_err(NoAnswer::NoThread),
            Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Panicked),
        }
    }
}

impl<T> ResultSender<T> {
    /// Delivers the result.
    pub fn done(self, result: T) {
        let _ = self.0.send(Ok(result));
    }

    /// A function that reports to the waiting caller that there is no thread for the work. Do not
    /// call it on the thread that waits.
    pub fn or_no_thread(&self) -> impl FnOnce(io::Error) + Send + use<T>
    where
        T: Send + 'static,
    {
        let sender = self.0.clone();
        move |error| drop(sender.send(Err(error)))
    }
}

/// Runs one work at a time, so that at most one thread is stuck in it.
#[derive(Clone, Debug, Default)]
pub struct Aside(Arc<State>);

#[derive(Debug, Default)]
struct State {
    under_way: Mutex<bool>,
    over: Condvar,
}

/// Work is under way until this is dropped.
struct RunningWork(Arc<State>);

impl Aside {
    /// Runs `work`, which concerns `what`, on a thread named `thread`, and waits for the result.
    /// Refuses to start while other work is under way.
    ///
    /// # Errors
    /// The work's error, or that it has no result within `patience`; then it continues without a
    /// caller.
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
            Err(NoAnswer::NoThread(error)) => Err(format!("{what}: {error}")),
            Err(NoAnswer::Late) => Err(format!("{what}: no answer for {patience:?}")),
            Err(NoAnswer::Panicked) => Err(format!("{what}: its thread has panicked")),
        }
    }

    /// Waits until no work is under way; `false` if that takes longer than `patience`.
    pub fn is_over_within(&self, patience: Duration) -> bool {
        let waited =
            self.0.over.wait_timeout_while(self.0.lock(), patience, |under_way| *under_way);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn begin(&self) -> Option<RunningWork> {
        let was_under_way = std::mem::replace(&mut *self.0.lock(), true);
        (!was_under_way).then(|| RunningWork(self.0.clone()))
    }
}

impl State {
    /// The lock guards one word only and is never held across a system call.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningWork {
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

    /// P9. Fails if the waiting thread drops a late result, or if other work may begin before the
    /// drop.
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
