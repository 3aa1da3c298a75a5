//! Consoles: the process's own terminal, a file, or nothing.

pub(crate) mod console_file;
mod keys;
mod output;
mod sink;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::EventSet;

use super::Handled;
use crate::inputs::{Inputs, Role, Token};
use crate::poisoned::POISONED;
use keys::Keys;
pub(crate) use output::Output;
use output::Room;
use sink::Sink;

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The system refused.
    #[error(
        "console file {path}: cannot open it: {error}{}; check the path given with file=",
        hint(path, error)
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Another machine prints to the file.
    #[error(
        "console file {path}: another process uses it; use another file for this machine, or stop the other process \
         first"
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a log.
    #[error(
        "console file {path}: expected a new file, a text, or a device that shows text, found {found}; it is left alone: give another path with file="
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
}

fn hint(path: &Path, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) if path.is_symlink() => " (the target of this symbolic link)",
        Some(libc::ENXIO) => " (a socket, or a device that does not exist)",
        _ => "",
    }
}

/// An open console.
#[derive(Debug)]
pub struct Console(Kind);

#[derive(Debug)]
enum Kind {
    None,
    File(Sink),
    Stdio,
}

impl Console {
    /// A console without input and output.
    #[must_use]
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// Standard input and output. Ctrl-A x ends the process in good order, and Ctrl-A Ctrl-A sends
    /// Ctrl-A to the guest. For a terminal see [`RawMode`](super::terminal::RawMode).
    #[must_use]
    pub fn stdio() -> Self {
        Self(Kind::Stdio)
    }

    /// A file, for output only; or a FIFO, whose reader may come later; or a terminal. A file that
    /// a console of kemari has created is cleared first, unless `append` is set. Any other text
    /// file is appended to. Without `append`, a file that is not text is refused.
    ///
    /// # Errors
    /// When the file cannot be opened for writing, is not a log, or is used by another machine.
    pub fn file(path: &Path, append: bool) -> Result<Self, ConsoleError> {
        let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
        let file = console_file::open(path, append)?;
        let name = format!("console {}", path.display());
        Ok(Self(Kind::File(Sink::of_file(file, name).map_err(failed)?)))
    }

    /// Checks that [`Self::file`] would accept this file for a machine that starts. Changes
    /// nothing.
    ///
    /// # Errors
    /// When it would refuse the file.
    pub fn check_file(path: &Path) -> Result<(), ConsoleError> {
        console_file::check(path)
    }

    /// Splits the console into its two halves, and watches its descriptors.
    pub(crate) fn attach(self, inputs: &Inputs, token: Token) -> io::Result<(Output, Input)> {
        let (sink, keys) = match self.0 {
            Kind::None => (None, None),
            Kind::File(sink) => (Some(sink), None),
            Kind::Stdio => (Some(Sink::stdout()), Some(Keys::attach(inputs, token)?)),
        };
        let room = Arc::new(Mutex::new(Room::new(inputs, token)?));
        if let Some(sink) = sink.as_ref().filter(|sink| sink.has_to_be_waited_for()) {
            let token = Token { role: Role::Output, ..token };
            let watch = inputs.watch(sink.fd().as_raw_fd(), token);
            room.lock().expect(POISONED).watch(watch)?;
        }
        let input = Input { room: room.clone(), keys: keys.map(Mutex::new) };
        Ok((Output::new(sink, room), input))
    }
}

/// The half of a console that other threads use.
pub(crate) struct Input {
    /// Neither lock is held across a call that can block.
    room: Arc<Mutex<Room>>,
    keys: Option<Mutex<Keys>>,
}

impl Input {
    pub(crate) fn handle(&self, role: Role, events: EventSet) -> Handled {
        match role {
            Role::Output | Role::Timer => {
                let mut room = self.room.lock().expect(POISONED);
                if role == Role::Timer {
                    room.expired();
                } else {
                    // Until the lane has written something, the descriptor would be reported as
                    // ready again.
                    room.want(false);
                }
                Handled { attend: true, input: false }
            }
            Role::InputTimer => {
                self.with_keys(Keys::look_again);
                Handled::default()
            }
            Role::Data => {
                let any = EventSet::IN | EventSet::HANG_UP | EventSet::ERROR;
                Handled { attend: false, input: events.intersects(any) }
            }
        }
    }

    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> bool {
        into.clear();
        self.with_keys(|keys| keys.receive(into));
        !into.is_empty()
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        self.with_keys(|keys| keys.want(wanted));
    }

    fn with_keys(&self, call: impl FnOnce(&mut Keys)) {
        if let Some(keys) = &self.keys {
            call(&mut keys.lock().expect(POISONED));
        }
    }
}
