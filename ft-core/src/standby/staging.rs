//! Collects a checkpoint until it is whole: nothing here has been acknowledged (P4).

use alloc::vec::Vec;

use io_gate::host::Epoch;

use crate::deliberate;
use crate::handshake::MachineLayout;
use crate::pages::{PageBatch, PagesError, each_piece};
use crate::wire::{Data, EpochDigest, Hashes, Header, Kind, Message};

/// Pages that were checked completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedPages {
    data: Data,
    pages: u64,
}

impl CheckedPages {
    fn check(data: Data, layout: &MachineLayout) -> Result<Self, PagesError> {
        let pages = PageBatch::parse(&data.0, &layout.memory)?.pages();
        Ok(Self { data, pages })
    }

    /// As [`check`](Self::check), for pages that are written before there is a checkpoint: changed
    /// lines are refused.
    fn check_bulk(data: Data, layout: &MachineLayout) -> Result<Self, StagingError> {
        let batch = PageBatch::parse(&data.0, &layout.memory)?;
        if batch.changes() > 0 {
            return Err(StagingError::BulkChanges);
        }
        let pages = batch.pages();
        Ok(Self { data, pages })
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Calls `write` with each address and the bytes to write there, in order: a page, or ranges of
    /// one.
    ///
    /// # Errors
    /// The first error of `write`.
    pub fn for_each_piece<E>(
        &self,
        write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        each_piece(&self.data.0, write)
    }

    /// The buffer of the pages, for reuse by another frame.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.data.0
    }
}

/// A checkpoint that was received whole and unaltered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    epoch: Epoch,
    pages: Vec<CheckedPages>,
    state: Vec<Data>,
    hashes: Option<Hashes>,
}

impl Checkpoint {
    /// The epoch that it ends.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of its pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.iter().map(CheckedPages::pages).sum()
    }

    /// Calls `write` with each address and the bytes to write there, in the order sent: a page, or
    /// ranges of one. The other bytes of such a page are as the checkpoint before has left them
    /// (P4: so every checkpoint is applied, in order).
    ///
    /// # Errors
    /// The first error of `write`.
    pub fn for_each_piece<E>(
        &self,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pages.iter().try_for_each(|pages| pages.for_each_piece(&mut write))
    }

    /// The state of the machine other than its memory, in the parts sent.
    pub fn state(&self) -> impl Iterator<Item = &[u8]> {
        self.state.iter().map(|part| part.0.as_slice())
    }

    /// The buffers of its pages, for reuse by other frames.
    pub fn into_buffers(self) -> impl Iterator<Item = Vec<u8>> {
        self.pages.into_iter().map(CheckedPages::into_bytes)
    }

    /// The hashes of the primary's machine.
    #[must_use]
    pub fn hashes(&self) -> Option<Hashes> {
        self.hashes
    }
}

/// The result of a frame.
pub(super) enum Step {
    /// More frames are needed.
    Staged,
    /// Pages to apply at once.
    Bulk(CheckedPages),
    /// The next bytes of the images.
    Images(Data),
    /// The checkpoint is whole.
    Whole(Checkpoint),
}

/// The stream is not a valid checkpoint.
#[derive(Debug, thiserror::Error)]
pub(super) enum StagingError {
    #[error("{0}")]
    Pages(#[from] PagesError),
    #[error("expected epoch {expected}, found epoch {found}")]
    Epoch { found: Epoch, expected: Epoch },
    #[error("changed lines came before a whole copy of memory")]
    BulkChanges,
    #[error(
        "memory was sent as for a first checkpoint, but a checkpoint is already held or in progress"
    )]
    LateBulk,
    #[error("{found} bytes of kernel and initrd came, expected at most {expected} more")]
    Images { found: u64, expected: u64 },
    #[error("{missing} bytes of kernel and initrd are missing")]
    NoImages { missing: u64 },
    #[error(
        "expected a checkpoint of at most {limit} bytes (guest memory and machine state), found more"
    )]
    TooBig { limit: u64 },
    #[error("expected session {expected:#x}, found session {found:#x}")]
    Session { found: u64, expected: u64 },
    #[error("epoch {epoch} is not complete: frames are missing, repeated or out of order")]
    Digest { epoch: Epoch },
    #[error("epoch {epoch} has no machine state")]
    NoState { epoch: Epoch },
    #[error("it is not part of a checkpoint")]
    Unexpected,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Staging {
    layout: MachineLayout,
    limit: u64,
    /// Bytes of images that have not arrived yet.
    images: u64,
    epoch: Option<Epoch>,
    pages: Vec<CheckedPages>,
    state: Vec<Data>,
    bytes: u64,
    digest: EpochDigest,
}

