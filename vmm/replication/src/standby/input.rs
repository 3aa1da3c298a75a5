//! Input for the standby's thread from the other threads, and how they stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use ft_core::LinkId;
use ft_core::standby::Event;
use ft_core::wire::Frame;

use crate::link::Link;

/// Upper bound for queued inputs: further data waits in the socket (constant memory).
pub(super) const QUEUE: usize = 16;

/// Input for the standby's thread from the other threads.
pub enum Input {
    /// An event for the core.
    Event(Event),
    /// Frames for the core, in this order.
    Frames(LinkId, Vec<Frame>),
    /// A peer has connected, is permitted to, and has said Hello.
    Link(Link, String, Box<Frame>),
    /// An event for the core from an operator, who is answered; with the session that the operator saw, if the request is for
    /// that one only.
    Operator(Event, Option<SessionId>, Answer),
    /// For a request in this session: the result of opening what a takeover without an arbiter needs.
    Opened(SessionId, Result<(), String>, Answer),
    /// The operator asks for new keys on the link.
    RotateKeys(Answer),
}

/// Answers an operator's request. Has room for one answer, so that no thread waits.
pub type Answer = SyncSender<Result<(), String>>;

/// This side's number for a session with a primary; 0: no session.
pub type SessionId = u64;

/// Stops a standby without waiting for it.
#[derive(Clone)]
pub struct StopHandle {
    wanted: Arc<AtomicBool>,
    inputs: SyncSender<Input>,
}

impl StopHandle {
    pub(super) fn new(wanted: Arc<AtomicBool>, inputs: SyncSender<Input>) -> Self {
        Self { wanted, inputs }
    }

    /// Stops the standby after its current input.
    pub fn stop(&self) {
        self.wanted.store(true, Ordering::Release);
        // Only to wake the thread: it checks `stop_wanted` before it waits, so a full queue loses nothing. A standby that has
        // ended needs no stop.
        let _ = self.inputs.try_send(Input::Event(Event::Tick));
    }
}
