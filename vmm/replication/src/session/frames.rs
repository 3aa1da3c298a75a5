//! Reads frames from a link.

use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

use ft_core::wire::{Frame, HEADER_LEN, Header, WireError};

use crate::link::Buffers;

/// A link that reports arriving bytes, at most once per `every`: over a slow link one frame may
/// take longer than the heartbeat timeout.
pub(crate) struct Watched<R, F> {
    link: R,
    every: Duration,
    told: Instant,
    progress: F,
}

impl<R, F: FnMut()> Watched<R, F> {
    pub(crate) fn new(link: R, every: Duration, progress: F) -> Self {
        Self { link, every, told: Instant::now(), progress }
    }
}

impl<R: Read, F: FnMut()> Read for Watched<R, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.link.read(into)?;
        if count > 0 && self.told.elapsed() >= self.every {
            self.told = Instant::now();
            (self.progress)();
        }
        Ok(count)
    }
}

/// How the reading of a link ended.
pub(crate) enum ReadEnd {
    /// Bytes arrived that are not a valid frame.
    Garbled(WireError),
    /// The link has ended.
    Lost(String),
}

/// Bytes of read-ahead: one system call reads several small frames. Larger bodies are read in
/// place.
const READ_AHEAD: usize = 64 << 10;

/// Reads frames until the link ends. Allocates memory only after a header has passed its checks,
/// which bound the length of each kind of frame.
pub(crate) fn read_frames(
    link: impl Read,
    buffers: &Buffers,
    mut each: impl FnMut(Frame),
) -> ReadEnd {
    let mut link = BufReader::with_capacity(READ_AHEAD, link);
    loop {
        let mut header = [0; HEADER_LEN];
        if let Err(error) = link.read_exact(&mut header) {
            return ReadEnd::Lost(read_error(&error));
        }
        let header = match Header::parse(&header) {
            Ok(header) => header,
            Err(error) => return ReadEnd::Garbled(error),
        };
        let mut body = buffers.take(header.body_len as usize);
        if let Err(error) = link.read_exact(&mut body) {
            return ReadEnd::Lost(read_error(&error));
        }
        match Frame::verify(header, body) {
            Ok(frame) => each(frame),
            Err(error) => return ReadEnd::Garbled(error),
        }
    }
}

fn read_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the other side has closed it".to_owned(),
        _ => error.to_string(),
    }
}
