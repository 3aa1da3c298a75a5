//! The queue of a session's frames. Any thread fills it; the session's sender empties it.
//!
//! P9: the queue holds at most [`MAX_FRAMES`] control frames of at most 64 KiB, the latest sign of
//! life, the latest answer to one, one request for new keys, and the unacknowledged checkpoints.
//! Another epoch is sealed only while it holds fewer than [`MAX_COPIED`] bytes of pages.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::item::Item;

/// Upper bound of queued control frames. A session sends about a dozen, apart from its signs of
/// life.
pub(super) const MAX_FRAMES: usize = 64;

/// P9: no epoch is sealed while this many bytes of guest memory are copied and not sent. On a link
/// slower than the guest's writes, one epoch may hold all of guest memory. The queue then holds one
/// epoch of that size, not as many as may be unacknowledged.
pub(super) const MAX_COPIED: u64 = 256 << 20;

/// Guards the queue only: no thread blocks under it, and no other lock is taken. Threads that hold
/// the engine's state take it for a few instructions. The sender takes it too, and it gives signs
/// of life even when the engine's state is held (P7).
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    frames: usize,
    /// Bytes of guest memory in checkpoints that are queued or being sent.
    copied: u64,
    /// Gets the result of the requested change of keys.
    rotation: Option<SyncSender<Result<(), String>>>,
    /// The latest sign of life. A new one replaces it, and so for `answer`.
    sign: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
    closed: bool,
    overfull: bool,
}

/// What the sender does next.
pub(super) enum Next {
    /// Send this item.
    Item(Item),
    /// Wait again: no item was queued within the given time.
    Quiet,
    /// End: the queue is closed and empty.
    Closed,
    /// End the session: the queue has overflowed, and none of its frames may be left out.
    Overfull,
}

/// The kind of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// A sign of life.
    Sign,
    /// The answer to a sign of life.
    Answer,
    /// Any other frame. All of them are sent, in order.
    Other,
}

