//! The load generator: clients with one outstanding request each, and the latency of each answer.
//!
//! Unlike [`kemari_testbed::client`], it remembers nothing and judges nothing, so it uses little of
//! the machine that it measures.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use kemari_testbed::packet::{Host, Incoming};
use kemari_workload::{GUEST_PORT, MAX_REQUEST_LEN, Op, Reply, Request, Status};

use super::wire::Wire;
use crate::data::Spread;

const OWN_PORT: u16 = 41_000;
/// An unanswered request is repeated after this time, which is much longer than any measured
/// latency.
const RESEND: Duration = Duration::from_secs(2);
/// The longest time without any answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first client id. The ids differ from those of the clients that judge.
const FIRST_ID: u32 = 1000;
const LONGEST_NS: u64 = 600_000_000_000;

/// The clients, which share one cable.
#[derive(Debug)]
pub(crate) struct LoadGenerator {
    wire: Wire,
    own: Host,
    guest: Host,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    id: u32,
    seq: u64,
    message: Vec<u8>,
    asked: Instant,
    sent: Instant,
    waits: bool,
}

/// The results of a period of load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The duration of the load.
    pub(crate) time: Duration,
    /// The number of answered requests.
    pub(crate) answers: u64,
    /// The time from a request to its answer, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// The last answer.
    pub(crate) last: Option<Reply>,
}

impl Load {
    /// Answers per second.
    #[must_use]
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.time.as_secs_f64()
    }

    /// The distribution of the latency, in microseconds.
    #[must_use]
    pub(crate) fn spread(&self) -> Spread {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Spread {
            count: self.latency.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.latency.max() as f64 / 1e3,
        }
    }
}

impl LoadGenerator {
    /// Finds the guest's address, and waits until the guest answers.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub(crate) fn find(mut wire: Wire, own: Host, guest: Ipv4Addr) -> Result<Self> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            wire.send(&own.arp_request(guest))?;
            let Some(frame) = wire.receive()? else { continue };
            if let Some(Incoming::ArpReply(host)) = own.parse(frame)
                && host.ip == guest
            {
                return Ok(Self { wire, own, guest: host, clients: Vec::new() });
            }
        }
        bail!("the guest does not answer within {PATIENCE:?}")
    }

    /// Sends one request.
    ///
    /// # Errors
    /// No answer comes, or the guest refuses.
    pub(crate) fn once(&mut self, op: Op<'_>) -> Result<Reply> {
        let load = self.run(1, Length::Answers(1), |_| op)?;
        load.last.ok_or_else(|| anyhow::anyhow!("no answer"))
    }

    /// Lets each of the `clients` send the request that `op` returns for the request's number, and
    /// the next request as soon as it has the answer.
    ///
    /// # Errors
    /// No answer comes for a long time, or the guest refuses.
    pub(crate) fn run<'a>(
        &mut self,
        clients: u32,
        length: Length,
        mut op: impl FnMut(u64) -> Op<'a>,
    ) -> Result<Load> {
        self.add_clients(clients);
        let mut number = 0;
        let mut latency = Histogram::new_with_bounds(1, LONGEST_NS, 3)?;
        let begun = Instant::now();
        for place in 0..clients as usize {
            self.ask(place, &op(number))?;
            number += 1;
        }
        let (mut last, mut heard, mut waiting) = (None, begun, clients);
        while waiting > 0 {
            let answer = self.answer()?;
            let now = Instant::now();
            ensure!(now - heard < PATIENCE, "no answer within {PATIENCE:?}");
            let Some((place, reply)) = answer else {
                self.repeat(now)?;
                continue;
            };
            ensure!(
                reply.status == Status::Ok,
                "{:?}: the guest says {:?}",
                reply.op,
                reply.status
            );
            heard = now;
            let client = &mut self.clients[place];
            client.waits = false;
            latency.saturating_record((now - client.asked).as_nanos() as u64);
            last = Some(reply);
            if length.goes_on(now - begun, number) {
                self.ask(place, &op(number))?;
                number += 1;
            } else {
                waiting -= 1;
            }
        }
        Ok(Load { time: begun.elapsed(), answers: latency.len(), latency, last })
    }

    fn add_clients(&mut self, count: u32) {
        let now = Instant::now();
        while self.clients.len() < count as usize {
            let id = FIRST_ID + self.clients.len() as u32;
            let message = Vec::new();
            self.clients.push(Client { id, seq: 0, message, asked: now, sent: now, waits: false });
        }
    }

    fn ask(&mut self, place: usize, op: &Op<'_>) -> Result<()> {
        let client = &mut self.clients[place];
        client.seq += 1;
        client.message.resize(MAX_REQUEST_LEN, 0);
        let request = Request { client: client.id, seq: client.seq, op: *op };
        let length = request.encode(&mut client.message)?;
        client.message.truncate(length);
        client.asked = Instant::now();
        client.waits = true;
        let now = client.asked;
        self.send(place, now)
    }

    fn send(&mut self, place: usize, now: Instant) -> Result<()> {
        let client = &mut self.clients[place];
        client.sent = now;
        self.wire.send(&self.own.udp(self.guest, OWN_PORT, GUEST_PORT, &client.message))
    }

    fn repeat(&mut self, now: Instant) -> Result<()> {
        for place in 0..self.clients.len() {
            let client = &self.clients[place];
            if client.waits && now - client.sent > RESEND {
                self.send(place, now)?;
            }
        }
        Ok(())
    }

    /// The answer in the next frame, and the index of its client; `None` if the frame has no
    /// answer.
    fn answer(&mut self) -> Result<Option<(usize, Reply)>> {
        let Some(frame) = self.wire.receive()? else { return Ok(None) };
        let Some(Incoming::Udp { port: OWN_PORT, payload, .. }) = self.own.parse(frame) else {
            return Ok(None);
        };
        let Ok(reply) = Reply::decode(payload) else { return Ok(None) };
        let place = reply.client.checked_sub(FIRST_ID).map(|place| place as usize);
        let asked = place.and_then(|place| self.clients.get(place));
        let waits = asked.is_some_and(|client| client.waits && client.seq == reply.seq);
        Ok(place.filter(|_| waits).map(|place| (place, reply)))
    }
}

/// How long the clients send requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    /// Until this many requests in all.
    Answers(u64),
    /// For this time.
    Time(Duration),
    /// For this time, and at least until this many requests.
    Both(Duration, u64),
}

impl Length {
    fn goes_on(self, time: Duration, asked: u64) -> bool {
        match self {
            Self::Answers(count) => asked < count,
            Self::Time(length) => time < length,
            Self::Both(length, count) => time < length || asked < count,
        }
    }
}