impl Staging {
    /// For a machine with `images` bytes of images to come.
    pub(super) fn new(layout: MachineLayout, images: u64, slack: u64, session: u64) -> Self {
        // A page's entry takes eight bytes besides its contents.
        let memory = layout.memory_size();
        let limit = memory.saturating_add(memory / 512).saturating_add(slack);
        Self { layout, limit, images, digest: EpochDigest::new(session), ..Self::default() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes one frame. `last` is the held checkpoint.
    pub(super) fn take(
        &mut self,
        last: Option<Epoch>,
        header: &Header,
        message: Message,
    ) -> Result<Step, StagingError> {
        if matches!(header.kind, Kind::Bulk | Kind::Image) {
            if last.is_some() || self.epoch.is_some() {
                return Err(StagingError::LateBulk);
            }
        } else {
            self.follow(last, header.epoch)?;
        }
        match message {
            Message::Image(data) => {
                let (found, expected) = (data.0.len() as u64, self.images);
                if found == 0 || found > expected {
                    return Err(StagingError::Images { found, expected });
                }
                self.images -= found;
                self.digest.add(header, 0);
                Ok(Step::Images(data))
            }
            Message::Bulk(data) => {
                let pages = CheckedPages::check_bulk(data, &self.layout)?;
                self.digest.add(header, pages.pages());
                Ok(Step::Bulk(pages))
            }
            Message::Pages(data) => {
                self.grow(&data)?;
                let pages = CheckedPages::check(data, &self.layout)?;
                self.digest.add(header, pages.pages());
                if deliberate!(ApplyBeforeWhole) {
                    return Ok(Step::Bulk(pages));
                }
                self.pages.push(pages);
                Ok(Step::Staged)
            }
            Message::State(data) => {
                self.grow(&data)?;
                self.digest.add(header, 0);
                self.state.push(data);
                Ok(Step::Staged)
            }
            Message::End(end) => {
                let epoch = header.epoch;
                let mut digest = self.digest.end(epoch, end.hashes);
                if deliberate!(ApplyOutOfOrder) {
                    digest.previous = end.previous;
                }
                if deliberate!(TakeReplay) {
                    digest.session = end.session;
                }
                if digest.session != end.session {
                    let (found, expected) = (end.session, digest.session);
                    return Err(StagingError::Session { found, expected });
                }
                if digest != end && !deliberate!(AckTorn) {
                    return Err(StagingError::Digest { epoch });
                }
                if self.images > 0 {
                    return Err(StagingError::NoImages { missing: self.images });
                }
                if self.state.is_empty() {
                    return Err(StagingError::NoState { epoch });
                }
                Ok(Step::Whole(self.whole(epoch, end.hashes)))
            }
            _ => Err(StagingError::Unexpected),
        }
    }

    fn follow(&mut self, last: Option<Epoch>, found: Epoch) -> Result<(), StagingError> {
        let expected = self.epoch.or(last.map(Epoch::next)).unwrap_or(found);
        let skips = deliberate!(ApplyOutOfOrder) && self.epoch.is_none();
        if found != expected && !skips {
            return Err(StagingError::Epoch { found, expected });
        }
        self.epoch = Some(found);
        Ok(())
    }

    fn grow(&mut self, data: &Data) -> Result<(), StagingError> {
        // Every frame counts, so that many empty ones cannot evade the limit.
        const OVERHEAD: u64 = 64;
        self.bytes = self.bytes.saturating_add(data.0.len() as u64).saturating_add(OVERHEAD);
        if self.bytes > self.limit {
            return Err(StagingError::TooBig { limit: self.limit });
        }
        Ok(())
    }

    fn whole(&mut self, epoch: Epoch, hashes: Option<Hashes>) -> Checkpoint {
        self.epoch = None;
        if !deliberate!(BytesAddUp) {
            self.bytes = 0;
        }
        Checkpoint {
            epoch,
            pages: core::mem::take(&mut self.pages),
            state: core::mem::take(&mut self.state),
            hashes,
        }
    }
}
