//! The outside client: speaks the micro-guest's protocol over the switch with several client IDs.
//! It repeats a request until it is answered, and checks each answer against the history.

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
use session::ClientSession;
pub use window::Window;

/// Addresses of the client and its guest, and the amount of load.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The client's addresses.
    pub own: Host,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Number of client IDs that send requests at the same time.
    pub writers: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// Time after which an unanswered request is repeated.
    pub resend: Duration,
}

/// A client with its own thread. It sends requests at once, and stops when dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// An operation that the harness requests.
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
    /// The workload sends no new requests.
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
    /// The guest was reset, as ordered. The caller begins outstanding operations on shared keys
    /// anew at the judge.
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
        let session = ClientSession::new(cable, config, Arc::clone(&shared), inbox);
        let thread = Some(thread::spawn(move || session.run()));
        Self { shared, orders, thread }
    }

    /// Number of answered operations.
    pub fn operations(&self) -> u64 {
        self.shared.state().operations
    }

    /// Waits until `count` operations are answered in all; `false` after `timeout`.
    pub fn wait_operations(&self, count: u64, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.operations >= count)
    }

    /// Starts a new window and returns the former one.
    pub fn next_window(&self) -> Window {
        let mut state = self.shared.state();
        std::mem::take(&mut state.window)
    }

    /// Requests `op` from the guest and checks the answer like any other. `None` if no answer
    /// arrives within `timeout`.
    pub fn ask(&self, op: Op<'static>, timeout: Duration) -> Option<Reply> {
        let (waiter, reply): (_, Receiver<Reply>) = mpsc::channel();
        self.orders.send(Order { op, waiter }).ok()?;
        reply.recv_timeout(timeout).ok()
    }

    /// Requests `op` from the guest after earlier orders, without waiting. The answer is checked
    /// like any other.
    pub fn order(&self, op: Op<'static>) {
        let (waiter, _) = mpsc::channel();
        // If the client's thread has ended, the next wait for its answers reports it.
        let _ = self.orders.send(Order { op, waiter });
    }

    /// Stops new requests of the workload, and waits until all are answered; `false` after
    /// `timeout`.
    pub fn hold(&self, timeout: Duration) -> bool {
        self.shared.hold.store(true, Ordering::SeqCst);
        self.wait(timeout, |state| state.outstanding.is_empty())
    }

    /// Sets whether the guest may reset itself from now on. The harness orders the reset.
    pub fn may_reset(&self, may: bool) {
        self.shared.state().history.may_reset(may);
    }

    /// The requests that were sent and are not answered yet.
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

    /// Checks that no acknowledged operation is missing. No request may be outstanding.
    pub fn check_complete(&self) {
        let mut state = self.shared.state();
        state.history.check_complete();
        state.judge.finish();
    }

    /// The number of answered operations on shared keys that were judged.
    pub fn judged(&self) -> u64 {
        self.shared.state().judge.judged()
    }

    /// Calls `read` with the history.
    pub fn with_history<R>(&self, read: impl FnOnce(&History) -> R) -> R {
        read(&self.shared.state().history)
    }

    /// Sets whether writes may fail from now on.
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