impl Outbox {
    pub(super) fn push_control(&self, control: Control, frame: Vec<u8>) {
        let mut state = self.lock();
        match control {
            Control::Sign => state.sign = Some(frame),
            Control::Answer => state.answer = Some(frame),
            Control::Other if state.frames == MAX_FRAMES => state.overfull = true,
            Control::Other => {
                state.frames += 1;
                state.items.push_back(Item::Control(frame));
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Queues a request for new keys; `tell` gets its result. Returns `false` if a request is
    /// already queued.
    pub(super) fn push_rotation(&self, tell: SyncSender<Result<(), String>>) -> bool {
        let mut state = self.lock();
        if state.rotation.is_some() {
            return false;
        }
        state.rotation = Some(tell);
        drop(state);
        self.changed.notify_one();
        true
    }

    pub(super) fn push(&self, item: Item) {
        let mut state = self.lock();
        if let Item::Checkpoint(checkpoint) = &item {
            state.copied += checkpoint.copied();
        }
        state.items.push_back(item);
        drop(state);
        self.changed.notify_one();
    }

    /// Whether another checkpoint may be copied. Pages count as sent before the standby can
    /// acknowledge their checkpoint, so the acknowledgement that wakes the sealer always finds the
    /// room.
    pub(super) fn has_room(&self) -> bool {
        self.lock().copied < MAX_COPIED
    }

    /// Records that `bytes` of a checkpoint's pages were sent. Called before the end of the
    /// checkpoint is sent, which the standby acknowledges.
    pub(super) fn pages_sent(&self, bytes: u64) {
        self.lock().copied -= bytes;
    }

    /// Queues the last frame and drops all others: this process dies, and the frame must not wait
    /// for the rest.
    pub(super) fn push_last(&self, frame: Vec<u8>) {
        let mut state = self.lock();
        (state.sign, state.answer) = (None, None);
        state.items.clear();
        state.items.push_back(Item::Control(frame));
        state.frames = 1;
        state.closed = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Closes the queue: the sender ends when it has sent the queued items.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Returns the next step. Waits for an item at most `quiet`.
    pub(super) fn next(&self, quiet: Duration) -> Next {
        let mut state = self.lock();
        if let Some(next) = state.next() {
            return next;
        }
        state = self.changed.wait_timeout(state, quiet).unwrap_or_else(PoisonError::into_inner).0;
        state.next().unwrap_or(Next::Quiet)
    }

    /// As [`next`](Self::next), without waiting, and leaves checkpoints in the queue.
    pub(super) fn next_control(&self) -> Next {
        let mut state = self.lock();
        let large = matches!(state.items.front(), Some(Item::Checkpoint(_) | Item::Precopy { .. }));
        let small = state.sign.is_some() || state.answer.is_some() || state.rotation.is_some();
        if large && !small {
            return Next::Quiet;
        }
        state.next().unwrap_or(Next::Quiet)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Next> {
        if self.overfull {
            return Some(Next::Overfull);
        }
        if let Some(frame) = self.answer.take().or_else(|| self.sign.take()) {
            return Some(Next::Item(Item::Sign(frame)));
        }
        if let Some(tell) = self.rotation.take() {
            return Some(Next::Item(Item::RotateKeys(tell)));
        }
        match self.items.pop_front() {
            Some(item) => {
                self.frames -= usize::from(matches!(item, Item::Control(_)));
                Some(Next::Item(item))
            }
            None => self.closed.then_some(Next::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use ft_core::pages::{PAGE_SIZE, PageFrames};
    use ft_core::{Epoch, Term};

    use super::super::item::Checkpoint;

    use super::*;

    fn sent(outbox: &Outbox) -> Vec<String> {
        let mut sent = Vec::new();
        loop {
            match outbox.next(Duration::ZERO) {
                Next::Item(Item::Control(frame) | Item::Sign(frame)) => {
                    sent.push(String::from_utf8(frame).expect("what the test has pushed"));
                }
                Next::Item(_) => sent.push("large".to_owned()),
                Next::Quiet => sent.push("quiet".to_owned()),
                Next::Closed => sent.push("closed".to_owned()),
                Next::Overfull => sent.push("overfull".to_owned()),
            }
            if let Some("quiet" | "closed" | "overfull") = sent.last().map(String::as_str) {
                return sent;
            }
        }
    }

    fn precopy() -> Item {
        Item::Precopy { session: 1, images: Vec::new(), sign: None }
    }

    /// P9. Fails if a standby that sends endless signs of life and reads nothing makes this side
    /// keep more than one answer.
    #[test]
    fn of_signs_of_life_the_latest_is_kept() {
        let outbox = Outbox::default();
        for number in 0..100_000 {
            outbox.push_control(Control::Sign, format!("sign {number}").into_bytes());
            outbox.push_control(Control::Answer, format!("answer {number}").into_bytes());
        }
        assert_eq!(sent(&outbox), ["answer 99999", "sign 99999", "quiet"]);
    }

    #[test]
    fn all_else_is_sent_in_order_and_before_the_end() {
        let outbox = Outbox::default();
        outbox.push_control(Control::Other, b"hello".to_vec());
        outbox.push(precopy());
        outbox.push_control(Control::Other, b"bye".to_vec());
        outbox.close();
        assert_eq!(sent(&outbox), ["hello", "large", "bye", "closed"]);
    }

    #[test]
    fn the_last_word_waits_for_nothing() {
        let outbox = Outbox::default();
        outbox.push_control(Control::Sign, b"sign".to_vec());
        outbox.push_control(Control::Other, b"readiness".to_vec());
        outbox.push(precopy());
        outbox.push_last(b"panicked".to_vec());
        assert_eq!(sent(&outbox), ["panicked", "closed"]);
    }

    /// P9: frames that may not be left out have a bound too. Beyond it the session ends.
    #[test]
    fn a_standby_that_takes_nothing_is_given_up() {
        let outbox = Outbox::default();
        for _ in 0..MAX_FRAMES {
            outbox.push_control(Control::Other, b"frame".to_vec());
        }
        assert_eq!(sent(&outbox).len(), MAX_FRAMES + 1, "all, and then quiet");
        for _ in 0..=MAX_FRAMES {
            outbox.push_control(Control::Other, b"frame".to_vec());
        }
        assert_eq!(sent(&outbox), ["overfull"]);
    }

    fn checkpoint(pages: u64) -> Item {
        Item::Checkpoint(Box::new(Checkpoint {
            epoch: Epoch(1),
            term: Term(1),
            page_numbers: (0..pages).collect(),
            pages: PageFrames::default(),
            state: Vec::new(),
            hashes: None,
        }))
    }

    /// P9. Fails if epochs as large as guest memory may be copied as often as epochs may be
    /// unacknowledged.
    #[test]
    fn what_is_copied_and_not_sent_has_a_bound() {
        let outbox = Outbox::default();
        let half = MAX_COPIED / 2;
        outbox.push(checkpoint(half / PAGE_SIZE as u64));
        assert!(outbox.has_room());
        outbox.push(checkpoint(half / PAGE_SIZE as u64));
        assert!(!outbox.has_room());
        assert_eq!(sent(&outbox), ["large", "large", "quiet"]);
        assert!(!outbox.has_room(), "taken from the queue is not sent");
        outbox.pages_sent(half);
        assert!(outbox.has_room());
    }

    /// P9: an operator's repeated requests do not fill the queue of a link on which nothing can be
    /// sent.
    #[test]
    fn one_wish_for_new_keys_waits() {
        let outbox = Outbox::default();
        let (tell, _told) = sync_channel(1);
        assert!(outbox.push_rotation(tell.clone()));
        for _ in 0..100_000 {
            assert!(!outbox.push_rotation(tell.clone()));
        }
        outbox.push(precopy());
        assert!(matches!(outbox.next_control(), Next::Item(Item::RotateKeys(_))));
        assert!(outbox.push_rotation(tell), "the former one is under way");
    }

    /// During a pre-copy small frames are sent and checkpoints wait.
    #[test]
    fn what_is_large_waits_for_its_turn() {
        let outbox = Outbox::default();
        outbox.push(precopy());
        outbox.push_control(Control::Answer, b"answer".to_vec());
        assert!(matches!(outbox.next_control(), Next::Item(Item::Sign(_))));
        assert!(matches!(outbox.next_control(), Next::Quiet));
        outbox.close();
        assert_eq!(sent(&outbox), ["large", "closed"]);
    }
}
