//! Consoles: the process's own terminal, a file, or nothing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use io_gate::Outcome;
use vmm_sys_util::epoll::EventSet;

use super::image_format;
use crate::descriptors::{self, CONSOLE_INPUT, CONSOLE_OUTPUT};
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Role, Token, Watch};
use crate::own_files;

/// A pipe or terminal that is ready takes this much without blocking.
const PIECE: usize = 4096;
/// Output beyond this, to a terminal that takes none, is dropped.
const MAX_QUEUED: usize = 1024 * 1024;
/// How much input is taken at once.
const INPUT: usize = 1024;
/// How long a clean shutdown waits for a terminal that takes no output.
const PATIENCE_MS: libc::c_int = 2000;
/// Ctrl-A: the next key is for this process, not for the guest.
const ESCAPE: u8 = 0x01;

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The system refuses.
    #[error(
        "console file {path}: cannot open it: {error}{}; check the path given with file=",
        hint(error)
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// It is something else.
    #[error(
        "console file {path}: expected a new file, a text, or a device that shows text, found {found}; it is left alone: choose another path"
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
}

/// Empties a file of ours; of another's the bytes stay. Not for a takeover: the file holds whatever
/// its guest has written.
fn begin_anew(file: &File, path: &Path) -> Result<(), ConsoleError> {
    let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
    if own_files::is_marked(file) {
        return file.set_len(0).map_err(failed);
    }
    // It is open to be written to only.
    let reader = descriptors::console_file_to_look_at(path).map_err(failed)?;
    let found = match image_format::of_file(&reader).map_err(failed)? {
        Some(format) => format.name,
        None if begins_with_zero(&reader) => "binary data",
        None => return Ok(()),
    };
    Err(ConsoleError::Kind { path: path.to_owned(), found: found.to_owned() })
}

/// As an empty disk does, and no text.
fn begins_with_zero(file: &File) -> bool {
    let mut first = [1];
    file.read_at(&mut first, 0).is_ok() && first == [0]
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENXIO) => " (a FIFO that nobody reads, or a socket)",
        _ => "",
    }
}

/// An open console.
#[derive(Debug)]
pub struct Console(Kind);

#[derive(Debug)]
enum Kind {
    None,
    File(File),
    Stdio(Stdio),
}

impl Console {
    /// A console that nobody reads.
    #[must_use]
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// Standard input and output. Ctrl-A x ends the process in good order, Ctrl-A Ctrl-A sends
    /// Ctrl-A; on a terminal see [`RawMode`](super::terminal::RawMode).
    #[must_use]
    pub fn stdio() -> Self {
        Self(Kind::Stdio(Stdio::default()))
    }

    /// A file, for output only. One that a console of kemari has made is begun anew, unless `append`
    /// is set; to any other the output is added, and one that looks like an image is refused then.
    ///
    /// # Errors
    /// When it cannot be opened for writing, or is something else.
    pub fn file(path: &Path, append: bool) -> Result<Self, ConsoleError> {
        let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
        let other = |found| ConsoleError::Kind { path: path.to_owned(), found };
        // By its name: to open a block device may already disturb it.
        if let Ok(found) = std::fs::metadata(path)
            && found.file_type().is_block_device()
        {
            return Err(other(own_files::describe(&found)));
        }
        let file = descriptors::console_file(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            if metadata.len() == 0 {
                own_files::mark(&file);
            } else if !append {
                begin_anew(&file, path)?;
            }
        }
        Ok(Self(Kind::File(file)))
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        if let Kind::Stdio(stdio) = &mut self.0 {
            stdio.attach(inputs, token);
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &Gather<'_>) -> Outcome {
        match &mut self.0 {
            Kind::None => {}
            Kind::File(file) => {
                if let Err(error) = file.write_all(&bytes.to_vec(MAX_QUEUED)) {
                    log::warn!("console: cannot write to its file: {error}");
                    return Outcome::Failed;
                }
            }
            Kind::Stdio(stdio) => stdio.write(&bytes.to_vec(MAX_QUEUED)),
        }
        Outcome::Success(0)
    }

    /// An event: whether the lane has to attend to it, and whether input waits.
    pub(crate) fn handle(&mut self, role: Role, events: EventSet) -> (bool, bool) {
        let Kind::Stdio(stdio) = &mut self.0 else { return (false, false) };
        if role == Role::Output {
            // Until the lane has sent something, the descriptor would only be ready again.
            stdio.watch_output(false);
            return (true, false);
        }
        (false, events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR))
    }

