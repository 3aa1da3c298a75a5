//! The client that measures all monitors: it sends requests to the micro-guest over the user-space
//! switch and measures their latency.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kemari_testbed::packet::{Host, Incoming};
use kemari_testbed::switch::{Cable, Switch};
use kemari_workload::{GUEST_PORT, MAX_REQUEST_LEN, Op, Reply, Request, Status};
use xtask_common::stop;

use super::figures::Samples;

/// The guest's address.
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const OWN: Host = Host { mac: [2, 0, 0, 0, 0, 0xc2], ip: Ipv4Addr::new(10, 0, 2, 3) };
const OWN_PORT: u16 = 40_001;

/// An unanswered request is repeated after this time.
const RESEND: Duration = Duration::from_millis(50);
/// The longest time until a guest answers, its start included.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interval of requests in [`Client::watch`], which is the resolution of the measured silence.
const WATCH_EVERY: Duration = Duration::from_millis(1);
/// The switch's recording is cleared after this many frames.
const CAPTURE_EVERY: u64 = 4096;

/// A client id with one outstanding request.
#[derive(Debug, Clone, Copy, Default)]
struct Id {
    seq: u64,
    first_sent: Option<Instant>,
    last_sent: Option<Instant>,
}

/// The result of a period of requests.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The duration of the period.
    pub(super) took: Duration,
    /// The time from a request's first sending to its answer, in microseconds.
    pub(super) latency: Samples,
}

impl Exchange {
    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.latency.count() as f64 / self.took.as_secs_f64()
    }
}

/// The client that sends all requests.
pub(super) struct Client<'a> {
    switch: &'a Switch,
    cable: Cable,
    stop: stop::Flag,
    guest: Option<Host>,
    ids: Vec<Id>,
    frames: u64,
}

impl<'a> Client<'a> {
    /// A client on its own cable, with `ids` ids that can ask at the same time.
    pub(super) fn new(switch: &'a Switch, ids: usize, stop: stop::Flag) -> Self {
        let (cable, ids) = (switch.plug_in(), vec![Id::default(); ids]);
        Self { switch, cable, stop, guest: None, ids, frames: 0 }
    }

