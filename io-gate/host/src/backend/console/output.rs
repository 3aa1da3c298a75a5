//! A console's output. Bytes that its reader has not read wait here, in flight.
//!
//! P3: printed bytes are settled when they have been written. Until then every checkpoint contains
//! them, and a takeover prints them.
//!
//! The rest is lossy, so that a stopped reader does not stop the guest: at most [`MAX_WAITING`]
//! bytes are kept, and further ones are dropped and logged. A driver of a virtio console blocks
//! everything while it waits for a buffer. So it gets its buffers back after [`PATIENCE`], and the
//! bytes then wait in this host's memory only.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use io_gate::Outcome;
use io_gate::host::{EffectOp, Origin, Performable};

use super::sink::Sink;
use crate::backend::interest::{Interest, Retry};
use crate::inputs::{Inputs, Role, Token, Watch};
use crate::out::{Kept, Refused, Released};
use crate::poisoned::POISONED;
use crate::work::Work;

/// Upper bounds of the output that waits for a reader, in bytes and in requests. Each request has a
/// record in every checkpoint. The bounds are below a slot's bound of unsettled requests (io-gate,
/// `load`): output to a stopped reader is dropped here before the gate would hold it back.
const MAX_WAITING: usize = 128 * 1024;
const MAX_REQUESTS: usize = 24 * 1024;
/// Size of one message in bytes: the most that is written with one permit (P2).
const PIECE: usize = 4096;
/// Upper bound of the bytes that one request prints.
const MAX_REQUEST: usize = 1024 * 1024;
/// How long a driver's buffer waits for a stopped reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a clean shutdown waits for a stopped reader.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Watches for room in the sink, and limits the wait for it.
pub(super) struct Room {
    interest: Interest,
    timer: Retry,
}

impl Room {
    pub(super) fn new(inputs: &Inputs, token: Token) -> io::Result<Self> {
        let mut interest = Interest::new();
        interest.want_input(false);
        let timer = Retry::new(inputs, token, Role::Timer, PATIENCE, PATIENCE)?;
        Ok(Self { interest, timer })
    }

    pub(super) fn watch(&mut self, watch: Watch) -> io::Result<()> {
        self.interest.watch(watch)
    }

    pub(super) fn want(&mut self, wanted: bool) {
        self.interest.want_output(wanted);
    }

    pub(super) fn expired(&mut self) {
        self.timer.expired();
    }
}

/// Bytes that wait for the reader, and the request that printed them.
struct Waiting {
    /// `None` if the request is already settled.
    request: Option<Performable>,
    bytes: Kept,
}

impl Waiting {
    fn is_of_a_chain(&self) -> bool {
        let origin = self.request.as_ref().map(|request| &request.record().origin);
        matches!(origin, Some(Origin::Chain { .. }))
    }
}

/// The lane's half of a console.
pub(crate) struct Output {
    /// `None` if the console has no output.
    sink: Option<Sink>,
    room: Arc<Mutex<Room>>,
    waiting: VecDeque<Waiting>,
    /// Number of entries in `waiting` that hold a driver's buffer.
    chains: usize,
    /// Number of bytes in `waiting`.
    bytes: usize,
    /// Number of bytes of the first entry that have been written.
    written: usize,
    /// The next piece to write. The buffer is reused.
    piece: Kept,
    /// The time since which the reader has read nothing.
    stopped: Option<Instant>,
    /// Whether the missing reader has been logged.
    gone: bool,
}

impl Output {
    pub(super) fn new(sink: Option<Sink>, room: Arc<Mutex<Room>>) -> Self {
        Self {
            sink,
            room,
            waiting: VecDeque::new(),
            chains: 0,
            bytes: 0,
            written: 0,
            piece: Kept::default(),
            stopped: None,
            gone: false,
        }
    }

    pub(crate) fn perform(&mut self, work: &mut Work<'_>, request: Performable) {
        let released = Released::of(&request);
        let Some(released) = released.filter(|it| matches!(it.op(), EffectOp::ConsoleTx { .. }))
        else {
            return work.done(request, Outcome::Unsupported, Vec::new());
        };
        let bytes = released.bytes(&work.far_side.memory).map(|bytes| bytes.keep(MAX_REQUEST));
        let Ok(bytes) = bytes else { return work.done(request, Outcome::Failed, Vec::new()) };
        let Some(sink) = &self.sink else {
            return work.done(request, Outcome::Success(0), Vec::new());
        };
        if self.is_full(bytes.len()) {
            log::warn!(
                "{}: its reader does not read: {} bytes are dropped, {} wait",
                sink.name(),
                bytes.len(),
                self.bytes
            );
            return work.done(request, Outcome::Success(0), Vec::new());
        }
        self.bytes += bytes.len();
        let waiting = Waiting { request: Some(request), bytes };
        self.chains += usize::from(waiting.is_of_a_chain());
        self.waiting.push_back(waiting);
        // If other bytes already wait, the lane is waiting for room: do not write now.
        if self.waiting.len() == 1 {
            self.write(work);
        }
        self.hand_back(work);
    }

