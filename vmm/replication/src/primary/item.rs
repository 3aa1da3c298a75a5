//! The items that a session sends.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ft_core::handshake::ImageId;
use ft_core::pages::{PAGE_SIZE, PageFrames};
use ft_core::wire::Hashes;
use ft_core::{Epoch, Term};
use kemari_machine::boot::Image;

/// One item in the queue of a session.
pub(super) enum Item {
    /// A whole frame.
    Control(Vec<u8>),
    /// A whole frame that is a sign of life.
    Sign(Vec<u8>),
    /// A request for new keys for the link. The channel gets the result when they are in use.
    RotateKeys(SyncSender<Result<(), String>>),
    /// All of guest memory, sent while the guest runs.
    Precopy {
        /// The standby's number for the session.
        session: u64,
        /// The sign of life to send while the queue is empty.
        sign: Option<Vec<u8>>,
        /// The boot files that the standby lacks. They are sent first.
        images: Vec<(ImageId, Arc<Image>)>,
    },
    /// A checkpoint.
    Checkpoint(Box<Checkpoint>),
}

/// The content of a checkpoint, copied while the guest was paused.
pub(super) struct Checkpoint {
    pub(super) epoch: Epoch,
    pub(super) term: Term,
    /// Page numbers, ascending.
    pub(super) page_numbers: Vec<u64>,
    /// The content of these pages.
    pub(super) pages: PageFrames,
    /// The rest of the machine's state, encoded.
    pub(super) state: Vec<u8>,
    pub(super) hashes: Option<Hashes>,
}

impl Checkpoint {
    /// Bytes of guest memory in the checkpoint.
    pub(super) fn copied(&self) -> u64 {
        self.page_numbers.len() as u64 * PAGE_SIZE as u64
    }
}
