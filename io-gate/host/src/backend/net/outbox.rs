//! A bounded queue of frames for which a socket had no room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::out::{Kept, Outgoing};

/// Upper bound of the queue in bytes. A frame beyond it is dropped, because the peer does not read.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The frames to send, the oldest first.
#[derive(Debug)]
pub(crate) struct Outbox {
    messages: VecDeque<Kept>,
    /// Number of bytes of the first message that have left.
    sent: usize,
    bytes: usize,
    dropped: Arc<AtomicU64>,
}

impl Outbox {
    /// An empty queue that counts dropped messages in `dropped`.
    pub(crate) fn new(dropped: Arc<AtomicU64>) -> Self {
        Self { messages: VecDeque::new(), sent: 0, bytes: 0, dropped }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether a message of this length fits. If not, counts it as dropped.
    pub(crate) fn has_room(&mut self, len: usize) -> bool {
        let room = self.bytes + len <= MAX_BYTES;
        if !room {
            self.count_drops(1);
        }
        room
    }

    /// Appends a message. If it is the only one, a part of it may already have left.
    pub(crate) fn push(&mut self, message: Kept, sent: usize) {
        debug_assert!(
            sent == 0 || self.messages.is_empty(),
            "only the first frame can be sent in part"
        );
        if self.messages.is_empty() {
            self.sent = sent;
        }
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// The rest of the first message.
    pub(crate) fn front(&self) -> Option<Outgoing<'_>> {
        self.messages.front().map(|message| message.rest(self.sent))
    }

    /// Records that `count` bytes of the first message have left.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.front().is_some_and(|rest| rest.len() == 0) {
            self.pop();
        }
    }

    /// Removes the first message.
    pub(crate) fn pop(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.len();
        }
        self.sent = 0;
    }

    /// Drops all messages, because the connection or the right to send is gone: a new peer gets no
    /// data that was meant for the former one.
    pub(crate) fn clear(&mut self) {
        self.count_drops(self.messages.len() as u64);
        self.messages.clear();
        self.bytes = 0;
        self.sent = 0;
    }

    fn count_drops(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }
}
