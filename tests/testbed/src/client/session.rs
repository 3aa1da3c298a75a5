//! The client's loop: finds the guest by ARP, sends and repeats requests, and passes each answer to
//! the history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use kemari_workload::{GUEST_PORT, Reply};

use super::history::Asked;
use super::writer::{self, Writer};
use super::{ClientConfig, Order, Shared};
use crate::findings::{Finding, Kind};
use crate::packet::{Host, Incoming};
use crate::switch::Cable;

const OWN_PORT: u16 = 40_000;
/// Longest delay before the thread sees an order or a stop.
const TICK: Duration = Duration::from_millis(5);

pub(super) struct ClientSession {
    cable: Cable,
    config: ClientConfig,
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    /// The guest's addresses; `None` until it has answered ARP.
    guest: Option<Host>,
    last_question: Option<Instant>,
    /// The first writer sends the harness's orders, the others the workload.
    writers: Vec<Writer>,
}

impl ClientSession {
    pub(super) fn new(
        cable: Cable,
        config: ClientConfig,
        shared: Arc<Shared>,
        orders: Receiver<Order>,
    ) -> Self {
        let writers = (0..=config.writers).map(|client| Writer::new(client, config.seed)).collect();
        Self { cable, config, shared, orders, guest: None, last_question: None, writers }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            match self.guest {
                None => self.ask_for_guest(),
                Some(_) => self.send_what_is_due(),
            }
            if let Some(frame) = self.cable.receive(TICK) {
                self.take_in(&frame);
            }
        }
    }

    fn ask_for_guest(&mut self) {
        if self.last_question.is_none_or(|last| last.elapsed() >= self.config.resend) {
            self.last_question = Some(Instant::now());
            self.cable.send(&self.config.own.arp_request(self.config.guest));
        }
    }

    fn send_what_is_due(&mut self) {
        self.take_order();
        let held = self.shared.hold.load(Ordering::SeqCst);
        for place in 0..self.writers.len() {
            self.send_for(place, held);
        }
        let outstanding: Vec<Asked> = self
            .writers
            .iter()
            .filter_map(|writer| Some(writer.outstanding.as_ref()?.asked))
            .collect();
        let nothing = outstanding.is_empty();
        self.shared.state().outstanding = outstanding;
        if nothing {
            self.shared.answered.notify_all();
        }
    }

    fn take_order(&mut self) {
        let operator = &mut self.writers[0];
        if operator.outstanding.is_none()
            && let Ok(order) = self.orders.try_recv()
        {
            let floor = self.shared.state().history.floor();
            operator.ask(&order.op, floor, Some(order.waiter));
            self.send(0, Instant::now());
        }
    }

    fn send_for(&mut self, place: usize, held: bool) {
        let now = Instant::now();
        let writer = &mut self.writers[place];
        match &writer.outstanding {
            Some(waiting) if now - waiting.last_sent >= self.config.resend => {
                self.shared.state().window.resent += 1;
                self.send(place, now);
            }
            None if place != 0 && !held => {
                let mut state = self.shared.state();
                writer.next_request(state.history.floor(), &state.judge);
                if let Some((key, client, steps)) = writer.begins() {
                    state.judge.begins(key, client, steps);
                }
                drop(state);
                self.send(place, now);
            }
            _ => {}
        }
    }

    fn send(&mut self, place: usize, now: Instant) {
        let Some(guest) = self.guest else { return };
        if let Some(message) = self.writers[place].sending(now) {
            self.cable.send(&self.config.own.udp(guest, OWN_PORT, GUEST_PORT, message));
        }
    }

    fn take_in(&mut self, frame: &[u8]) {
        let own = self.config.own;
        match own.parse(frame) {
            Some(Incoming::ArpRequest(asker)) => self.cable.send(&own.arp_reply(asker)),
            Some(Incoming::ArpReply(host)) if host.ip == self.config.guest => {
                self.guest = Some(host)
            }
            Some(Incoming::Udp { from, source_port: GUEST_PORT, port: OWN_PORT, payload })
                if from == self.config.guest =>
            {
                self.take_reply(payload);
            }
            _ => {}
        }
    }

    fn take_reply(&mut self, payload: &[u8]) {
        let reply = match Reply::decode(payload) {
            Ok(reply) => reply,
            Err(error) => {
                let garbage =
                    Finding::new(Kind::Behaviour, format!("a reply that cannot be read: {error}"));
                return self.shared.state().history.note(garbage);
            }
        };
        let mut state = self.shared.state();
        let Some(writer) =
            self.writers.get_mut(reply.client as usize).filter(|writer| writer.knows(reply.seq))
        else {
            let (client, seq) = (reply.client, reply.seq);
            let nobody = format!("request {seq} of client {client} was never sent, but answered");
            return state.history.note(Finding::new(Kind::Behaviour, nobody));
        };
        state.window.surplus_answers += u64::from(writer.count_answer(reply.seq));
        // Only a first answer shows a reset: the guest may have sent a further answer before the
        // reset.
        if writer.awaits(&reply) && state.history.is_reset_by(&reply) {
            state.begin_anew();
            for writer in &mut self.writers {
                writer.begin_anew();
                // Outstanding operations now count as sent to the guest after its reset.
                if let Some((key, client, steps)) = writer.begins() {
                    state.judge.begins(key, client, steps);
                }
            }
        }
        let writer = &mut self.writers[reply.client as usize];
        match writer.answered(&reply) {
            Some(request) => {
                state.history.answered(&request.asked, &reply);
                if let Some((key, _)) = request.shared {
                    state.judge.ends(key, reply.client, writer::answer(&reply));
                }
                state.window.answer(request.first_sent);
                state.operations += 1;
                self.shared.answered.notify_all();
                // The send fails if the harness has stopped waiting.
                request.waiter.map(|waiter| waiter.send(reply));
            }
            None => state.history.answered_again(&reply),
        }
    }
}
