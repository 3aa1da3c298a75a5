//! The outside client: speaks the micro-guest's protocol over the switch as several client ids, repeats a request until it is
//! answered, and checks every answer against the history.

pub mod history;
mod session;
mod window;
mod writer;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kemari_workload::{Op, Reply};

use crate::findings::Finding;
use crate::linearizability::Judge;
use crate::packet::Host;
use crate::switch::Cable;
use history::{Asked, History};
use session::Session;
pub use window::Window;

/// The client, the guest that it asks, and the amount of load.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The client's own addresses.
    pub own: Host,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// How many client ids ask at the same time.
    pub writers: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// An unanswered request is repeated after this time.
    pub resend: Duration,
}

/// A client in a thread of its own. It sends requests from the start, and stops when dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// A request of the harness.
#[derive(Debug)]
pub(crate) struct Order {
    op: Op<'static>,
    waiter: Sender<Reply>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    answered: Condvar,
    stop: AtomicBool,
    /// The workload makes no new requests.
    hold: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct State {
    history: History,
    judge: Judge,
    window: Window,
    operations: u64,
    outstanding: Vec<Asked>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            history: History::default(),
            judge: Judge::new("shared key", 1),
            window: Window::default(),
            operations: 0,
            outstanding: Vec::new(),
        }
    }
}

impl State {
    /// The guest was reset, as ordered. Outstanding operations on shared keys must begin anew with the judge.
    fn begin_anew(&mut self) {
        self.history.begin_anew();
        self.judge.begin_anew();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the history")
    }
}

impl Client {
    /// Starts the load over `cable`.
    pub fn start(cable: Cable, config: ClientConfig) -> Self {
        let shared = Arc::new(Shared::default());
        let (orders, inbox) = mpsc::channel();
        let session = Session::new(cable, config, Arc::clone(&shared), inbox);
        let thread = Some(thread::spawn(move || session.run()));
        Self { shared, orders, thread }
    }

    /// How many operations were answered so far.
    pub fn operations(&self) -> u64 {
        self.shared.state().operations
    }

    /// Waits until `count` operations were answered in all; `false` when `timeout` comes first.
    pub fn wait_operations(&self, count: u64, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.operations >= count)
    }

    /// Starts a new window, and returns the former one.
    pub fn next_window(&self) -> Window {
        let mut state = self.shared.state();
        std::mem::take(&mut state.window)
    }

    /// Has the guest do `op`; the answer is checked like any other. `None` when there is none within `timeout`.
    pub fn ask(&self, op: Op<'static>, timeout: Duration) -> Option<Reply> {
        let (waiter, reply): (_, Receiver<Reply>) = mpsc::channel();
        self.orders.send(Order { op, waiter }).ok()?;
        reply.recv_timeout(timeout).ok()
    }

    /// Has the guest do `op` after earlier orders, without waiting; the answer is checked like any other.
    pub fn order(&self, op: Op<'static>) {
        let (waiter, _) = mpsc::channel();
        // If the client's thread has ended, the next wait for its answers reports it.
        let _ = self.orders.send(Order { op, waiter });
    }

    /// Stops new requests of the workload, and waits until all are answered; `false` when `timeout` comes first.
    pub fn hold(&self, timeout: Duration) -> bool {
        self.shared.hold.store(true, Ordering::SeqCst);
        self.wait(timeout, |state| state.outstanding.is_empty())
    }

    /// From now on the guest may reset itself, or may not; the harness orders the reset.
    pub fn may_reset(&self, may: bool) {
        self.shared.state().history.may_reset(may);
    }

    /// The requests that were sent and not answered yet.
    pub fn outstanding(&self) -> Vec<Asked> {
        self.shared.state().outstanding.clone()
    }

    /// Resumes the load after [`Self::hold`].
    pub fn go_on(&self) {
        self.shared.hold.store(false, Ordering::SeqCst);
    }

    /// The contradictions since the last call.
    pub fn take_findings(&self) -> Vec<Finding> {
        let mut state = self.shared.state();
        let mut findings = state.history.take_findings();
        findings.extend(state.judge.take_findings());
        findings
    }

    /// Checks that no acknowledged operation is missing; nothing may be outstanding.
    pub fn check_complete(&self) {
        let mut state = self.shared.state();
        state.history.check_complete();
        state.judge.finish();
    }

    /// The number of answered operations on shared keys that were judged.
    pub fn judged(&self) -> u64 {
        self.shared.state().judge.judged()
    }

    /// Reads the history.
    pub fn with_history<R>(&self, read: impl FnOnce(&History) -> R) -> R {
        read(&self.shared.state().history)
    }

    /// From now on writes may fail, or may not.
    pub fn disk_fails(&self, fails: bool) {
        self.shared.state().history.disk_fails(fails);
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state();
        while !done(&state) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let (next, _) = self
                .shared
                .answered
                .wait_timeout(state, left)
                .expect("no thread panics while it holds the history");
            state = next;
        }
        true
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
