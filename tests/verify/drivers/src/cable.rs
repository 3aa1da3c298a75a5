//! The link between the hosts. Threads outside of both hosts forward each connection to `near` on
//! to `far`. A fault can delay the link, silence it, or cut it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ft_core::wire::{self, HEADER_LEN, Header};

use crate::frames::Frames;
use crate::scheduler::Host;
use crate::tally::{self, Kind};
use crate::{hosts, judge};

#[derive(Debug, Default)]
pub(crate) struct Cable {
    ends: Mutex<Vec<UnixStream>>,
    /// The link forwards nothing, and neither end notices.
    silent: AtomicBool,
    /// Delay of each chunk of data, in microseconds.
    micros: AtomicU64,
    /// Number of connections so far.
    joined: AtomicU64,
    /// The first bytes of the first connection, recorded for the stranger.
    overheard: Mutex<Vec<u8>>,
    /// Number of acknowledgements until the primary is killed; 0: never.
    acknowledgements_left: AtomicU64,
}

/// One direction of a connection.
struct Wire {
    from: UnixStream,
    to: UnixStream,
    /// Set when data was sent to a closed end; both directions share it. As with TCP, data in
    /// transit is then lost.
    reset: Arc<AtomicBool>,
    /// Whether the first bytes of this direction are recorded.
    overheard: bool,
}

impl Cable {
    pub(crate) fn lay(near: &Path, far: PathBuf) -> Arc<Self> {
        let listener = UnixListener::bind(near).expect("a socket in the world's directory");
        let cable = Arc::new(Self::default());
        let own = cable.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("a connection");
                own.passes();
                let Ok(far) = UnixStream::connect(&far) else { continue };
                let first = own.joined.fetch_add(1, Ordering::SeqCst) == 0;
                if !first {
                    tally::saw(Kind::SessionEnd);
                }
                let reset = Arc::new(AtomicBool::new(false));
                for (from, to, overheard) in [(&near, &far, first), (&far, &near, false)] {
                    let (from, to, reset) = (clone(from), clone(to), reset.clone());
                    own.ends.lock().expect("not poisoned").push(clone(&from));
                    let (cable, wire) = (own.clone(), Wire { from, to, reset, overheard });
                    std::thread::spawn(move || cable.copy(wire));
                }
            }
        });
        cable
    }

    pub(crate) fn cut(&self) {
        for end in self.ends.lock().expect("not poisoned").drain(..) {
            // The connection may have ended already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Number of connections so far.
    pub(crate) fn joined(&self) -> u64 {
        self.joined.load(Ordering::SeqCst)
    }

    /// A stranger connects to `far`, repeats the first primary's first frame, and stays connected.
    pub(crate) fn greet(&self, far: PathBuf) {
        let heard = self.overheard.lock().expect("not poisoned").clone();
        let header = heard.first_chunk::<HEADER_LEN>().and_then(|first| Header::parse(first).ok());
        let hello = header.and_then(|header| heard.get(..HEADER_LEN + header.body_len as usize));
        let Some(hello) = hello.map(<[u8]>::to_vec) else { return };
        std::thread::spawn(move || {
            let Ok(mut stream) = UnixStream::connect(far) else { return };
            let mut buffer = [0; 4096];
            // The standby may close the connection at any time.
            let _ = stream.write_all(&hello);
            tally::saw(Kind::Stranger);
            while let Ok(1..) = stream.read(&mut buffer) {}
        });
    }

    pub(crate) fn set_silent(&self, on: bool) {
        self.silent.store(on, Ordering::SeqCst);
    }

    pub(crate) fn set_micros(&self, micros: u64) {
        self.micros.store(micros, Ordering::SeqCst);
    }

    /// Kills the primary when the `number`th acknowledgement from now passes.
    pub(crate) fn kill_at_acknowledgement(&self, number: u64) {
        self.acknowledgements_left.store(number, Ordering::SeqCst);
    }

    /// Records a frame that passes.
    fn look(&self, header: &Header) {
        match header.kind {
            wire::Kind::End => judge::sent(header.epoch.0),
            wire::Kind::Image => tally::saw(Kind::ImagesSent),
            wire::Kind::Ack => {
                judge::acknowledged(header.epoch.0);
                let left = self.acknowledgements_left.load(Ordering::SeqCst);
                self.acknowledgements_left.store(left.saturating_sub(1), Ordering::SeqCst);
                if left == 1 {
                    hosts::kill(Host::A);
                }
            }
            _ => {}
        }
    }

    /// Waits for the delay, and until the link is no longer silent.
    fn passes(&self) {
        let micros = self.micros.load(Ordering::SeqCst);
        if micros > 0 {
            std::thread::sleep(Duration::from_micros(micros));
        }
        while self.silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn copy(&self, wire: Wire) {
        let Wire { mut from, mut to, reset, overheard } = wire;
        let mut buffer = [0; 64 << 10];
        let mut frames = Frames::default();
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            frames.add(&buffer[..count], |header| self.look(header));
            if overheard {
                self.overhear(&buffer[..count]);
            }
            self.passes();
            if reset.load(Ordering::SeqCst) {
                break;
            }
            if to.write_all(&buffer[..count]).is_err() {
                reset.store(true, Ordering::SeqCst);
                break;
            }
        }
        self.passes();
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn overhear(&self, bytes: &[u8]) {
        const ENOUGH: usize = 128 << 10;
        let mut heard = self.overheard.lock().expect("not poisoned");
        let room = ENOUGH.saturating_sub(heard.len());
        heard.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn clone(stream: &UnixStream) -> UnixStream {
    stream.try_clone().expect("a descriptor")
}
