//! The other end of a guest's network cable (`--net stream=SOCKET`). The length of each frame, a
//! big-endian `u32`, precedes the frame.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The longest wait of [`Wire::receive`].
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Number of bytes of one read.
const CHUNK: usize = 256 << 10;
/// The longest valid frame, in bytes.
const LONGEST: usize = 64 << 10;
const PREFIX: usize = 4;

/// A cable with a monitor at its other end.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// The socket to which a monitor connects.
#[derive(Debug)]
pub(crate) struct Socket(UnixListener);

impl Socket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub(crate) fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Waits for the monitor. `alive` is called repeatedly, and its error ends the wait.
    ///
    /// # Errors
    /// The monitor does not connect within `timeout`.
    pub(crate) fn accept(
        &self,
        timeout: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Wire> {
        let begun = Instant::now();
        while begun.elapsed() < timeout {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(TICK))?;
                    return Ok(Wire { stream, buffer: vec![0; CHUNK], start: 0, end: 0 });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    alive()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
        bail!("the monitor does not connect to its network within {timeout:?}")
    }
}

impl Wire {
    /// Sends a frame.
    ///
    /// # Errors
    /// The monitor has closed the connection.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(PREFIX + frame.len());
        message.extend((frame.len() as u32).to_be_bytes());
        message.extend(frame);
        self.stream.write_all(&message).context("the guest's network cannot be written to")
    }

    /// The next frame; `None` if none arrives within [`TICK`].
    ///
    /// # Errors
    /// The monitor has closed the connection, or sends data that is not a frame.
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let ready = &self.buffer[self.start..self.end];
            if let Some((prefix, rest)) = ready.split_first_chunk::<PREFIX>() {
                let length = u32::from_be_bytes(*prefix) as usize;
                ensure!(length <= LONGEST, "a frame of {length} bytes");
                if rest.len() >= length {
                    let begin = self.start + PREFIX;
                    self.start = begin + length;
                    return Ok(Some(&self.buffer[begin..begin + length]));
                }
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => bail!("the monitor has closed its network"),
                Ok(count) => self.end += count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
