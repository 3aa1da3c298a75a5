//! A port of the switch: its framing, and a sender that never blocks on a stopped receiver.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::frame::{InHand, MAX_FRAME};
use super::tap;

const LENGTH: usize = 4;

/// The connection of a port.
#[derive(Debug)]
pub(super) enum Link {
    Down,
    Socket(SocketLink),
    /// The other end of a tap, and whether its reader holds a frame.
    Tap {
        tap: File,
        in_hand: InHand,
    },
    Internal(Sender<Vec<u8>>),
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) link: Link,
    pub(super) cut: bool,
    /// Time for each frame, if the port is slow.
    pub(super) pace: Option<Duration>,
    /// The connection whose frames are dropped.
    pub(super) loses: Option<u32>,
}

impl Port {
    pub(super) fn new(link: Link) -> Self {
        Self { link, cut: false, pace: None, loses: None }
    }

    pub(super) fn connect(&mut self, socket: UnixStream, connection: u32, in_hand: InHand) {
        self.link = Link::Socket(SocketLink { socket, connection, unsent: Vec::new(), in_hand });
    }

    /// Whether the reader has read and forwarded all frames that were sent.
    pub(super) fn is_settled(&self) -> bool {
        match &self.link {
            // Check the socket first: a frame that has left the socket stays in the reader's hands
            // until it is forwarded.
            Link::Socket(link) => {
                rustix::io::ioctl_fionread(&link.socket).is_ok_and(|unread| unread == 0)
                    && !link.in_hand.load(Ordering::SeqCst)
            }
            Link::Tap { tap, in_hand } => {
                tap::is_readable(tap, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
                    .is_ok_and(|waits| !waits)
                    && !in_hand.load(Ordering::SeqCst)
            }
            Link::Down | Link::Internal(_) => true,
        }
    }

    /// The number of the connection, if the port is a socket.
    pub(super) fn connection(&self) -> Option<u32> {
        match &self.link {
            Link::Socket(link) => Some(link.connection),
            _ => None,
        }
    }

    /// The program of `connection` has disconnected. A newer program may already be connected.
    pub(super) fn disconnect(&mut self, connection: u32) {
        if matches!(&self.link, Link::Socket(link) if link.connection == connection) {
            self.link = Link::Down;
        }
    }

    pub(super) fn unplug(&mut self) {
        if let Link::Socket(link) = std::mem::replace(&mut self.link, Link::Down) {
            let _ = link.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Sends a frame. Drops it if the cable is cut, no program is connected, or the program's queue
    /// is full, as a real switch does.
    pub(super) fn send(&mut self, frame: &[u8]) {
        if self.cut {
            return;
        }
        match &mut self.link {
            Link::Down => {}
            Link::Socket(link) => link.send(frame),
            // The write fails if the tap's queue is full or the tap is down. The frame is then
            // lost, as on any network.
            Link::Tap { tap, .. } => drop(tap.write(frame)),
            // The send fails if the receiver is gone. The frame is then lost.
            Link::Internal(sender) => drop(sender.send(frame.to_vec())),
        }
    }
}

#[derive(Debug)]
pub(super) struct SocketLink {
    socket: UnixStream,
    connection: u32,
    /// The rest of a frame of which the socket took only a part. It must leave before the next
    /// frame.
    unsent: Vec<u8>,
    in_hand: InHand,
}

impl SocketLink {
    fn send(&mut self, frame: &[u8]) {
        if !self.unsent.is_empty() {
            let sent = self.send_now(&self.unsent);
            self.unsent.drain(..sent);
            if !self.unsent.is_empty() {
                return;
            }
        }
        let mut message = Vec::with_capacity(LENGTH + frame.len());
        message.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        message.extend_from_slice(frame);
        let sent = self.send_now(&message);
        if sent != 0 {
            self.unsent.extend_from_slice(&message[sent..]);
        }
    }

    /// Sends without blocking, and returns the number of bytes sent: 0 on an error. The reader of
    /// this connection sees the error too, and ends it.
    fn send_now(&self, bytes: &[u8]) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::send(&self.socket, bytes, flags) {
                Ok(sent) => return sent,
                Err(Errno::INTR) => {}
                Err(_) => return 0,
            }
        }
    }
}

/// Splits a byte stream into frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    socket: UnixStream,
    in_hand: InHand,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(super) fn new(socket: UnixStream) -> Self {
        let buffer = vec![0; 4 * (LENGTH + MAX_FRAME)];
        Self { socket, in_hand: InHand::default(), buffer, start: 0, end: 0 }
    }

    pub(super) fn in_hand(&self) -> InHand {
        Arc::clone(&self.in_hand)
    }

    /// Waits until the socket is readable or closed. All frames read before have been forwarded.
    fn wait(&self) -> io::Result<()> {
        self.in_hand.store(false, Ordering::SeqCst);
        let mut wanted = [PollFd::new(&self.socket, PollFlags::IN)];
        let found = poll(&mut wanted, None);
        self.in_hand.store(true, Ordering::SeqCst);
        found.map(drop).or_else(|error| match error {
            Errno::INTR => Ok(()),
            other => Err(other.into()),
        })
    }

    /// The next frame; `None` at the end of the stream.
    pub(super) fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        if !self.fill(LENGTH)? {
            return Ok(None);
        }
        let mut length = [0; LENGTH];
        length.copy_from_slice(&self.buffer[self.start..self.start + LENGTH]);
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            let reason = format!("expected a frame of at most {MAX_FRAME} bytes, found {length}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if !self.fill(LENGTH + length)? {
            return Ok(None);
        }
        let frame = self.start + LENGTH..self.start + LENGTH + length;
        self.start = frame.end;
        Ok(Some(&self.buffer[frame]))
    }

    /// Reads until `wanted` bytes are in the buffer; `false` if the stream ends first.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < wanted {
            self.wait()?;
            match self.socket.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A killed program resets its socket: treat this as the end of the stream.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
