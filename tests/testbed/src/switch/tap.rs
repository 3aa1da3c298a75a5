//! The other end of a tap: each read and each write is one frame.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::frame::{InHand, MAX_FRAME};

/// Interval at which the reader checks whether the switch is closed.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Reads frames from a tap.
#[derive(Debug)]
pub(super) struct TapReader {
    pub(super) tap: File,
    in_hand: InHand,
    buffer: Vec<u8>,
}

impl TapReader {
    pub(super) fn new(tap: File) -> Self {
        Self { tap, in_hand: InHand::default(), buffer: vec![0; MAX_FRAME] }
    }

    pub(super) fn in_hand(&self) -> InHand {
        Arc::clone(&self.in_hand)
    }

    /// The next frame; `None` if none arrives within [`TURN`]. The previous frame has been
    /// forwarded.
    pub(super) fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        self.in_hand.store(false, Ordering::SeqCst);
        if !is_readable(&self.tap, Some(&TURN))? {
            return Ok(None);
        }
        self.in_hand.store(true, Ordering::SeqCst);
        match self.tap.read(&mut self.buffer) {
            Ok(count) => Ok(Some(&self.buffer[..count])),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether a frame is ready. Waits for one for at most `wait`; `None` means without a limit.
pub(super) fn is_readable(tap: &File, wait: Option<&Timespec>) -> io::Result<bool> {
    let mut wanted = [PollFd::new(tap, PollFlags::IN)];
    match poll(&mut wanted, wait) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
