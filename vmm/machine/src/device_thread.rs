//! The device thread: one event loop that serves the guest's requests and delivers its input.
//! `machine/subscribers.rs` lists the event sources.
//!
//! Work that must not happen in the middle of a request also runs here: checkpoints, resets and
//! restores.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{
    EventManager, EventOps, EventSet, Events as Ready, MutEventSubscriber, SubscriberId,
    SubscriberOps,
};
use kemari_confine::logging::STATE;
use kemari_confine::threads;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An event source of the loop.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;
type Command = Box<dyn FnOnce(&mut LoopContext<'_>) + Send>;

/// The event loop, as a command on the device thread sees it between two events.
pub struct LoopContext<'l> {
    manager: &'l mut EventManager<Subscriber>,
}

impl LoopContext<'_> {
    /// Adds an event source.
    pub fn add(&mut self, subscriber: Subscriber) -> SubscriberId {
        self.manager.add_subscriber(subscriber)
    }

    /// Removes an event source.
    pub fn remove(&mut self, id: SubscriberId) -> Option<Subscriber> {
        self.manager.remove_subscriber(id).ok()
    }
}

/// Sends commands to the device thread from any other thread.
#[derive(Clone)]
pub struct LoopHandle(Arc<Shared>);

struct Shared {
    /// The waiting commands; `None`: the thread has ended. A later command is dropped, and its
    /// caller gets [`LoopError::Ended`].
    commands: Mutex<Option<VecDeque<Command>>>,
    event: EventFd,
    stopping: AtomicBool,
}

/// Why the device thread has not run a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoopError {
    /// The thread has ended.
    #[error("the device thread has ended")]
    Ended,
    /// The thread is stuck, in a device or in the kernel.
    #[error("the device thread has not answered for {0:?}")]
    Silent(Duration),
}

/// The future result of a command on the device thread.
pub struct PendingCommand<R>(Receiver<R>);

/// Time after which a wait is logged: the thread is stuck in a device or in the kernel.
const LONG: Duration = Duration::from_secs(5);
/// Number of parts of a wait. If the whole process was stopped, one part ends late, and that time
/// does not count as silence of the device thread.
const PARTS: u32 = 20;

impl LoopHandle {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            commands: Mutex::new(Some(VecDeque::new())),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stopping: AtomicBool::new(false),
        })))
    }

    /// Queues `command` to run on the device thread, in order, between two events. Does not wait.
    pub fn post(&self, command: impl FnOnce(&mut LoopContext<'_>) + Send + 'static) {
        if let Some(commands) = &mut *self.commands() {
            commands.push_back(Box::new(command));
        }
        self.wake();
    }

    /// Does what [`post`](Self::post) does, and returns a handle to the result.
    pub fn ask<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut LoopContext<'_>) -> R + Send + 'static,
    ) -> PendingCommand<R> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(move |context| {
            // Fails if the caller has gone and needs no result.
            let _ = sender.send(command(context));
        });
        PendingCommand(receiver)
    }

    /// Runs `command` on the device thread and waits for its result, without a limit. Do not call
    /// it on the device thread, nor on a thread that serves a peer or an operator (P9).
    ///
    /// # Errors
    /// When the thread has ended, or ends before it runs the command.
    pub fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut LoopContext<'_>) -> R + Send + 'static,
    ) -> Result<R, LoopError> {
        self.ask(command).wait()
    }

    pub(crate) fn wake_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    fn wake(&self) {
        // Fails only if the counter is at its maximum: then it is readable already.
        let _ = self.0.event.write(1);
    }

    fn commands(&self) -> MutexGuard<'_, Option<VecDeque<Command>>> {
        self.0.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Command> {
        self.commands().as_mut()?.pop_front()
    }
}

impl<R> PendingCommand<R> {
    /// Waits for the result, at most for `patience`.
    ///
    /// # Errors
    /// When the thread has ended, or has not run the command in time.
    pub fn within(&self, patience: Duration) -> Result<R, LoopError> {
        for _ in 0..PARTS {
            match self.0.recv_timeout(patience / PARTS) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(LoopError::Ended),
            }
        }
        Err(LoopError::Silent(patience))
    }

    /// Waits for the result without a limit, and logs a wait of more than 5 s.
    ///
    /// # Errors
    /// When the thread has ended, or ends before it runs the command.
    pub fn wait(&self) -> Result<R, LoopError> {
        match self.within(LONG) {
            Err(silent @ LoopError::Silent(_)) => {
                log::warn!(target: STATE, "{silent}: the answer to its last command is awaited");
                self.0.recv().map_err(|_| LoopError::Ended)
            }
            answered => answered,
        }
    }
}

/// What the thread may not drop, since that closes descriptors; the thread that joins it drops
/// this.
type Leftovers = (EventManager<Subscriber>, Option<VecDeque<Command>>);

/// The device thread; [`stop`](Self::stop) ends it.
pub(crate) struct DeviceThread {
    handle: LoopHandle,
    thread: Mutex<Option<JoinHandle<Leftovers>>>,
}

impl DeviceThread {
    /// Starts the thread. First it calls `confine` to give up its rights. At first it watches only
    /// the commands of `handle`.
    pub(crate) fn start(
        handle: LoopHandle,
        confine: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let mut manager =
            EventManager::<Subscriber>::new().map_err(|e| io::Error::other(e.to_string()))?;
        manager.add_subscriber(Box::new(Wake(handle.clone())));
        let own = handle.clone();
        let thread = threads::start_without_role("devices", move || {
            confine();
            run(manager, &own)
        })?;
        Ok(Self { handle, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn handle(&self) -> &LoopHandle {
        &self.handle
    }

    /// Ends the thread after its current event and drops waiting commands. If called on the device
    /// thread itself, the thread ends once it returns to the loop.
    pub(crate) fn stop(&self) {
        self.handle.0.stopping.store(true, Ordering::Release);
        self.handle.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            // The thread cannot join itself, nor close what it leaves behind: the end of the
            // process does.
            Some(thread) if thread.thread().id() == std::thread::current().id() => {
                std::mem::forget(thread);
            }
            Some(thread) => match thread.join() {
                Ok(leftovers) => drop(leftovers),
                Err(_) => log::error!("the device thread ended in a panic"),
            },
            None => {}
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(mut manager: EventManager<Subscriber>, handle: &LoopHandle) -> Leftovers {
    while !handle.0.stopping.load(Ordering::Acquire) {
        if let Err(error) = manager.run() {
            log::error!("the device thread cannot wait for events: {error}");
            break;
        }
        while let Some(command) = handle.next() {
            command(&mut LoopContext { manager: &mut manager });
        }
    }
    // The drop of a waiting command tells its caller that there is no answer. Another thread drops
    // the commands, because a command may hold the machine, whose drop calls this code again.
    let left = handle.commands().take();
    (manager, left)
}

/// Watches a descriptor. Logs a failure: the machine then receives no events from it.
pub(crate) fn watch(ops: &mut EventOps<'_>, events: Ready) {
    if let Err(error) = ops.add(events) {
        log::error!("the device thread cannot watch descriptor {}: {error}", events.fd());
    }
}

/// Wakes the loop to run its commands.
struct Wake(LoopHandle);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _events: Ready, _ops: &mut EventOps<'_>) {
        // Fails only if nothing was signalled.
        let _ = self.0.0.event.read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Ready::new(&self.0.0.event, EventSet::IN));
    }
}
