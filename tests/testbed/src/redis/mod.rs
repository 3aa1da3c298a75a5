//! The outside client of a stock guest: uses Redis over TCP connections, which must survive each
//! failover.
//!
//! A connection that was answered once is never opened again: TCP itself must notice only a pause.
//! Each client knows the answers for its own keys in advance. The [judge of
//! histories](crate::linearizability) judges the shared keys. At the end the client reads back all
//! acknowledged values.

mod resp;
mod shared;
mod stack;
mod writer;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smoltcp::iface::SocketHandle;

use crate::client::Window;
use crate::findings::{Finding, Kind};
use crate::linearizability::Judge;
use crate::packet::Host;
use crate::pair::observer::{DiskCheck, Observer};
use crate::switch::Cable;
use stack::Stack;
use writer::{Phase, Writer};

const REDIS_PORT: u16 = 6379;
/// Longest delay before the thread sees a change of phase.
const TICK: Duration = Duration::from_millis(5);
/// Time after which a connection that the booting guest refused is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Addresses of the client and its guest, and the amount of load.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The client's addresses.
    pub own: Host,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Number of connections.
    pub connections: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// The image of the guest's root file system.
    pub image: PathBuf,
}

/// The observer of a guest that serves Redis.
#[derive(Debug)]
pub struct RedisObserver {
    shared: Arc<Shared>,
    image: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Number of connections that have finished the phase; `usize::MAX` once all have.
    idle: usize,
    operations: u64,
    window: Window,
    findings: Vec<Finding>,
    judge: Judge,
}

impl State {
    fn take_findings(&mut self) -> Vec<Finding> {
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(self.judge.take_findings());
        findings
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }
}

impl RedisObserver {
    /// Starts the load over `cable`.
    pub fn start(cable: Cable, config: RedisConfig) -> Self {
        let state = State {
            phase: Phase::Load,
            idle: 0,
            operations: 0,
            window: Window::starting_now(),
            findings: Vec::new(),
            judge: Judge::new("shared object", shared::CELLS),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let image = config.image.clone();
        let for_thread = Arc::clone(&shared);
        let thread =
            Some(thread::spawn(move || RedisSession::new(cable, &config, for_thread).run()));
        Self { shared, image, thread }
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, timeout, |state| !done(state));
        !waited.expect("no thread panics while it holds the state").1.timed_out()
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.shared.state();
        state.phase = phase;
        state.idle = 0;
    }
}

impl Drop for RedisObserver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Observer for RedisObserver {
    fn answered(&self) -> u64 {
        self.shared.state().operations
    }

    fn wait_answered(&self, count: u64, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.operations >= count)
    }

    fn next_window(&self) -> Window {
        std::mem::take(&mut self.shared.state().window)
    }

    fn judged(&self) -> u64 {
        self.shared.state().judge.judged()
    }

    fn check(&mut self, _patience: Duration) -> Result<Vec<Finding>> {
        Ok(self.shared.state().take_findings())
    }

    fn finish(&mut self, patience: Duration) -> Result<Vec<Finding>> {
        self.enter(Phase::ReadBack);
        ensure!(
            self.wait(patience, |state| state.idle == usize::MAX),
            "cannot read back what Redis acknowledged: Redis does not answer"
        );
        let mut state = self.shared.state();
        state.judge.finish();
        let findings = state.take_findings();
        drop(state);
        Ok(findings)
    }

    fn power_off(&mut self) {
        // The guest's init powers the machine off after the end of Redis.
        self.enter(Phase::Shutdown);
    }

    fn check_disk(&mut self) -> Result<DiskCheck> {
        check_file_system(&self.image)
    }
}

/// Checks an image with `e2fsck`. It must find no error.
fn check_file_system(image: &Path) -> Result<DiskCheck> {
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .output()
        .context("cannot run `e2fsck` (Debian package e2fsprogs)")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    if !output.status.success() {
        let what = format!("the guest's file system is not clean ({}): {said}", output.status);
        findings.push(Finding::new(Kind::Corrupt, what));
    }
    Ok(DiskCheck { what: format!("e2fsck -fn: {last}"), findings })
}

struct Connection {
    handle: SocketHandle,
    writer: Writer,
    received: Vec<u8>,
    sent: Instant,
    tried: Instant,
    answered: bool,
    lost: bool,
}

struct RedisSession {
    stack: Stack,
    guest: Ipv4Addr,
    connections: Vec<Connection>,
    shared: Arc<Shared>,
}

impl RedisSession {
    fn new(cable: Cable, config: &RedisConfig, shared: Arc<Shared>) -> Self {
        let mut stack = Stack::new(cable, config.own, config.seed);
        let now = Instant::now();
        let connections = (0..config.connections)
            .map(|number| Connection {
                handle: stack.add_socket(),
                writer: Writer::new(number, config.seed),
                received: Vec::new(),
                sent: now,
                tried: now,
                answered: false,
                lost: false,
            })
            .collect();
        Self { stack, guest: config.guest, connections, shared }
    }

    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let phase = self.shared.state().phase;
            let mut idle = 0;
            for place in 0..self.connections.len() {
                idle += usize::from(self.drive(place, phase));
            }
            if idle == self.connections.len() {
                let mut state = self.shared.state();
                if state.phase == phase {
                    state.idle = usize::MAX;
                    self.shared.changed.notify_all();
                }
            }
            self.stack.work(TICK);
        }
    }

    /// Advances one connection. Returns whether it has finished the phase.
    fn drive(&mut self, place: usize, phase: Phase) -> bool {
        let connection = &mut self.connections[place];
        if self.stack.is_closed(connection.handle) {
            self.connect(place, phase);
            return false;
        }
        self.stack.receive(connection.handle, &mut connection.received);
        while let Some(reply) = resp::take_reply(&mut connection.received) {
            connection.answered = true;
            let finding = match reply {
                Ok(reply) => connection.writer.answered(&reply, &mut self.shared.state().judge),
                Err(wrong) => Some(Finding::new(Kind::Behaviour, wrong)),
            };
            let mut state = self.shared.state();
            state.findings.extend(finding);
            if connection.writer.waits() {
                // More replies to this request follow.
                continue;
            }
            state.operations += 1;
            state.window.answer(connection.sent);
            self.shared.changed.notify_all();
        }
        if connection.writer.waits() || !self.stack.may_send(connection.handle) {
            return false;
        }
        let next = connection.writer.next(phase, &mut self.shared.state().judge);
        match next {
            Some(bytes) => {
                connection.sent = Instant::now();
                self.stack.send(connection.handle, &bytes);
                false
            }
            None => true,
        }
    }

    /// Opens a connection. A guest that still boots refuses it. After its first answer a connection
    /// must never close.
    fn connect(&mut self, place: usize, phase: Phase) {
        let connection = &mut self.connections[place];
        if connection.lost || phase == Phase::Shutdown {
            return;
        }
        if connection.answered {
            connection.lost = true;
            let what = format!("the TCP connection of client {place} broke");
            return self.shared.state().findings.push(Finding::new(Kind::Lost, what));
        }
        if connection.tried.elapsed() >= AGAIN {
            connection.tried = Instant::now();
            self.stack.abort(connection.handle);
            self.stack.connect(connection.handle, self.guest, REDIS_PORT);
        }
    }
}