    /// Waits until the guest has answered with its Ethernet address.
    ///
    /// # Errors
    /// The guest does not answer.
    pub(super) fn find_guest(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.check_stop()?;
            self.cable.send(&OWN.arp_request(GUEST));
            let again = Instant::now() + RESEND;
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                let Some(frame) = self.cable.receive(left) else { break };
                if let Some(Incoming::ArpReply(host)) = OWN.parse(&frame)
                    && host.ip == GUEST
                {
                    self.guest = Some(host);
                    return Ok(());
                }
            }
        }
        bail!("the guest does not answer within {} s of its start", PATIENCE.as_secs())
    }

    /// Lets the guest perform `op`.
    ///
    /// # Errors
    /// The guest does not answer, refuses, or finds its machine faulty.
    pub(super) fn ask(&mut self, op: Op<'_>) -> Result<Reply> {
        let deadline = Instant::now() + PATIENCE;
        self.begin(0, op)?;
        while Instant::now() < deadline {
            self.check_stop()?;
            if let Some((0, reply)) = self.take_reply(RESEND) {
                ensure!(
                    reply.faults == 0,
                    "the guest found {} faults of its machine",
                    reply.faults
                );
                ensure!(reply.status == Status::Ok, "{op:?} ended with {:?}", reply.status);
                return Ok(reply);
            }
            self.send(0, op)?;
        }
        bail!("the guest does not answer to {op:?}")
    }

    /// Sends requests for `time`. Each id sends its next request as soon as it has an answer.
    ///
    /// # Errors
    /// The guest falls silent or finds its machine faulty.
    pub(super) fn exchange(&mut self, ids: usize, op: Op<'_>, time: Duration) -> Result<Exchange> {
        let began = Instant::now();
        let mut found = Exchange { took: time, ..Exchange::default() };
        for id in 0..ids {
            self.begin(id, op)?;
        }
        let mut under_way = ids;
        let mut last_answer = Instant::now();
        while under_way > 0 {
            self.check_stop()?;
            ensure!(last_answer.elapsed() < PATIENCE, "the guest stopped answering");
            let Some((id, reply)) = self.take_reply(RESEND) else {
                self.repeat(op)?;
                continue;
            };
            last_answer = Instant::now();
            ensure!(reply.status == Status::Ok, "{op:?} ended with {:?}", reply.status);
            ensure!(reply.faults == 0, "the guest found {} faults of its machine", reply.faults);
            let Some(sent) = self.ids[id].first_sent.take() else { continue };
            if began.elapsed() < time {
                found.latency.add_time(sent.elapsed());
                self.begin(id, op)?;
            } else {
                under_way -= 1;
            }
        }
        Ok(found)
    }

    /// Sends a request each millisecond, whether answers arrive or not, until an answer arrives
    /// after `enough` is set. Returns the longest time without an answer.
    ///
    /// # Errors
    /// The guest falls silent and stays silent.
    pub(super) fn watch(&mut self, enough: &AtomicBool) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        let mut last_answer = Instant::now();
        loop {
            self.check_stop()?;
            // Read the flag before the answer: an answer from before `enough` does not count.
            let last = enough.load(Ordering::SeqCst);
            self.begin(0, Op::Ping)?;
            let next = Instant::now() + WATCH_EVERY;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                // An answer to an earlier request also shows that the guest runs.
                if self.next_reply(left).is_none() {
                    continue;
                }
                longest = longest.max(last_answer.elapsed());
                last_answer = Instant::now();
                if last {
                    return Ok(longest);
                }
            }
            ensure!(last_answer.elapsed() < PATIENCE, "the guest stopped answering");
        }
    }

    fn check_stop(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }

    /// Sends a new request of `id`.
    fn begin(&mut self, id: usize, op: Op<'_>) -> Result<()> {
        self.ids[id].seq += 1;
        self.ids[id].first_sent = Some(Instant::now());
        self.send(id, op)
    }

    /// Repeats overdue requests.
    fn repeat(&mut self, op: Op<'_>) -> Result<()> {
        let overdue =
            |id: &Id| id.first_sent.and(id.last_sent).is_some_and(|at| at.elapsed() >= RESEND);
        let late: Vec<usize> = (0..self.ids.len()).filter(|&id| overdue(&self.ids[id])).collect();
        late.into_iter().try_for_each(|id| self.send(id, op))
    }

    fn send(&mut self, id: usize, op: Op<'_>) -> Result<()> {
        let guest = self.guest.context("the guest has not been found yet")?;
        let mut message = [0; MAX_REQUEST_LEN];
        let request = Request { client: id as u32, seq: self.ids[id].seq, op };
        let length = request.encode(&mut message).context("the request is too long")?;
        self.ids[id].last_sent = Some(Instant::now());
        self.cable.send(&OWN.udp(guest, OWN_PORT, GUEST_PORT, &message[..length]));
        self.frames += 1;
        if self.frames.is_multiple_of(CAPTURE_EVERY) {
            self.switch.take_capture();
        }
        Ok(())
    }

    /// The next reply to an outstanding request, if one arrives within `timeout`.
    fn take_reply(&mut self, timeout: Duration) -> Option<(usize, Reply)> {
        let deadline = Instant::now() + timeout;
        loop {
            let reply = self.next_reply(deadline.saturating_duration_since(Instant::now()))?;
            let id = reply.client as usize;
            if self.ids.get(id).is_some_and(|id| id.seq == reply.seq) {
                return Some((id, reply));
            }
        }
    }

    /// The next reply to any request, if one arrives within `timeout`.
    fn next_reply(&mut self, timeout: Duration) -> Option<Reply> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.cable.receive(left)?;
            match OWN.parse(&frame) {
                Some(Incoming::ArpRequest(host)) => self.cable.send(&OWN.arp_reply(host)),
                Some(Incoming::Udp { port: OWN_PORT, payload, .. }) => {
                    if let Ok(reply) = Reply::decode(payload) {
                        return Some(reply);
                    }
                }
                _ => {}
            }
        }
    }
}
