//! A learning Ethernet switch in user space, which connects both hosts of a pair and the client.
//!
//! A port is a listening Unix stream socket with the framing of QEMU's `-netdev stream` and of
//! passt. The switch learns addresses, and keeps them when a cable is cut: a takeover without an
//! announcement therefore shows as a gap. The switch records each frame, and can cut a cable
//! silently.

mod frame;
mod port;
mod tap;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::capture::{Fate, Frame, Mac};
use port::{FrameReader, Link, Port};
use tap::TapReader;

/// The switch. Dropping it removes its sockets.
#[derive(Debug)]
pub struct Switch {
    fabric: Arc<Fabric>,
    sockets: Vec<PathBuf>,
    acceptors: Vec<JoinHandle<()>>,
}

impl Switch {
    /// Creates a switch with a socket in `dir` for each of `names`. A port's number is its index in
    /// `names`.
    ///
    /// # Errors
    /// A socket cannot be created.
    pub fn new(dir: &Path, names: &[&str]) -> io::Result<Self> {
        let fabric = Arc::new(Fabric::default());
        let mut switch = Self { fabric, sockets: Vec::new(), acceptors: Vec::new() };
        for name in names {
            let path = dir.join(format!("{name}.net"));
            let listener = UnixListener::bind(&path)?;
            let port = switch.fabric.add_port(Link::Down);
            let fabric = Arc::clone(&switch.fabric);
            switch.sockets.push(path);
            switch.acceptors.push(thread::spawn(move || accept(&fabric, &listener, port)));
        }
        Ok(switch)
    }

    /// The path of the socket of `port`.
    pub fn socket(&self, port: usize) -> &Path {
        &self.sockets[port]
    }

    /// Connects a program in this process.
    pub fn plug_in(&self) -> Cable {
        let (sender, frames) = mpsc::channel();
        let port = self.fabric.add_port(Link::Internal(sender));
        Cable { fabric: Arc::clone(&self.fabric), port, frames }
    }

    /// Connects the other end of a tap to `port`, in place of its socket. The tap must be
    /// non-blocking.
    ///
    /// # Errors
    /// No file descriptor is free.
    pub fn plug_in_tap(&self, port: usize, tap: File) -> io::Result<()> {
        let reader = TapReader::new(tap);
        let link = Link::Tap { tap: reader.tap.try_clone()?, in_hand: reader.in_hand() };
        self.fabric.state().ports[port].link = link;
        let fabric = Arc::clone(&self.fabric);
        thread::spawn(move || read_tap(&fabric, reader, port));
        Ok(())
    }

    /// Cuts the cable of `port` silently.
    pub fn cut(&self, port: usize) {
        self.fabric.state().ports[port].cut = true;
    }

    /// Slows `port`: the switch accepts one frame in each `pace`, and later frames wait in the
    /// sender's queue.
    pub fn slow(&self, port: usize, pace: Duration) {
        self.fabric.state().ports[port].pace = Some(pace);
    }

    /// Drops, without recording them, the frames of the program at `port` that the switch has not
    /// accepted, and all its later ones. Used before the program is killed.
    pub fn lose(&self, port: usize) {
        let port = &mut self.fabric.state().ports[port];
        (port.pace, port.loses) = (None, port.connection());
    }

    /// Reconnects the cable of `port`, and accepts its frames at full speed. The frames of a
    /// program given to [`lose`](Self::lose) stay lost.
    pub fn heal(&self, port: usize) {
        let port = &mut self.fabric.state().ports[port];
        (port.cut, port.pace) = (false, None);
    }

    /// Whether all frames that the program at `port` has sent are in the capture. A program that
    /// sends all the time may never be settled.
    pub fn is_settled(&self, port: usize) -> bool {
        self.fabric.state().ports[port].is_settled()
    }

    /// The frames since the last call.
    pub fn take_capture(&self) -> Vec<Frame> {
        std::mem::take(&mut self.fabric.state().capture)
    }

