//! The destination of a console's output: a descriptor. Writing never waits for a reader.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use rustix::stdio::stdout;

use crate::descriptors::{self, CONSOLE_OUTPUT};
use crate::out::{self, Kept, Refused, with_permits};
use crate::permit::Permits;

/// See the module.
#[derive(Debug)]
pub(super) struct Sink {
    /// `None` if standard output itself is written to.
    file: Option<File>,
    how: How,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// A regular file always accepts all bytes.
    File,
    /// A pipe, FIFO or terminal through a file description of this process's own, which is
    /// non-blocking.
    Stream,
    Socket,
    /// A file description that is shared with other processes (the shell), and so is not made
    /// non-blocking. Instead, readiness is checked before each call. If another writer is faster,
    /// the lane blocks in the call. No thread waits for the lane.
    Shared,
}

impl Sink {
    pub(super) fn of_file(file: File, name: String) -> io::Result<Self> {
        let how = if file.metadata()?.is_file() { How::File } else { How::Stream };
        Ok(Self { file: Some(file), how, name })
    }

    pub(super) fn stdout() -> Self {
        let name = "console on standard output".to_owned();
        if let Some(own) = descriptors::own_description(CONSOLE_OUTPUT, true) {
            return Self { file: Some(own), how: How::Stream, name };
        }
        let how = match descriptors::kind_of(CONSOLE_OUTPUT) {
            Some(kind) if kind.is_file() => How::File,
            Some(kind) if kind.is_socket() => How::Socket,
            _ => How::Shared,
        };
        Self { file: None, how, name }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().map_or(stdout(), AsFd::as_fd)
    }

    /// The name for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the sink can be without room. A regular file always has room and cannot be watched.
    pub(super) fn has_to_be_waited_for(&self) -> bool {
        self.how != How::File
    }

    /// Writes a part of a piece, with one permit. Returns `None` if there is no room. A ready pipe
    /// or terminal accepts a piece of at most 4096 bytes without blocking, unless another writer is
    /// faster.
    pub(super) fn write(
        &self,
        permits: &mut Permits<'_>,
        piece: &Kept,
    ) -> Result<Option<usize>, Refused> {
        let fd = self.fd();
        if self.how == How::Shared && !self.wait_for_room(0) {
            return Ok(None);
        }
        let written = with_permits(
            || permits.next(),
            |permit| match self.how {
                How::Socket => out::send_bytes(permit, fd, piece),
                How::File | How::Stream | How::Shared => out::write(permit, fd, piece),
            },
        );
        match written {
            Ok(count) => Ok(Some(count)),
            Err(Refused::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// Waits at most `patience_ms` milliseconds for room. Returns whether there is any.
    pub(super) fn wait_for_room(&self, patience_ms: libc::c_int) -> bool {
        super::keys::ready(self.fd(), libc::POLLOUT, patience_ms)
    }
}