    /// Sends what is queued. Lane.
    pub(crate) fn attend(&mut self) {
        if let Kind::Stdio(stdio) = &mut self.0 {
            stdio.send_queued(0);
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        match &mut self.0 {
            Kind::Stdio(stdio) => stdio.receive(into),
            Kind::None | Kind::File(_) => false,
        }
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        if let Kind::Stdio(stdio) = &mut self.0 {
            stdio.want_input(wanted);
        }
    }

    /// Waits a while for a terminal to take what is queued.
    pub(crate) fn drain(&mut self) {
        if let Kind::Stdio(stdio) = &mut self.0 {
            stdio.send_queued(PATIENCE_MS);
        }
    }
}

/// The process's own input and output. Their descriptors are shared with other processes (the
/// shell), so they are not made non-blocking: readiness is asked for before each call instead.
#[derive(Default)]
struct Stdio {
    input: Option<Watch>,
    output: Option<Watch>,
    queued: Vec<u8>,
    escaped: bool,
    ended: bool,
    input_wanted: bool,
}

impl Stdio {
    fn attach(&mut self, inputs: &Inputs, token: Token) {
        self.output = Some(inputs.watch(CONSOLE_OUTPUT, Token { role: Role::Output, ..token }));
        let mut input = inputs.watch(CONSOLE_INPUT, token);
        match input.want(EventSet::IN) {
            Ok(()) => {
                self.input = Some(input);
                self.input_wanted = true;
            }
            // A regular file or a closed descriptor: there is nobody to type.
            Err(error) => {
                log::debug!("console: standard input is not watched: {error}");
                self.ended = true;
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.queued.len() + bytes.len() > MAX_QUEUED {
            return;
        }
        self.queued.extend_from_slice(bytes);
        self.send_queued(0);
    }

    fn send_queued(&mut self, patience_ms: libc::c_int) {
        let mut sent = 0;
        while sent < self.queued.len() && ready(CONSOLE_OUTPUT, libc::POLLOUT, patience_ms) {
            let piece = &self.queued[sent..self.queued.len().min(sent + PIECE)];
            // SAFETY: the pointer and the length describe `piece`.
            let count = unsafe { libc::write(CONSOLE_OUTPUT, piece.as_ptr().cast(), piece.len()) };
            match usize::try_from(count) {
                Ok(count) => sent += count,
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    // Nobody reads any more: the guest goes on without.
                    _ => sent = self.queued.len(),
                },
            }
        }
        self.queued.drain(..sent);
        self.watch_output(!self.queued.is_empty());
    }

    fn watch_output(&mut self, wanted: bool) {
        let wanted = if wanted { EventSet::OUT } else { EventSet::empty() };
        if let Some(output) = &mut self.output
            && output.want(wanted).is_err()
        {
            // A regular file cannot be watched, and never has to be waited for.
            self.output = None;
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        into.clear();
        if self.ended || !ready(CONSOLE_INPUT, libc::POLLIN, 0) {
            return false;
        }
        let mut keys = [0_u8; INPUT];
        // SAFETY: the pointer and the length describe `keys`.
        let got = unsafe { libc::read(CONSOLE_INPUT, keys.as_mut_ptr().cast(), keys.len()) };
        match usize::try_from(got) {
            Ok(0) => {
                self.ended = true;
                self.input = None;
            }
            Ok(got) => keys[..got].iter().for_each(|key| self.key(*key, into)),
            Err(_) => {}
        }
        !into.is_empty()
    }

    fn key(&mut self, key: u8, into: &mut Vec<u8>) {
        if !std::mem::take(&mut self.escaped) {
            if key == ESCAPE {
                self.escaped = true;
            } else {
                into.push(key);
            }
            return;
        }
        match key {
            b'x' | b'X' => {
                // SAFETY: a system call on our own process without pointers; the handler of the
                // signal ends the machine in good order.
                unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
            }
            ESCAPE => into.push(ESCAPE),
            other => into.extend([ESCAPE, other]),
        }
    }

    fn want_input(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.input_wanted, wanted) == wanted {
            return;
        }
        let events = if wanted { EventSet::IN } else { EventSet::empty() };
        if let Some(input) = &mut self.input
            && let Err(error) = input.want(events)
        {
            log::warn!("console: epoll_ctl on standard input: {error}");
        }
    }
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdio").field("queued", &self.queued.len()).finish_non_exhaustive()
    }
}

/// Whether a descriptor can be read or written without blocking, after waiting for it this long.
fn ready(fd: RawFd, events: libc::c_short, patience_ms: libc::c_int) -> bool {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid `pollfd`, and the count says one.
    let count = unsafe { libc::poll(&raw mut poll, 1, patience_ms) };
    count == 1 && poll.revents & libc::POLLNVAL == 0
}

/// Whether a descriptor is a terminal.
pub(super) fn is_terminal(fd: &impl AsRawFd) -> bool {
    // SAFETY: a system call on a descriptor, without pointers.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}