    /// Whether `more` bytes do not fit. If nothing waits, any number fits.
    fn is_full(&self, more: usize) -> bool {
        !self.waiting.is_empty()
            && (self.bytes + more > MAX_WAITING || self.waiting.len() >= MAX_REQUESTS)
    }

    /// Continues: there may be room, or a driver may have waited for too long.
    pub(crate) fn attend(&mut self, work: &mut Work<'_>) {
        self.write(work);
        self.hand_back(work);
    }

    /// Waits a limited time for the reader, because the machine ends.
    pub(crate) fn finish(&mut self, work: &mut Work<'_>, until: Instant) {
        let mut progress = Instant::now();
        loop {
            let before = (self.bytes, self.written);
            self.write(work);
            if self.waiting.is_empty() {
                return;
            }
            if before != (self.bytes, self.written) {
                progress = Instant::now();
            }
            let until = until.min(progress + LAST_PATIENCE);
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            let room = self.sink.as_ref().is_some_and(|sink| {
                left > 0 && sink.wait_for_room(i32::try_from(left).unwrap_or(i32::MAX))
            });
            if !room {
                return;
            }
        }
    }

    /// Writes while there is room, each piece with its own permit (P2).
    fn write(&mut self, work: &mut Work<'_>) {
        while let Some(sink) = self.sink.as_ref().filter(|_| !self.waiting.is_empty()) {
            self.piece.clear();
            let mut skip = self.written;
            for waiting in &self.waiting {
                let room = PIECE - self.piece.len();
                self.piece.add(&waiting.bytes, skip, room);
                skip = 0;
                if self.piece.len() == PIECE {
                    break;
                }
            }
            if self.piece.is_empty() {
                self.has_written(work, 0);
                continue;
            }
            match sink.write(&mut work.permits, &self.piece) {
                Ok(Some(count)) => self.has_written(work, count),
                Ok(None) => return self.has_no_room(),
                Err(Refused::NotPermitted) => return self.withhold(work),
                Err(Refused::Io(error)) => self.failed(work, &error),
            }
        }
        self.stopped = None;
        self.room.lock().expect(POISONED).want(false);
    }

    fn has_written(&mut self, work: &mut Work<'_>, count: usize) {
        self.stopped = None;
        if std::mem::take(&mut self.gone)
            && let Some(sink) = &self.sink
        {
            log::warn!("{}: its reader reads again", sink.name());
        }
        self.written += count;
        while let Some(len) = self.waiting.front().map(|first| first.bytes.len())
            && self.written >= len
        {
            let rest = self.written - len;
            self.first_is_over(work, Outcome::Success(0));
            self.written = rest;
        }
    }

    fn first_is_over(&mut self, work: &mut Work<'_>, outcome: Outcome) {
        self.written = 0;
        let Some(first) = self.waiting.pop_front() else { return };
        self.bytes -= first.bytes.len();
        self.chains -= usize::from(first.is_of_a_chain());
        if let Some(request) = first.request {
            work.done(request, outcome, Vec::new());
        }
    }

    fn has_no_room(&mut self) {
        let mut room = self.room.lock().expect(POISONED);
        room.want(true);
        if self.stopped.is_none() {
            self.stopped = Some(Instant::now());
            room.timer.after(PATIENCE);
        }
    }

    /// Handles a full file or a missing reader: the guest continues without this output.
    fn failed(&mut self, work: &mut Work<'_>, error: &io::Error) {
        if !std::mem::replace(&mut self.gone, true)
            && let Some(sink) = &self.sink
        {
            log::warn!("{}: cannot be written to, and output is dropped: {error}", sink.name());
        }
        // For the guest a full disk is an error, and a missing reader is not.
        let read_by_nobody = self.sink.as_ref().is_some_and(Sink::has_to_be_waited_for);
        let outcome = if read_by_nobody { Outcome::Success(0) } else { Outcome::Failed };
        self.first_is_over(work, outcome);
    }

    /// Drops the waiting bytes: the right is lost, and its new holder prints what is still in
    /// flight.
    fn withhold(&mut self, work: &mut Work<'_>) {
        for waiting in self.waiting.drain(..) {
            waiting.request.into_iter().for_each(|request| work.withheld(request));
        }
        (self.bytes, self.written, self.chains) = (0, 0, 0);
    }

    /// Gives drivers their buffers back if the reader has read nothing for [`PATIENCE`].
    fn hand_back(&mut self, work: &mut Work<'_>) {
        if self.chains == 0 || self.stopped.is_none_or(|since| since.elapsed() < PATIENCE) {
            return;
        }
        self.chains = 0;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.is_of_a_chain()) {
            if let Some(request) = waiting.request.take() {
                work.done(request, Outcome::Success(0), Vec::new());
            }
        }
    }
}
