//! Connections whose other end has not shown yet that it is a primary.
//!
//! Each is heard in a thread of its own, with a deadline: whoever says nothing keeps nobody out. The standby's one place is
//! taken by a whole Hello only, over a link that is secured where it is to be. Where there are too many strangers, the one
//! that has been silent for longest makes room for the next. Whoever has said Hello waits for a standby that may be busy, and
//! keeps a place among the strangers meanwhile (P9).

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ft_core::wire::{Frame, HEADER_LEN, Header, Kind};
use kemari_confine::seccomp::{self, Role};

use super::Input;
use super::resources::Reserve;
use crate::link::{HangUp, Link, LinkListener, Stranger};

/// How many may be connected without having shown who they are, or without the standby's having taken notice.
const MOST: usize = 64;
/// How long one may take to say Hello, once its link is secured.
const HELLO: Duration = Duration::from_secs(5);
/// How long to wait after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Lets in primaries, for ever.
pub(super) fn accept(listener: &LinkListener, inputs: &SyncSender<Input>, reserve: &Reserve) {
    let strangers = Arc::new(Strangers::default());
    loop {
        match listener.accept() {
            // Each takes descriptors, which are for the takeover now; a primary comes again.
            Ok(stranger) if !reserve.is_held() => {
                log::info!("connection from {} closed: this side may take over", stranger.peer());
            }
            Ok(stranger) => strangers.hear(stranger, inputs),
            // One connection that went wrong, or a shortage that passes.
            Err(error) => {
                log::error!("a connection could not be accepted: {error}");
                std::thread::sleep(ACCEPT_AGAIN);
            }
        }
    }
}

#[derive(Default)]
struct Strangers {
    here: Mutex<Here>,
    gone: Condvar,
}

#[derive(Default)]
struct Here {
    /// Who has not said Hello: the oldest first.
    silent: VecDeque<(u64, HangUp)>,
    threads: usize,
    next: u64,
}

impl Strangers {
    fn hear(self: &Arc<Self>, stranger: Stranger, inputs: &SyncSender<Input>) {
        let peer = stranger.peer().to_owned();
        let hang_up = match stranger.hang_up() {
            Ok(hang_up) => hang_up,
            Err(error) => {
                return log::warn!("connection from {peer} closed: {error}");
            }
        };
        let Some(number) = self.make_room(hang_up) else {
            return log::warn!(
                "connection from {peer} closed: {MOST} others have said Hello, and this standby is busy"
            );
        };
        let (strangers, inputs) = (self.clone(), inputs.clone());
        let hear = move || {
            seccomp::enter(Role::Main, &[]);
            match admit(stranger) {
                // From here on the core decides. A standby that has ended needs no link.
                Ok((link, hello)) if strangers.has_said_hello(number) => {
                    drop(inputs.send(Input::Link(link, peer, Box::new(hello))));
                }
                Ok(_) => log::debug!("connection from {peer} closed: another took its place"),
                Err(reason) => log::warn!("connection from {peer} refused: {reason}"),
            }
            strangers.leave(number);
        };
        if let Err(error) = std::thread::Builder::new().name("stranger".to_owned()).spawn(hear) {
            self.leave(number);
            log::error!("cannot start a thread for a connection: {error}");
        }
    }

    /// A place for one more; the oldest that is silent loses its own. None where there is no such.
    fn make_room(&self, hang_up: HangUp) -> Option<u64> {
        let mut here = self.here();
        while here.threads >= MOST {
            here.silent.pop_front()?.1.hang_up();
            // Its reads and writes return at once, so this wait is short.
            here = self.gone.wait(here).unwrap_or_else(PoisonError::into_inner);
        }
        let number = here.next;
        here.next += 1;
        here.threads += 1;
        here.silent.push_back((number, hang_up));
        Some(number)
    }

    /// `false` where it has lost its place.
    fn has_said_hello(&self, number: u64) -> bool {
        let mut here = self.here();
        let at = here.silent.iter().position(|(of, _)| *of == number);
        at.and_then(|at| here.silent.remove(at)).is_some()
    }

    fn leave(&self, number: u64) {
        let mut here = self.here();
        here.threads -= 1;
        here.silent.retain(|(of, _)| *of != number);
        self.gone.notify_all();
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Secures the link and hears the Hello.
fn admit(stranger: Stranger) -> Result<(Link, Frame), String> {
    let mut link = stranger.admit().map_err(|error| error.to_string())?;
    let hello = hear_hello(&mut link)?;
    link.set_read_timeout(None).map_err(|error| error.to_string())?;
    Ok((link, hello))
}

fn hear_hello(link: &mut Link) -> Result<Frame, String> {
    let deadline = Instant::now() + HELLO;
    let mut header = [0; HEADER_LEN];
    read_by(link, &mut header, deadline)?;
    let header = Header::parse(&header).map_err(|error| error.to_string())?;
    if header.kind != Kind::Hello {
        return Err(format!("expected a Hello, found {}", header.kind.name()));
    }
    // Bounded by the header's check.
    let mut body = vec![0; header.body_len as usize];
    read_by(link, &mut body, deadline)?;
    Frame::verify(header, body).map_err(|error| error.to_string())
}

/// Whatever comes byte by byte, too, has to be whole by then.
fn read_by(link: &mut Link, mut into: &mut [u8], deadline: Instant) -> Result<(), String> {
    while !into.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no Hello within {HELLO:?}"));
        }
        link.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
        match link.read(into) {
            Ok(0) => return Err("it has closed the connection".to_owned()),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // The deadline is looked at above.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
