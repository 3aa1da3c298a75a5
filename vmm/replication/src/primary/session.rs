//! The sending half of one connection with a standby, and its end.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ft_core::handshake::ImageId;
use ft_core::wire::{Message, Outgoing};
use ft_core::{Epoch, LinkId, Term};

use super::images::SessionBoot;
use super::item::Item;
use super::outbox::{Control, Outbox};

/// The sending half of a connection. Dropping it closes the connection after everything queued has
/// been sent.
pub(super) struct SendingSession {
    link: LinkId,
    number: u64,
    outbox: Arc<Outbox>,
    closed: Closed,
    boot: Option<SessionBoot>,
}

/// The path to the standby for a thread that may take only the locks in here: other locks may be
/// held for ever.
#[derive(Clone)]
pub(super) struct FinalSender {
    outbox: Arc<Outbox>,
    closed: Closed,
    term: Term,
}

impl FinalSender {
    /// Sends the last frame: this side does not continue.
    pub(super) fn send_refusal(&self, reason: String) {
        let message = Message::Refuse { reason };
        let frame = Outgoing { epoch: Epoch(0), term: self.term, message };
        let mut bytes = Vec::new();
        // The encoding cuts a reason that is too long.
        if frame.encode(&mut bytes).is_ok() {
            self.outbox.push_last(bytes);
        }
    }

    /// Waits at most `patience` until the standby has read the last frame.
    pub(super) fn wait_until_read(&self, patience: Duration) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        // The channel disconnects when the sender ends.
        let _ = closed.recv_timeout(patience);
    }
}

/// Disconnects when the sender has ended and the standby has read the last frame. It carries no
/// message.
pub(super) type Closed = Arc<Mutex<Receiver<()>>>;

impl SendingSession {
    /// Creates the sending half of the session `number` over `link`.
    pub(super) fn new(
        link: LinkId,
        number: u64,
        outbox: Arc<Outbox>,
        closed: Closed,
        boot: Option<SessionBoot>,
    ) -> Self {
        Self { link, number, outbox, closed, boot }
    }

    /// The path to the standby in `term`, for a thread that may not take the engine's lock.
    pub(super) fn final_sender(&self, term: Term) -> FinalSender {
        FinalSender { outbox: self.outbox.clone(), closed: self.closed.clone(), term }
    }

    pub(super) fn link(&self) -> LinkId {
        self.link
    }

    /// The session's number, the same on both sides.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Disconnects when everything queued has been sent and the connection is closed.
    pub(super) fn closed(&self) -> Closed {
        self.closed.clone()
    }

    pub(super) fn send_control(&self, frame: &Outgoing) {
        let mut bytes = Vec::new();
        let control = match frame.message {
            Message::Heartbeat(_) => Control::Sign,
            Message::HeartbeatReply(_) => Control::Answer,
            _ => Control::Other,
        };
        match frame.encode(&mut bytes) {
            Ok(_) => self.outbox.push_control(control, bytes),
            Err(error) => log::error!("a message is too long and was not sent: {error}"),
        }
    }

    /// Starts the pre-copy. From then on the sender sends `sign` when it has sent nothing else for
    /// a while.
    pub(super) fn start_precopy(&self, session: u64, images: &[ImageId], sign: Option<&Outgoing>) {
        let mut bytes = Vec::new();
        // A sign of life is never too long.
        let encoded = sign.and_then(|sign| sign.encode(&mut bytes).ok());
        let sign = encoded.map(|_| bytes);
        let images = self.boot.as_ref().map_or_else(Vec::new, |boot| boot.find(images));
        self.outbox.push(Item::Precopy { session, images, sign });
    }

    /// See [`Outbox::has_room`].
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    pub(super) fn send_checkpoint(&self, item: Item) {
        self.outbox.push(item);
    }

    pub(super) fn rotate_keys(&self, tell: SyncSender<Result<(), String>>) -> bool {
        self.outbox.push_rotation(tell)
    }
}

impl Drop for SendingSession {
    fn drop(&mut self) {
        self.outbox.close();
    }
}
