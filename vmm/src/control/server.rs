//! The thread that serves the control socket.
//!
//! It waits for no client: all of them are watched together, each has a deadline of its own, and where there are too
//! many, one that is silent or does not take its answer makes room (P9). A command that takes time is begun, and looked
//! after from time to time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_gate_host::own_files::{self, OwnName};
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SocketFlags, accept_with};
use serde_json::json;

use super::{CLIENT_TIMEOUT, DEFAULT_WAIT, Handler, MAX_LINE, Outcome, Pending, Reply, Request};

/// Clients at once, at most; fewer where the process may have few descriptors, most of which are for other purposes.
const MAX_CLIENTS: usize = 64;
const SHARE_OF_DESCRIPTORS: u64 = 8;
/// How often to look whether a command that is under way is over.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the end of the process waits for its last answers to be taken.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long it waits for what its last clients ask.
const LAST_QUESTIONS: Duration = Duration::from_millis(250);

/// The socket and who answers on it. One process changes roles (a standby takes over), so the
/// handler can be replaced.
pub struct ControlSocket {
    /// Removes the file: the thread may not.
    name: Option<OwnName>,
    handler: Arc<Mutex<Handler>>,
    wake: Arc<OwnedFd>,
    over: Sender<()>,
    ended: Receiver<()>,
}

/// A socket that clients can reach, and that nobody answers on yet: they wait. So that it is known
/// early whether it can be had, and nobody is told less than there is to tell.
pub struct ControlPlace {
    path: PathBuf,
    listener: UnixListener,
    name: OwnName,
}

impl ControlPlace {
    /// Makes the socket.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn take(path: &Path) -> Result<Self, String> {
        let (listener, name) = own_files::bind(path, |path| UnixListener::bind(path))
            .map_err(|error| format!("--control {error}"))?;
        Ok(Self { path: path.to_owned(), listener, name })
    }

    /// Answers in a thread of its own.
    ///
    /// # Errors
    /// When the process is out of threads or descriptors.
    pub fn serve(self, handler: Handler) -> Result<ControlSocket, String> {
        let Self { path, listener, name } = self;
        let cannot =
            |error: io::Error| format!("cannot serve --control {}: {error}", path.display());
        listener.set_nonblocking(true).map_err(cannot)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(|error| cannot(error.into()))?);
        let handler = Arc::new(Mutex::new(handler));
        let (over, told) = channel();
        let (end, ended) = channel();
        let server = Server {
            listener,
            handler: handler.clone(),
            wake: wake.clone(),
            over: told,
            clients: VecDeque::new(),
            most: most_clients(),
        };
        threads::start("control", move || {
            seccomp::enter(Role::Control, &[]);
            server.serve();
            drop(end);
        })
        .map_err(cannot)?;
        Ok(ControlSocket { name: Some(name), handler, wake, over, ended })
    }
}

impl ControlSocket {
    /// Listens at `path` and answers in a thread of its own.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(path: &Path, handler: Handler) -> Result<Self, String> {
        ControlPlace::take(path)?.serve(handler)
    }

    /// From now on `handler` answers.
    pub fn replace_handler(&self, handler: Handler) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = handler;
    }
}

impl Drop for ControlSocket {
    /// Whoever waits for an outcome is told what has become of it before the process goes.
    fn drop(&mut self) {
        // While the thread has the socket open.
        self.name = None;
        // Fails only when the thread has panicked, which ends the process.
        let _ = self.over.send(());
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        let _ = self.ended.recv_timeout(LAST_ANSWERS + LOOK_EVERY);
    }
}

struct Server {
    listener: UnixListener,
    handler: Arc<Mutex<Handler>>,
    wake: Arc<OwnedFd>,
    over: Receiver<()>,
    /// The oldest first.
    clients: VecDeque<Client>,
    /// How many there may be.
    most: usize,
}

/// See [`MAX_CLIENTS`].
pub(crate) fn most_clients() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.unwrap_or(u64::MAX) / SHARE_OF_DESCRIPTORS;
    usize::try_from(share).unwrap_or(MAX_CLIENTS).clamp(1, MAX_CLIENTS)
}

struct Client {
    stream: UnixStream,
    state: State,
    /// When it is given up.
    until: Instant,
}

enum State {
    /// It is sending its request: what has come.
    Asking(Vec<u8>),
    /// Its command is under way.
    Waiting(Pending),
    /// Its answer, and how much of it the client has taken.
    Answering(Vec<u8>, usize),
    Gone,
}

impl Server {
    fn serve(mut self) {
        while self.over.try_recv().is_err() {
            self.wait(Duration::MAX);
            self.attend();
            self.accept();
        }
        self.last_answers();
    }

