//! The server of the control socket.
//!
//! One thread watches all clients together and blocks for none of them. Each client has its own
//! deadline. When there are too many, the oldest idle client is dropped (P9). A command that takes
//! time is started and then polled.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_gate_host::own_files::{self, OwnName};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SocketFlags, accept_with};
use serde_json::json;

use super::{CLIENT_TIMEOUT, DEFAULT_WAIT, Handler, MAX_LINE, Outcome, Pending, Reply, Request};

/// Upper bound of clients. The number is lower where the process may open few descriptors, most of
/// which have other uses.
const MAX_CLIENTS: usize = 64;
const SHARE_OF_DESCRIPTORS: u64 = 8;
/// Time between two polls of a command that is under way.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the end of the process waits until its last answers are read.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the requests of its last clients.
const LAST_QUESTIONS: Duration = Duration::from_millis(250);

/// The socket and its handler. The handler can be replaced, because the process changes roles when
/// a standby takes over.
pub struct ControlSocket {
    /// Removes the socket's file. The server's thread may not do that.
    name: Option<OwnName>,
    handler: Arc<Mutex<Handler>>,
    wake: Arc<OwnedFd>,
    over: Sender<()>,
    ended: Receiver<()>,
}

/// A socket that clients can connect to, but that has no handler yet: clients wait. It shows early
/// whether the socket can be created, and no client gets an answer before the handler is complete.
pub struct ControlPlace {
    path: PathBuf,
    listener: UnixListener,
    name: OwnName,
}

impl ControlPlace {
    /// Creates the socket.
    ///
    /// # Errors
    /// When the socket cannot be created.
    pub fn take(path: &Path) -> Result<Self, String> {
        let (listener, name) = own_files::bind(path, |path| UnixListener::bind(path))
            .map_err(|error| format!("--control {error}"))?;
        Ok(Self { path: path.to_owned(), listener, name })
    }

    /// Starts to answer requests, in a thread of its own.
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
        threads::start("control", Role::Control, move || {
            server.serve();
            drop(end);
        })
        .map_err(cannot)?;
        Ok(ControlSocket { name: Some(name), handler, wake, over, ended })
    }
}

impl ControlSocket {
    /// Listens at `path`, and answers requests in a thread of its own.
    ///
    /// # Errors
    /// When the socket cannot be created.
    pub fn listen(path: &Path, handler: Handler) -> Result<Self, String> {
        ControlPlace::take(path)?.serve(handler)
    }

    /// Replaces the handler.
    pub fn replace_handler(&self, handler: Handler) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = handler;
    }
}

impl Drop for ControlSocket {
    /// Answers every waiting client before the process ends.
    fn drop(&mut self) {
        // Remove the name while the thread still has the socket open.
        self.name = None;
        // This fails only when the thread has panicked, which ends the process.
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
    /// The oldest client is first.
    clients: VecDeque<Client>,
    /// Upper bound of clients.
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
    /// The client's deadline.
    until: Instant,
}

enum State {
    /// The client is sending its request: the bytes received so far.
    Asking(Vec<u8>),
    /// The client's command is under way.
    Waiting(Pending),
    /// The answer, and the number of its bytes that are written.
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

    /// Waits for a client, a connection or a deadline, at most `no_longer`.
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
        // A signal may interrupt the wait. All clients are then checked, which does no harm.
        let _ = poll(&mut fds, timeout.as_ref());
        // The number of wake-ups does not matter.
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let stream = match accept_with(&self.listener, flags) {
                Ok(stream) => UnixStream::from(stream),
                Err(rustix::io::Errno::AGAIN) => return,
                // The process is out of descriptors: drop an idle client to free one.
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) if self.make_room() => {
                    continue;
                }
                Err(error) => {
                    log::debug!("cannot accept a connection of a control client: {error}");
                    // The shortage may last, and the listener stays readable: wait before the next
                    // attempt.
                    std::thread::sleep(LOOK_EVERY);
                    return;
                }
            };
            let mut client = Client::new(stream);
            if self.clients.len() >= self.most && !self.make_room() {
                let busy = format!(
                    "{} commands are in progress, and no more are accepted: try again later",
                    self.most
                );
                client.answer(Err(busy));
                client.write();
                continue;
            }
            client.attend(&self.handler);
            self.clients.push_back(client);
        }
    }

    /// Drops the oldest client that is silent or has not read its answer. Returns whether there was
    /// one.
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

    /// Answers the clients at the end of the process. A command that is still under way gets no
    /// other outcome. Clients that connected before the socket's name was removed are answered,
    /// even if they have not sent a request yet.
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
            // `poll` reports a hang-up even if it is not requested.
            State::Waiting(_) | State::Gone => PollFlags::empty(),
        }
    }

    /// Serves the client as far as possible without blocking.
    fn attend(&mut self, handler: &Mutex<Handler>) {
        if let Some(request) = self.read() {
            self.begin(request, handler);
        }
        self.look();
        self.write();
        if !matches!(self.state, State::Waiting(_)) && Instant::now() >= self.until {
            log::debug!(
                "closed the connection of a control client that sent nothing, or did not read its answer"
            );
            self.state = State::Gone;
        }
    }

    /// Returns the request when it is complete.
    fn read(&mut self) -> Option<Vec<u8>> {
        let State::Asking(line) = &mut self.state else { return None };
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) if line.is_empty() => {
                    self.state = State::Gone;
                    return None;
                }
                // The client has closed its side. The bytes may be a request without a line end.
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
                    "expected a JSON command, for instance {{\"command\":\"status\"}}, found: {error}"
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
                // A time-out that would overflow becomes one of a century.
                self.until =
                    now.checked_add(wait).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
                self.state = State::Waiting(pending);
            }
        }
    }

    /// Answers a client that does not wait: with the outcome if it is known, or with how far the
    /// command is.
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
            return self.answer(Err(format!("not done in time, and still in progress: {so_far}")));
        }
        // No more bytes are expected: read only to notice that the client closes.
        if matches!(self.stream.read(&mut [0; 512]), Ok(0)) && self.has_hung_up() {
            self.state = State::Gone;
        }
    }

    /// Whether the client no longer reads either. A client that has closed only its sending side
    /// still waits.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Answers how far the client's command is, at the end of the process. A silent client is
    /// answered at `silent_until`.
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
