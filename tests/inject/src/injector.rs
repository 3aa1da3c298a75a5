//! Answers a program's intercepted calls by a rule, in a separate thread.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::short;
use crate::{Call, Listener};

/// Interval at which the thread checks for a release and for delayed answers.
const TURN: Duration = Duration::from_millis(20);

/// The result of an intercepted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The kernel performs the call.
    Proceed,
    /// The call fails with this error.
    Fail(i32),
    /// The call transfers half of the requested bytes.
    Half,
    /// The kernel performs the call after this time.
    After(Duration),
    /// The call blocks until [`Injector::release`]; then the kernel performs it.
    Hang,
}

/// Answers a program's calls. After a drop, all calls proceed until the program has ended.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether all calls proceed from now on.
    released: AtomicBool,
    /// The error that ended the thread, if any.
    broken: Mutex<Option<io::Error>>,
}

impl Injector {
    /// Calls `rule` for each intercepted call. The rule must not block, because all intercepted
    /// calls of the program wait for it.
    pub fn start(
        listener: Listener,
        rule: impl FnMut(&Call) -> CallResult + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            // At the end of the program `serve` returns `UnexpectedEof`, which is no failure.
            let Err(error) = Desk { listener: listener.into(), held: Vec::new() }.serve(&own, rule)
            else {
                return;
            };
            if error.kind() != io::ErrorKind::UnexpectedEof {
                *own.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Lets hanging calls proceed, and all later calls.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
    }

    /// Releases all calls and waits for the end of the program.
    ///
    /// # Errors
    /// An answer could not be given.
    pub fn finish(mut self) -> io::Result<()> {
        self.release();
        self.thread.take().map(JoinHandle::join);
        let broken = self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        broken.map_or(Ok(()), Err)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.release();
    }
}

struct Desk {
    listener: Arc<Listener>,
    /// Waiting calls and their deadlines. A call without a deadline waits for the release.
    held: Vec<(Call, Option<Instant>)>,
}

impl Desk {
    fn serve(
        &mut self,
        shared: &Shared,
        mut rule: impl FnMut(&Call) -> CallResult,
    ) -> io::Result<()> {
        loop {
            let released = shared.released.load(Ordering::SeqCst);
            self.let_go(released)?;
            let Some(call) = self.listener.next(TURN)? else { continue };
            match if released { CallResult::Proceed } else { rule(&call) } {
                CallResult::Proceed => self.listener.proceed(&call)?,
                CallResult::Fail(errno) => self.listener.fail(&call, errno)?,
                CallResult::After(time) => self.held.push((call, Some(Instant::now() + time))),
                CallResult::Hang => self.held.push((call, None)),
                CallResult::Half => self.transfer_half(call),
            }
        }
    }

    fn let_go(&mut self, released: bool) -> io::Result<()> {
        let now = Instant::now();
        let is_due = |until: Option<Instant>| released || until.is_some_and(|until| until <= now);
        for (call, _) in self.held.extract_if(.., |(_, until)| is_due(*until)) {
            self.listener.proceed(&call)?;
        }
        Ok(())
    }

    /// Transfers half of the bytes in a separate thread, because the transfer may block.
    fn transfer_half(&self, call: Call) {
        let listener = Arc::clone(&self.listener);
        std::thread::spawn(move || match short::transfer(&call) {
            Ok(count) => listener.done(&call, count as i64),
            Err(error) => listener.fail(&call, error.raw_os_error().unwrap_or(libc::EIO)),
        });
    }
}