    /// Waits until somebody has something for this thread, or a deadline has passed; at most `no_longer`.
    fn wait(&self, no_longer: Duration) {
        let now = Instant::now();
        let waits = |client: &Client| matches!(client.state, State::Waiting(_));
        let look = self.clients.iter().any(waits).then(|| now + LOOK_EVERY);
        let next = self.clients.iter().map(|client| client.until).chain(look).min();
        let timeout = next.map(|next| next.saturating_duration_since(now).min(no_longer));
        let mut fds = vec![
            PollFd::new(&*self.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.wants())));
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        // A signal: all are looked at, which does no harm.
        let _ = poll(&mut fds, timeout.as_ref());
        // How often it was woken does not matter.
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let stream = match accept_with(&self.listener, flags) {
                Ok(stream) => UnixStream::from(stream),
                Err(rustix::io::Errno::AGAIN) => return,
                // Short of descriptors: a silent client has one.
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) if self.make_room() => {
                    continue;
                }
                Err(error) => {
                    log::debug!("a control client could not be accepted: {error}");
                    // A shortage of descriptors stays for a while, and the listener stays readable.
                    std::thread::sleep(LOOK_EVERY);
                    return;
                }
            };
            let mut client = Client::new(stream);
            if self.clients.len() >= self.most && !self.make_room() {
                let busy = format!("{} commands are under way: try again later", self.most);
                client.answer(Err(busy));
                client.write();
                continue;
            }
            client.attend(&self.handler);
            self.clients.push_back(client);
        }
    }

    /// Gives up the client that has been silent, or has not taken its answer, for longest.
    fn make_room(&mut self) -> bool {
        let idle =
            self.clients.iter().position(|client| !matches!(client.state, State::Waiting(_)));
        idle.and_then(|idle| self.clients.remove(idle)).is_some()
    }

    fn attend(&mut self) {
        for client in &mut self.clients {
            client.attend(&self.handler);
        }
        self.clients.retain(|client| !matches!(client.state, State::Gone));
    }

    /// The process ends: what is under way is over now, or never will be. Whoever came before the socket's name was taken away
    /// is answered, whether or not it has said yet what it wants.
    fn last_answers(mut self) {
        let begun = Instant::now();
        while begun.elapsed() < LAST_ANSWERS {
            self.accept();
            for client in &mut self.clients {
                client.attend(&self.handler);
                client.end(begun + LAST_QUESTIONS);
            }
            self.clients.retain(|client| !matches!(client.state, State::Gone));
            if self.clients.is_empty() {
                return;
            }
            self.wait(LOOK_EVERY);
        }
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self { stream, state: State::Asking(Vec::new()), until: Instant::now() + CLIENT_TIMEOUT }
    }

    fn wants(&self) -> PollFlags {
        match self.state {
            State::Asking(_) => PollFlags::IN,
            State::Answering(..) => PollFlags::OUT,
            // That it goes away is told unasked.
            State::Waiting(_) | State::Gone => PollFlags::empty(),
        }
    }

    /// As far as it goes without waiting.
    fn attend(&mut self, handler: &Mutex<Handler>) {
        if let Some(request) = self.read() {
            self.begin(request, handler);
        }
        self.look();
        self.write();
        if !matches!(self.state, State::Waiting(_)) && Instant::now() >= self.until {
            log::debug!(
                "a control client that is silent, or does not take its answer, is given up"
            );
            self.state = State::Gone;
        }
    }

    /// Its request, once it is whole.
    fn read(&mut self) -> Option<Vec<u8>> {
        let State::Asking(line) = &mut self.state else { return None };
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) if line.is_empty() => {
                    self.state = State::Gone;
                    return None;
                }
                // It says no more; perhaps that is a request without its line's end.
                Ok(0) => return Some(std::mem::take(line)),
                Ok(count) => line.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => {
                    self.state = State::Gone;
                    return None;
                }
            }
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                line.truncate(end);
                return Some(std::mem::take(line));
            }
            if line.len() > MAX_LINE {
                self.answer(Err(format!("expected a request of at most {MAX_LINE} bytes")));
                return None;
            }
        }
    }

    fn begin(&mut self, line: Vec<u8>, handler: &Mutex<Handler>) {
        let request: Request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                return self.answer(Err(format!(
                    "expected a JSON command such as {{\"command\":\"status\"}}: {error}"
                )));
            }
        };
        let current = handler.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match current(request.command) {
            Reply::Now(outcome) => self.answer(outcome),
            Reply::Later(pending) => {
                let wait = request.wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
                if wait.is_zero() {
                    return self.begun(pending);
                }
                let now = Instant::now();
                // A wait without end is one of a century.
                self.until =
                    now.checked_add(wait).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
                self.state = State::Waiting(pending);
            }
        }
    }

    /// For a client that does not wait: what is known at once.
    fn begun(&mut self, mut pending: Pending) {
        let state = (pending.so_far)();
        let under_way = || Ok(json!({ "done": false, "state": state }));
        self.answer((pending.look)().unwrap_or_else(under_way));
    }

    fn look(&mut self) {
        let State::Waiting(pending) = &mut self.state else { return };
        if let Some(outcome) = (pending.look)() {
            return self.answer(outcome);
        }
        if Instant::now() >= self.until {
            let so_far = (pending.so_far)();
            return self.answer(Err(format!("not done in time, and still under way: {so_far}")));
        }
        // Nothing is expected of it; only its going away is seen.
        if matches!(self.stream.read(&mut [0; 512]), Ok(0)) && self.has_hung_up() {
            self.state = State::Gone;
        }
    }

    /// Whether it takes no answer either: one that has only said all it had to say still waits.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// The process ends: it is told what has become of its command; if it is silent, at `silent_until`.
    fn end(&mut self, silent_until: Instant) {
        match &mut self.state {
            State::Asking(_) if Instant::now() < silent_until => return,
            State::Asking(_) => self.answer(Err("this process ends".to_owned())),
            State::Waiting(pending) => {
                let so_far = (pending.so_far)();
                self.answer(Err(format!("this process ends: {so_far}")));
            }
            State::Answering(..) | State::Gone => return,
        }
        self.write();
    }

    fn answer(&mut self, outcome: Outcome) {
        let answer = outcome.unwrap_or_else(|error| json!({ "error": error }));
        self.state = State::Answering(format!("{answer}\n").into_bytes(), 0);
        self.until = Instant::now() + CLIENT_TIMEOUT;
    }

    fn write(&mut self) {
        let State::Answering(bytes, taken) = &mut self.state else { return };
        while *taken < bytes.len() {
            match self.stream.write(&bytes[*taken..]) {
                Ok(count) => *taken += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.state = State::Gone;
    }
}
