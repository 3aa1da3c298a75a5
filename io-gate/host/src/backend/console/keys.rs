//! A console's input: standard input, which the device thread reads without blocking.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use rustix::io::read;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Signal, getpid, kill_process};
use rustix::stdio::stdin;

use crate::backend::interest::{Interest, Retry};
use crate::backend::terminal;
use crate::descriptors::{self, CONSOLE_INPUT};
use crate::inputs::{Inputs, Role, Token};

/// Upper bound of the input taken at once, in bytes.
const INPUT: usize = 1024;
/// Ctrl-A: the next key is for this process, not for the guest.
const ESCAPE: u8 = 0x01;
/// Interval between retries for a pipe without writers: the first one, and the upper bound.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Keys {
    // Declared before the descriptor that it watches, so that it is dropped first.
    interest: Interest,
    retry: Retry,
    place: (Inputs, Token),
    /// A file description of this process's own, which is non-blocking. With `None`, standard input
    /// itself is read.
    own: Option<File>,
    is_socket: bool,
    /// Whether a writer may come back: to a FIFO, or at a terminal that its shell gives to this
    /// process.
    may_come_back: bool,
    /// There is no writer now.
    ended: bool,
    /// Whether the missing input has been logged.
    reported: bool,
    escaped: bool,
}

impl Keys {
    pub(super) fn attach(inputs: &Inputs, token: Token) -> io::Result<Self> {
        let kind = descriptors::kind_of(CONSOLE_INPUT);
        let mut keys = Self {
            interest: Interest::new(),
            retry: Retry::new(inputs, token, Role::InputTimer, RETRY, RETRY_LONGEST)?,
            place: (inputs.clone(), token),
            own: descriptors::own_description(CONSOLE_INPUT, false),
            is_socket: kind.is_some_and(|kind| kind.is_socket()),
            may_come_back: kind.is_some_and(|kind| kind.is_fifo()) || terminal::is_attached(),
            ended: false,
            reported: false,
            escaped: false,
        };
        keys.look_again();
        Ok(keys)
    }

    /// Watches standard input: at the beginning, and again some time after its last writer has
    /// gone.
    pub(super) fn look_again(&mut self) {
        self.retry.expired();
        let (inputs, token) = &self.place;
        self.ended = false;
        // A regular file or a closed descriptor cannot be watched: there are no keys to wait for.
        if let Err(error) = self.interest.watch(inputs.watch(self.fd().as_raw_fd(), *token)) {
            log::debug!("console: cannot watch standard input: {error}");
            self.interest.unwatch();
            self.ended = true;
        }
    }

    pub(super) fn want(&mut self, wanted: bool) {
        self.interest.want_input(wanted);
    }

    pub(super) fn receive(&mut self, into: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        let mut keys = [0_u8; INPUT];
        match self.read(&mut keys) {
            Ok(0) => self.has_ended(None),
            Ok(count) => {
                self.retry.worked();
                self.reported = false;
                keys[..count].iter().for_each(|key| self.key(*key, into));
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => self.has_ended(Some(&error)),
            },
        }
    }

    fn read(&self, keys: &mut [u8]) -> io::Result<usize> {
        let fd = self.fd();
        if self.is_socket {
            let (count, _) = recv(fd, keys, RecvFlags::DONTWAIT)?;
            return Ok(count);
        }
        if self.own.is_none() && !ready(fd, libc::POLLIN, 0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(read(fd, keys)?)
    }

    /// Stops watching: a descriptor that has hung up is always ready.
    fn has_ended(&mut self, error: Option<&io::Error>) {
        self.ended = true;
        self.interest.unwatch();
        if !std::mem::replace(&mut self.reported, true) {
            match error {
                // This is also the error of a terminal that belongs to another job (SIGTTIN is
                // ignored).
                Some(error) if self.may_come_back => {
                    log::info!("console: cannot read standard input now: {error}")
                }
                Some(error) => log::warn!("console: standard input is no longer read: {error}"),
                None => log::info!("console: standard input has ended"),
            }
        }
        if self.may_come_back {
            self.retry.later();
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or(stdin(), AsFd::as_fd)
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
                // The handler of the signal ends the machine in good order. A process may always
                // send itself a signal.
                let _ = kill_process(getpid(), Signal::TERM);
            }
            ESCAPE => into.push(ESCAPE),
            other => into.extend([ESCAPE, other]),
        }
    }
}

/// Waits at most `patience_ms` milliseconds until a descriptor can be read or written without
/// blocking. Returns whether it can.
pub(super) fn ready(fd: BorrowedFd<'_>, events: libc::c_short, patience_ms: libc::c_int) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid `pollfd`, and the count says one.
    let count = unsafe { libc::poll(&raw mut poll, 1, patience_ms) };
    count == 1 && poll.revents & libc::POLLNVAL == 0
}
