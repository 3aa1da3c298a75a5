//! The input of the standby's thread from other threads, and the handle by which they stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use ft_core::LinkId;
use ft_core::standby::Event;
use ft_core::wire::Frame;

use crate::link::Link;

/// Upper bound of queued inputs, for constant memory: further data waits in the socket.
pub(super) const QUEUE: usize = 16;

/// One input of the standby's thread.
pub enum Input {
    /// An event for the core.
    Event(Event),
    /// Frames for the core, in this order.
    Frames(LinkId, Vec<Frame>),
    /// A new link, its peer's address and its Hello. The peer is authenticated if the link requires
    /// it.
    Link(Link, String, Box<Frame>),
    /// An operator's request for the core, and where to send the answer. The session is the one
    /// that the operator saw, if the request applies only to that one.
    Operator(Event, Option<SessionId>, ReplySender),
    /// The result of opening the resources of an operator's takeover, for a request in this
    /// session.
    Opened(SessionId, Result<(), String>, ReplySender),
    /// The operator requests new keys for the link.
    RotateKeys(ReplySender),
}

/// Receives the answer to an operator's request. It has room for one answer, so sending does not
/// block.
pub type ReplySender = SyncSender<Result<(), String>>;

/// This side's number for a session with a primary. 0 means no session.
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
        // This input only wakes the thread. The thread checks `stop_wanted` before it waits, so a
        // full queue loses nothing. A standby that has ended needs no stop.
        let _ = self.inputs.try_send(Input::Event(Event::Tick));
    }
}
