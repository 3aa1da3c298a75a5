//! The link between the hosts: whoever connects to `near` is connected to `far`, by threads outside of both, which a fault can
//! slow down, stop or cut.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Cable {
    ends: Mutex<Vec<UnixStream>>,
    /// Nothing passes, and nobody is told.
    silent: AtomicBool,
    /// How long a piece takes, in microseconds.
    micros: AtomicU64,
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
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (clone(from), clone(to));
                    own.ends.lock().expect("not poisoned").push(clone(&from));
                    let cable = own.clone();
                    std::thread::spawn(move || cable.copy(from, to));
                }
            }
        });
        cable
    }

    pub(crate) fn cut(&self) {
        for end in self.ends.lock().expect("not poisoned").drain(..) {
            // It may have ended.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn set_silent(&self, on: bool) {
        self.silent.store(on, Ordering::SeqCst);
    }

    pub(crate) fn set_micros(&self, micros: u64) {
        self.micros.store(micros, Ordering::SeqCst);
    }

    /// Waits while nothing passes.
    fn passes(&self) {
        let micros = self.micros.load(Ordering::SeqCst);
        if micros > 0 {
            std::thread::sleep(Duration::from_micros(micros));
        }
        while self.silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn copy(&self, mut from: UnixStream, mut to: UnixStream) {
        let mut buffer = [0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.passes();
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        self.passes();
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn clone(stream: &UnixStream) -> UnixStream {
    stream.try_clone().expect("a descriptor")
}
