//! The sender: encodes and writes a session's frames, in order.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use ft_core::handshake::ImageId;
use ft_core::pages::{Compression, FRAME_PAGES, PAGE_SIZE, PageFrame, PageFrames, SentPages};
use ft_core::primary::Event;
use ft_core::wire::{Data, EpochDigest, Hashes, Header, Kind, Message, Outgoing};
use ft_core::{Epoch, LinkId, Term};

use super::live::SPARE_BYTES;
use super::outbox::{MAX_FRAMES, Next, Outbox};
use super::{Engine, Step};
use crate::link::Link;
use kemari_machine::boot::Image;

/// Something to send.
pub(super) enum Item {
    /// A whole frame.
    Control(Vec<u8>),
    /// A whole frame that is a sign of life.
    Sign(Vec<u8>),
    /// New keys for the link; the channel is told when they are in use.
    RotateKeys(SyncSender<Result<(), String>>),
    /// All of guest memory, sent while the guest runs.
    Precopy {
        /// The standby's number for the session.
        session: u64,
        /// The sign of life to send while the queue is empty.
        sign: Option<Vec<u8>>,
        /// The boot files that the standby lacks: sent first.
        images: Vec<(ImageId, Arc<Image>)>,
    },
    /// A checkpoint.
    Checkpoint(Box<Checkpoint>),
}

/// What was copied while the guest was paused.
pub(super) struct Checkpoint {
    pub(super) epoch: Epoch,
    pub(super) term: Term,
    /// Page numbers, ascending.
    pub(super) frames: Vec<u64>,
    /// The pages themselves.
    pub(super) pages: PageFrames,
    /// The rest of the machine's state.
    pub(super) state: Vec<u8>,
    pub(super) hashes: Option<Hashes>,
}

impl Checkpoint {
    /// Bytes of guest memory in it.
    pub(super) fn copied(&self) -> u64 {
        self.frames.len() as u64 * PAGE_SIZE as u64
    }
}

/// A peer that takes nothing for this long is gone, even if TCP still retries.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Large writes save system calls: many pages for each.
const FLUSH_AT: usize = FRAME_PAGES as usize * PAGE_SIZE;
/// Upper bound for a closing session to send its last words and for the standby to read them.
const CLOSING: Duration = Duration::from_millis(500);

/// The thread of one session's sender.
pub(super) fn send(
    engine: &Arc<Engine>,
    id: LinkId,
    link: Link,
    items: &Outbox,
    reader: &Receiver<()>,
) {
    let mut out = Output {
        link,
        buffer: Vec::new(),
        digest: EpochDigest::default(),
        sent_pages: SentPages::new(0),
        sent: 0,
        sign: None,
    };
    let done =
        out.link.set_write_timeout(Some(WRITE_TIMEOUT)).and_then(|()| out.run(engine, id, items));
    match done {
        // P7: the last words may be a good-bye. Closing while the peer still sends would reset the connection and could lose
        // them; wait until the peer closes, because it has read them by then.
        Ok(()) => {
            out.link.end_writing();
            let _ = reader.recv_timeout(CLOSING);
        }
        Err(error) => log::info!("link {}: cannot send any more: {error}", id.0),
    }
    // The session was dropped or the link is broken: in both cases the reader must end too. The reader reports the loss after
    // it has read what has come, because a standby that drops its checkpoint says so before it closes (P7).
    out.link.shutdown();
    engine.options.steps.reached(id, Step::SenderEnded);
}

/// P7: a machine that makes no progress sends no sign of life but closes the link, so that its standby takes over.
fn check_progress(engine: &Engine) -> io::Result<()> {
    match engine.watchdog.is_stalled() {
        true => Err(io::Error::other(engine.stall_reason())),
        false => Ok(()),
    }
}

fn overfull() -> io::Error {
    io::Error::other(format!("the standby has not taken {MAX_FRAMES} messages: it is given up"))
}

/// The link and the bytes queued for it.
pub(super) struct Output {
    link: Link,
    buffer: Vec<u8>,
    digest: EpochDigest,
    /// Pages sent in this session's checkpoints.
    sent_pages: SentPages,
    sent: u64,
    /// The sign of life. P7: this thread sends it, and this thread waits for no lock under which another thread waits.
    sign: Option<Vec<u8>>,
}

impl Output {
    fn run(&mut self, engine: &Arc<Engine>, link: LinkId, items: &Outbox) -> io::Result<()> {
        // Signs of life from the core come first, as long as the core is not held up.
        let quiet = engine.options.primary.heartbeat_interval * 3 / 2;
        loop {
            let item = match items.next(quiet) {
                Next::Item(item) => item,
                Next::Quiet => {
                    check_progress(engine)?;
                    self.give_sign()?;
                    continue;
                }
                Next::Closed => break,
                Next::Overfull => return Err(overfull()),
            };
            match item {
                Item::Control(frame) => self.write_frame(&frame)?,
                Item::Sign(frame) => {
                    check_progress(engine)?;
                    self.write_frame(&frame)?;
                }
                Item::Checkpoint(checkpoint) => {
                    self.checkpoint(engine, link, *checkpoint, items)?
                }
                Item::RotateKeys(tell) => self.rotate_keys(&tell)?,
                Item::Precopy { session, images, sign } => {
                    self.sign = sign;
                    self.digest = EpochDigest::new(session);
                    self.sent_pages = SentPages::new(engine.delta_pages());
                    if super::images::send_images(engine, &images, self, items)?
                        && super::precopy::precopy(engine, link, self, items)?
                    {
                        engine.event(Event::PrecopyDone { link });
                    }
                }
            }
        }
        self.link.set_write_timeout(Some(CLOSING))?;
        self.flush()
    }

