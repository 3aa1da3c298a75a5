//! Answers a program's questions by a rule, in a thread of its own.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::short;
use crate::{Call, Listener};

/// How often it is looked whether the injector is to end, or an answer is due.
const TURN: Duration = Duration::from_millis(20);

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out.
    Proceed,
    /// It fails, with this error.
    Fail(i32),
    /// It transfers half of what was asked for.
    Half,
    /// The kernel carries it out after this time.
    After(Duration),
    /// It does not return before [`Injector::release`]; then the kernel carries it out.
    Hang,
}

/// Answers as long as it lives. Dropped, it lets everything pass until the program has ended.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Everything passes from now on.
    released: AtomicBool,
    /// What has failed, if anything.
    broken: Mutex<Option<io::Error>>,
}

impl Injector {
    /// Asks `rule` about each call. It is not to wait: all threads of the program do meanwhile.
    pub fn start(listener: Listener, rule: impl FnMut(&Call) -> Answer + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            // The program has ended.
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

    /// What hangs goes on, and nothing is asked about any more.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// When answering it has failed.
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
    /// Calls that wait, and until when; none: until they are released.
    held: Vec<(Call, Option<Instant>)>,
}

impl Desk {
    fn serve(&mut self, shared: &Shared, mut rule: impl FnMut(&Call) -> Answer) -> io::Result<()> {
        loop {
            let released = shared.released.load(Ordering::SeqCst);
            self.let_go(released)?;
            let Some(call) = self.listener.next(TURN)? else { continue };
            match if released { Answer::Proceed } else { rule(&call) } {
                Answer::Proceed => self.listener.proceed(&call)?,
                Answer::Fail(errno) => self.listener.fail(&call, errno)?,
                Answer::After(time) => self.held.push((call, Some(Instant::now() + time))),
                Answer::Hang => self.held.push((call, None)),
                Answer::Half => self.transfer_half(call),
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

    /// In a thread of its own, as it may block.
    fn transfer_half(&self, call: Call) {
        let listener = Arc::clone(&self.listener);
        std::thread::spawn(move || match short::transfer(&call) {
            Ok(count) => listener.done(&call, count as i64),
            Err(error) => listener.fail(&call, error.raw_os_error().unwrap_or(libc::EIO)),
        });
    }
}