    /// Calls `read` with the capture, which stays.
    pub fn with_capture<R>(&self, read: impl FnOnce(&[Frame]) -> R) -> R {
        read(&self.fabric.state().capture)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.fabric.closed.store(true, Ordering::SeqCst);
        for (path, acceptor) in self.sockets.iter().zip(self.acceptors.drain(..)) {
            // Connect to wake the acceptor, which then sees that the switch is closed.
            let woken = UnixStream::connect(path).is_ok();
            let _ = std::fs::remove_file(path);
            if woken {
                let _ = acceptor.join();
            }
        }
        self.fabric.state().ports.iter_mut().for_each(Port::unplug);
    }
}

/// A connection to the switch for a program in this process.
#[derive(Debug)]
pub struct Cable {
    fabric: Arc<Fabric>,
    port: usize,
    frames: Receiver<Vec<u8>>,
}

impl Cable {
    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        self.fabric.pass(self.port, 0, frame);
    }

    /// The next frame; `None` if none arrives within `timeout`.
    pub fn receive(&self, timeout: Duration) -> Option<Vec<u8>> {
        match self.frames.recv_timeout(timeout) {
            Ok(frame) => Some(frame),
            Err(RecvTimeoutError::Timeout) => None,
            // The switch is gone and no frame will come. Sleep: the caller relies on the wait.
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(timeout);
                None
            }
        }
    }
}

#[derive(Debug, Default)]
struct Fabric {
    state: Mutex<State>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    ports: Vec<Port>,
    addresses: HashMap<Mac, usize>,
    capture: Vec<Frame>,
}

impl Fabric {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the switch")
    }

    fn add_port(&self, link: Link) -> usize {
        let mut state = self.state();
        state.ports.push(Port::new(link));
        state.ports.len() - 1
    }

    /// Records a frame from port `from` and forwards it.
    fn pass(&self, from: usize, connection: u32, bytes: &[u8]) {
        let mut state = self.state();
        if connection != 0 && state.ports[from].loses == Some(connection) {
            return;
        }
        let fate = if state.ports[from].cut { Fate::Cut } else { Fate::Forwarded };
        let Some(frame) = Frame::describe(from, connection, bytes, fate) else { return };
        state.capture.push(frame);
        if fate == Fate::Cut {
            return;
        }
        state.addresses.insert(frame.source, from);
        let destination: Mac = bytes[..6].try_into().expect("a described frame has a header");
        match state.addresses.get(&destination).copied() {
            Some(to) if to == from => {}
            Some(to) => state.ports[to].send(bytes),
            None => state.flood(from, bytes),
        }
    }
}

impl State {
    fn flood(&mut self, from: usize, bytes: &[u8]) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            if number != from {
                port.send(bytes);
            }
        }
    }
}

/// Accepts the programs that connect to `port`, one after the other. The newest one receives the
/// frames.
fn accept(fabric: &Arc<Fabric>, listener: &UnixListener, port: usize) {
    let mut connection = 0;
    while let Ok((socket, _)) = listener.accept() {
        if fabric.closed.load(Ordering::SeqCst) {
            return;
        }
        connection += 1;
        let Ok(output) = socket.try_clone() else { continue };
        let reader = FrameReader::new(socket);
        fabric.state().ports[port].connect(output, connection, reader.in_hand());
        let fabric = Arc::clone(fabric);
        thread::spawn(move || read_frames(&fabric, reader, port, connection));
    }
}

fn read_frames(fabric: &Fabric, mut reader: FrameReader, port: usize, connection: u32) {
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                let pace = fabric.state().ports[port].pace;
                if let Some(pace) = pace {
                    thread::sleep(pace);
                }
                fabric.pass(port, connection, frame);
            }
            Ok(None) => break,
            Err(error) => {
                log::warn!("switch port {port}: {error}");
                break;
            }
        }
    }
    fabric.state().ports[port].disconnect(connection);
}

/// Reads frames until the switch is closed.
fn read_tap(fabric: &Fabric, mut reader: TapReader, port: usize) {
    while !fabric.closed.load(Ordering::SeqCst) {
        match reader.next_frame() {
            Ok(Some(frame)) => fabric.pass(port, 0, frame),
            Ok(None) => {}
            Err(error) => return log::warn!("switch port {port}: {error}"),
        }
    }
}