    /// Sends the control frames queued meanwhile. Returns `false` when the session is over.
    pub(super) fn interleave(&mut self, items: &Outbox) -> io::Result<bool> {
        loop {
            match items.next_control() {
                Next::Item(Item::Control(frame) | Item::Sign(frame)) => self.write_frame(&frame)?,
                Next::Item(Item::RotateKeys(tell)) => self.rotate_keys(&tell)?,
                Next::Item(_) => unreachable!("a checkpoint stays where it is until it is sent"),
                Next::Quiet => return Ok(true),
                Next::Closed => return Ok(false),
                Next::Overfull => return Err(overfull()),
            }
        }
    }

    fn give_sign(&mut self) -> io::Result<()> {
        self.sign.as_ref().map_or(Ok(()), |sign| self.link.write_all(sign))
    }

    fn write_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.link.write_all(frame)
    }

    fn rotate_keys(&mut self, tell: &SyncSender<Result<(), String>>) -> io::Result<()> {
        let rotated = self.link.rotate_keys();
        // The requester may have gone, and this thread must not wait.
        let _ = tell.try_send(rotated.as_ref().copied().map_err(ToString::to_string));
        rotated?;
        log::info!("the link has new keys");
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.link.write_all(&self.buffer)?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn checkpoint(
        &mut self,
        engine: &Arc<Engine>,
        link: LinkId,
        checkpoint: Checkpoint,
        items: &Outbox,
    ) -> io::Result<()> {
        let begun = Instant::now();
        self.sent = 0;
        let copied = checkpoint.copied();
        let Checkpoint { epoch, term, frames, mut pages, state, hashes } = checkpoint;
        assert!(pages.pages() == frames.len() as u64, "P4: a page for every number");
        self.flush()?;
        self.checkpoint_pages((epoch, term), &mut pages)?;
        if pages.capacity() > SPARE_BYTES {
            // P9: free the pages now: the next epoch may be as large and is copied as soon as there is room.
            pages = PageFrames::default();
        }
        items.pages_sent(copied);
        self.data(epoch, term, Message::State(Data(state)))?;
        let end = Message::End(self.digest.end(epoch, hashes));
        Outgoing { epoch, term, message: end }
            .encode(&mut self.buffer)
            .map_err(io::Error::other)?;
        self.flush()?;
        if let Ok(mut live) = engine.live(link) {
            live.sent(self.sent, begun.elapsed(), frames, pages);
        }
        Ok(())
    }

    fn checkpoint_pages(
        &mut self,
        (epoch, term): (Epoch, Term),
        pages: &mut PageFrames,
    ) -> io::Result<()> {
        let Self { link, buffer, digest, sent_pages, sent, sign: _ } = self;
        let mut write = |bytes: &[u8]| {
            *sent += bytes.len() as u64;
            link.write_all(bytes)
        };
        if !sent_pages.begin_checkpoint() {
            return pages.finish_each(epoch, term, |header, count, bytes| {
                digest.add(header, count);
                write(bytes)
            });
        }
        pages.finish_changes(sent_pages, (epoch, term), buffer, |header, count, buffer| {
            digest.add(header, count);
            if buffer.len() < FLUSH_AT {
                return Ok(());
            }
            write(buffer)?;
            buffer.clear();
            Ok(())
        })
    }

    pub(super) fn data(&mut self, epoch: Epoch, term: Term, message: Message) -> io::Result<()> {
        let header =
            Outgoing { epoch, term, message }.encode(&mut self.buffer).map_err(io::Error::other)?;
        self.digest.add(&header, 0);
        Ok(())
    }

    /// Sends pages. `push` puts the next page, in ascending order, into a frame and returns whether there was one.
    pub(super) fn pages(
        &mut self,
        kind: Kind,
        epoch: Epoch,
        term: Term,
        mut push: impl FnMut(&mut PageFrame<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut more = true;
        while more {
            let start = self.buffer.len();
            let mut frame =
                PageFrame::begin(&mut self.buffer, kind, epoch, term, Compression::None);
            while more && frame.pages() < FRAME_PAGES && !frame.is_full() {
                more = push(&mut frame)?;
            }
            let pages = frame.pages();
            if pages == 0 {
                // The last frame was full when the pages ended: drop the empty one.
                self.buffer.truncate(start);
                break;
            }
            let header: Header = frame.finish().map_err(io::Error::other)?;
            self.digest.add(&header, pages);
            if self.buffer.len() >= FLUSH_AT {
                self.flush()?;
            }
        }
        Ok(())
    }
}
