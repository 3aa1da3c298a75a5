//! Connections whose peer has not yet shown that it is a primary.
//!
//! Each is served by a thread of its own, with a deadline, so that a silent peer keeps no other
//! out. Only a whole Hello, over a secured link where that is required, can take the standby's one
//! place. When there are too many, the one that has been silent longest is closed for the next one.
//! A peer that has said Hello keeps its place while it waits for a busy standby (P9).

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ft_core::wire::{Frame, HEADER_LEN, Header, Kind};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use super::Input;
use crate::descriptors::Reserve;
use crate::link::{HangUp, Link, LinkListener, Stranger};

/// Upper bound of connections that have not said Hello, or whose Hello the standby has not taken
/// yet.
const MOST: usize = 64;
/// Time limit for a peer to say Hello after its link is secured.
const HELLO: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Accepts connections for ever, and passes those of primaries on.
pub(super) fn accept(listener: &LinkListener, inputs: &SyncSender<Input>, reserve: &Reserve) {
    let strangers = Arc::new(Strangers::default());
    loop {
        match listener.accept() {
            // A connection takes descriptors, which the takeover needs now. A primary connects
            // again.
            Ok(stranger) if !reserve.is_held() => {
                log::info!("connection from {} closed: this side may take over", stranger.peer());
            }
            Ok(stranger) => strangers.hear(stranger, inputs),
            // One connection failed, or the host lacks a resource for a moment.
            Err(error) => {
                log::error!("cannot accept a connection: {error}");
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
    /// Connections without a Hello, the oldest first.
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
                "connection from {peer} closed: {MOST} other connections wait for an answer, and this standby is busy"
            );
        };
        let (strangers, inputs) = (self.clone(), inputs.clone());
        let hear = move || {
            match admit(stranger) {
                // From here on the core decides. A standby that has ended needs no link.
                Ok((link, hello)) if strangers.has_said_hello(number) => {
                    drop(inputs.send(Input::Link(link, peer, Box::new(hello))));
                }
                Ok(_) => {
                    log::debug!("connection from {peer} closed: another connection has replaced it")
                }
                Err(reason) => log::warn!("connection from {peer} refused: {reason}"),
            }
            strangers.leave(number);
        };
        if let Err(error) = threads::start("stranger", Role::Main, hear) {
            self.leave(number);
            log::error!("cannot serve a connection: {error}");
        }
    }

    /// Returns the number of a new place. If there are too many connections, the oldest silent one
    /// is closed; `None` if all have said Hello.
    fn make_room(&self, hang_up: HangUp) -> Option<u64> {
        let mut here = self.here();
        while here.threads >= MOST {
            here.silent.pop_front()?.1.hang_up();
            // Reads and writes of the closed connection return at once, so this wait is short.
            here = self.gone.wait(here).unwrap_or_else(PoisonError::into_inner);
        }
        let number = here.next;
        here.next += 1;
        here.threads += 1;
        here.silent.push_back((number, hang_up));
        Some(number)
    }

    /// Records a Hello; `false` if the connection has lost its place.
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

/// Secures the link and reads the Hello.
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
    // The check of the header has bounded the length.
    let mut body = vec![0; header.body_len as usize];
    read_by(link, &mut body, deadline)?;
    Frame::verify(header, body).map_err(|error| error.to_string())
}

/// Reads all of `into` before the deadline, even if it arrives byte by byte.
fn read_by(link: &mut Link, mut into: &mut [u8], deadline: Instant) -> Result<(), String> {
    while !into.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no Hello within {HELLO:?}"));
        }
        link.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
        match link.read(into) {
            Ok(0) => return Err("it closed the connection".to_owned()),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // The loop checks the deadline.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
