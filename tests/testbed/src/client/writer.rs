//! One client ID, with one outstanding request. It remembers the values that it put under its own
//! keys; other keys are shared by all clients.

use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use kemari_workload::{MAX_PAYLOAD, MAX_REQUEST_LEN, Op, Reply, Request, Status, payload_hash};

use super::history::{Asked, Floor};
use crate::linearizability::{Action, Answer, Judge, Step};

const KEYS: u32 = 8;
/// The first shared key, far above all clients' own keys.
const SHARED: u32 = 1 << 31;
const SHARED_KEYS: u32 = 6;
/// Number of requests whose answers are counted: no switch queues answers to this many requests of
/// one client.
const REMEMBERED: usize = 64;

/// An outstanding request.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) asked: Asked,
    pub(super) message: Vec<u8>,
    pub(super) first_sent: Instant,
    pub(super) last_sent: Instant,
    /// Receives the answer; set if the harness made the request.
    pub(super) waiter: Option<Sender<Reply>>,
    put: Option<(u32, u64)>,
    /// The operation on a shared key, for the linearizability judge.
    pub(super) shared: Option<(u32, Action)>,
}

/// Number of transmissions of one request, and of answers to it.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    seq: u64,
    sent: u64,
    answered: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    client: u32,
    seq: u64,
    random: fastrand::Rng,
    table: HashMap<u32, u64>,
    /// The last values seen of the shared keys.
    seen: HashMap<u32, u32>,
    pub(super) outstanding: Option<Outstanding>,
    recent: Vec<Count>,
}

impl Writer {
    pub(super) fn new(client: u32, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(client)));
        Self {
            client,
            seq: 0,
            random,
            table: HashMap::new(),
            seen: HashMap::new(),
            outstanding: None,
            recent: vec![Count::default(); REMEMBERED],
        }
    }

    /// Creates the next request of the workload: mostly appends and puts, some of them flushed;
    /// reads of the client's own keys; operations on shared keys.
    pub(super) fn next_request(&mut self, floor: Floor, judge: &Judge) {
        let shared = SHARED + self.random.u32(..SHARED_KEYS);
        if self.random.u32(..3) == 0 && judge.takes(shared) {
            return self.next_shared(shared, floor);
        }
        let flush = self.random.u32(..4) == 0;
        let key = (self.client << 8) | self.random.u32(..KEYS);
        match self.random.u32(..8) {
            0..3 => {
                let length = self.random.usize(..=MAX_PAYLOAD);
                let payload: Vec<u8> =
                    std::iter::repeat_with(|| self.random.u8(..)).take(length).collect();
                self.ask(&Op::Append { payload: &payload, flush }, floor, None);
            }
            3..6 => {
                let value = self.random.u64(..);
                self.ask(&Op::Put { key, value, flush }, floor, None);
            }
            6 => self.ask(&Op::Get { key }, floor, None),
            _ => self.ask(&Op::Ping, floor, None),
        }
    }

    /// No client sets a value twice, and two clients seldom set the same value: a stale value is
    /// recognised.
    fn next_shared(&mut self, key: u32, floor: Floor) {
        let value = (self.client << 24) | (self.seq as u32 & 0xff_ffff);
        let op = match self.random.u32(..4) {
            0 => Op::Put { key, value: u64::from(value), flush: false },
            1 => {
                let expected = self.seen.get(&key).copied().unwrap_or(0);
                Op::CompareAndSet { key, expected, value }
            }
            _ => Op::Get { key },
        };
        self.ask(&op, floor, None);
        let action = match op {
            Op::Put { value, .. } => Action::Set(value.cast_signed()),
            Op::CompareAndSet { expected, value, .. } => {
                Action::CompareAndSet { expected: i64::from(expected), value: i64::from(value) }
            }
            _ => Action::Get,
        };
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.shared = Some((key, action));
        }
    }

    /// Creates the request `op`.
    pub(super) fn ask(&mut self, op: &Op<'_>, floor: Floor, waiter: Option<Sender<Reply>>) {
        self.seq += 1;
        let (client, seq) = (self.client, self.seq);
        let mut message = vec![0; MAX_REQUEST_LEN];
        let length = Request { client, seq, op: *op }
            .encode(&mut message)
            .expect("the payload is within the limit and the buffer suffices");
        message.truncate(length);
        let (put, expected) = match *op {
            Op::Put { key, value, .. } => (Some((key, value)), None),
            Op::Get { key } if key < SHARED => (None, Some(self.table.get(&key).copied())),
            _ => (None, None),
        };
        let asked = Asked {
            client,
            seq,
            op: op.code(),
            payload_hash: op.with_log_payload(payload_hash),
            floor,
            expected,
        };
        let now = Instant::now();
        self.recent[seq as usize % REMEMBERED] = Count { seq, sent: 0, answered: 0 };
        self.outstanding = Some(Outstanding {
            asked,
            message,
            first_sent: now,
            last_sent: now,
            waiter,
            put,
            shared: None,
        });
    }

    /// The guest was reset and has lost all puts. An outstanding request now counts as sent to a
    /// guest that has applied nothing.
    pub(super) fn begin_anew(&mut self) {
        self.table.clear();
        self.seen.clear();
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.asked.floor = Floor::default();
            outstanding.asked.expected = outstanding.asked.expected.map(|_| None);
        }
    }

    /// Records a transmission of the outstanding request, and returns its bytes.
    pub(super) fn sending(&mut self, now: Instant) -> Option<&[u8]> {
        let outstanding = self.outstanding.as_mut()?;
        outstanding.last_sent = now;
        self.recent[outstanding.asked.seq as usize % REMEMBERED].sent += 1;
        Some(&outstanding.message)
    }

    /// Whether `reply` is the first answer to the outstanding request.
    pub(super) fn awaits(&self, reply: &Reply) -> bool {
        let asked = self.outstanding.as_ref().map(|outstanding| outstanding.asked);
        asked.is_some_and(|asked| (asked.seq, asked.op) == (reply.seq, reply.op))
    }

    /// Takes the outstanding request if `reply` answers it.
    pub(super) fn answered(&mut self, reply: &Reply) -> Option<Outstanding> {
        let outstanding = self.awaits(reply).then(|| self.outstanding.take())??;
        if let Some((key, _)) = outstanding.shared {
            self.seen.insert(key, reply.value as u32);
        }
        if let Some((key, value)) = outstanding.put.filter(|_| reply.status == Status::Ok) {
            self.table.insert(key, value);
        }
        Some(outstanding)
    }

    /// Counts an answer; `true` if there are now more answers than transmissions.
    pub(super) fn count_answer(&mut self, seq: u64) -> bool {
        let count = &mut self.recent[seq as usize % REMEMBERED];
        if count.seq != seq {
            return false;
        }
        count.answered += 1;
        count.answered > count.sent
    }

    /// The outstanding operation on a shared key, for the linearizability judge.
    pub(super) fn begins(&self) -> Option<(u32, u32, Vec<Step>)> {
        let (key, action) = self.outstanding.as_ref()?.shared?;
        Some((key, self.client, vec![Step { cell: 0, action }]))
    }

    /// Whether this client has sent request `seq`.
    pub(super) fn knows(&self, seq: u64) -> bool {
        (1..=self.seq).contains(&seq)
    }
}

/// Converts a reply for the linearizability judge. A key without a value counts as 0.
pub(super) fn answer(reply: &Reply) -> Answer {
    match reply.status {
        Status::Ok => Answer::Done(vec![reply.value.cast_signed()]),
        Status::NotFound => Answer::Done(vec![0]),
        _ => Answer::Refused,
    }
}
