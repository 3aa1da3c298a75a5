//! The service: receives requests, applies each operation once, and sends replies.

use crate::clients::{Clients, Seen};
use crate::clock::Clock;
use crate::log::{Entry, Log, Outcome};
use crate::packet::{self, Own, Peer, Received};
use crate::table::Table;
use crate::virtio::console::Console;
use crate::virtio::net::{self, Net};
use crate::virtio::other::Other;
use crate::{cpu, dirty, faults, say};
use core::fmt::Write as _;
use kemari_workload::{
    CHAIN_START, GUEST_PORT, MAX_KEYS, Op, OpCode, REPLY_LEN, Reply, Request, Status,
};

/// A requested end of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
}

/// The devices and the state of the service.
pub struct Service {
    net: Option<Net>,
    console: Option<Console>,
    other: Option<Other>,
    log: Option<Log>,
    own: Own,
    clients: &'static mut Clients,
    table: &'static mut Table,
    boot_id: u64,
    cpus: usize,
    applied: u64,
    chain: u64,
    ending: Option<Ending>,
    /// Number of network interrupts, and of disk interrupts, that were acknowledged.
    acknowledged: (u64, u64),
}

/// The parts of a service.
pub struct Parts {
    /// The network device for requests.
    pub net: Option<Net>,
    /// The console device, for marks.
    pub console: Option<Console>,
    /// A device of unknown kind to drive.
    pub other: Option<Other>,
    /// The log.
    pub log: Option<Log>,
    /// The guest's addresses.
    pub own: Own,
    /// A random number, chosen at the start.
    pub boot_id: u64,
    /// Number of CPUs that run.
    pub cpus: usize,
}

impl Service {
    /// Creates the service. No operation has been applied.
    pub fn new(parts: Parts, clients: &'static mut Clients, table: &'static mut Table) -> Self {
        let Parts { net, console, other, log, own, boot_id, cpus } = parts;
        Self {
            net,
            console,
            other,
            log,
            own,
            clients,
            table,
            boot_id,
            cpus,
            applied: 0,
            chain: CHAIN_START,
            ending: None,
            acknowledged: (0, 0),
        }
    }

    /// Announces our address on the network.
    pub fn announce(&mut self) {
        let own = self.own;
        if let Some(net) = &mut self.net {
            net.send(|out| packet::write_announcement(out, &own));
            net.notify();
        }
    }

    /// Does all pending work. Returns whether there was any.
    pub fn poll(&mut self, clock: &mut Clock) -> bool {
        let mut busy = self.poll_net(clock);
        busy |= self.poll_log(clock);
        if let Some(console) = &mut self.console {
            busy |= console.poll();
        }
        if let Some(other) = &mut self.other {
            busy |= other.poll(clock.now());
        }
        if let Some(log) = &mut self.log {
            log.notify();
        }
        if let Some(net) = &mut self.net {
            net.notify();
        }
        busy
    }

    /// The requested end of the machine, once the reply has left.
    pub fn ending(&mut self) -> Option<Ending> {
        let ending = self.ending?;
        let sent = self.net.as_mut().is_none_or(Net::all_sent);
        sent.then_some(ending)
    }

    /// Enables or disables the devices' interrupts. Returns whether work is already available.
    pub fn want_interrupts(&mut self, wanted: bool) -> bool {
        let mut work = false;
        if let Some(net) = &mut self.net {
            work |= net.want_interrupts(wanted);
        }
        if let Some(log) = &mut self.log {
            work |= log.want_interrupts(wanted);
        }
        work
    }

    /// Acknowledges the interrupts since the last call, so that devices release their interrupt
    /// lines.
    pub fn acknowledge_interrupts(&mut self) {
        let (net, disk) = (cpu::net_interrupts(), cpu::disk_interrupts());
        if let Some(device) = self.net.as_ref().filter(|_| net != self.acknowledged.0) {
            device.acknowledge_interrupt();
        }
        if let Some(log) = self.log.as_ref().filter(|_| disk != self.acknowledged.1) {
            log.acknowledge_interrupt();
        }
        self.acknowledged = (net, disk);
    }

    fn poll_net(&mut self, clock: &mut Clock) -> bool {
        const BATCH: usize = 32;
        let mut frame = net::frame_buffer();
        for taken in 0..BATCH {
            // Stop serving once an end is requested: a later reply must show that no earlier
            // request ends the machine.
            if self.ending.is_some() {
                return taken != 0;
            }
            let Some(net) = &mut self.net else {
                return false;
            };
            let Some(length) = net.take_frame(&mut frame) else {
                return taken != 0;
            };
            let own = self.own;
            match packet::read(&frame[..length], &own) {
                Some(Received::Arp(peer)) => {
                    net.send(|out| packet::write_arp(out, &own, &peer));
                }
                Some(Received::Echo(peer, message)) => {
                    net.send(|out| packet::write_echo(out, &own, &peer, message));
                }
                Some(Received::Udp { peer, port: GUEST_PORT, payload }) => {
                    if let Ok(request) = Request::decode(payload) {
                        self.serve(&request, &peer, clock);
                    }
                }
                _ => {}
            }
        }
        true
    }

    fn send(&mut self, peer: &Peer, reply: &[u8; REPLY_LEN]) {
        let own = self.own;
        if let Some(net) = &mut self.net {
            // The reply is dropped if no buffer is free. The client then repeats its request.
            net.send(|out| packet::write_udp(out, &own, peer, GUEST_PORT, reply));
        }
    }

    fn serve(&mut self, request: &Request<'_>, peer: &Peer, clock: &mut Clock) {
        let (client, seq, op) = (request.client, request.seq, request.op.code());
        match self.clients.look_up(client, seq, peer) {
            Seen::New(place) => self.begin(place, request, peer, clock),
            Seen::Answered(reply) => {
                let reply = *reply;
                self.send(peer, &reply);
            }
            Seen::UnderWay => {}
            Seen::Stale => {
                let reply = self.reply(client, seq, op, Status::Stale, 0, clock);
                self.send(peer, &reply.encode());
            }
            Seen::NoRoom => {
                let reply = self.reply(client, seq, op, Status::TooManyClients, 0, clock);
                self.send(peer, &reply.encode());
            }
        }
    }

    fn begin(&mut self, place: usize, request: &Request<'_>, peer: &Peer, clock: &mut Clock) {
        let code = request.op.code();
        if !code.changes_state() {
            self.clients.begin(place, request.client, request.seq, peer);
            let (status, value) = self.perform(&request.op);
            let reply = self.reply(request.client, request.seq, code, status, value, clock);
            self.finish(place, &reply);
            return;
        }
        let refusal = match &self.log {
            None => Some(Status::NoDisk),
            // Neither begin the request nor answer it: the client repeats it.
            Some(log) if !log.has_room() => return,
            Some(log) => self.lacks_room(log, &request.op),
        };
        self.clients.begin(place, request.client, request.seq, peer);
        match (&mut self.log, refusal) {
            (Some(log), None) => log.accept(place, request),
            (_, refusal) => {
                let status = refusal.unwrap_or(Status::NoDisk);
                let reply = self.reply(request.client, request.seq, code, status, 0, clock);
                self.finish(place, &reply);
            }
        }
    }

    /// Checks that the table has room. Room is reserved when a put is accepted: each outstanding
    /// put may add a key.
    fn lacks_room(&self, log: &Log, op: &Op<'_>) -> Option<Status> {
        let Op::Put { key, .. } = *op else {
            return None;
        };
        (!self.has_room_for(key, log.puts_under_way())).then_some(Status::Full)
    }

    fn has_room_for(&self, key: u32, under_way: usize) -> bool {
        self.table.len() + under_way < MAX_KEYS || self.table.get(key).is_some()
    }

    fn compare_and_set(&mut self, key: u32, expected: u32, value: u32) -> (Status, u64) {
        let before = self.table.get(key).unwrap_or(0);
        if before == u64::from(expected) {
            let under_way = self.log.as_ref().map_or(0, Log::puts_under_way);
            if !self.has_room_for(key, under_way) {
                return (Status::Full, 0);
            }
            self.table.put(key, u64::from(value));
        }
        (Status::Ok, before)
    }

    fn perform(&mut self, op: &Op<'_>) -> (Status, u64) {
        match *op {
            Op::Get { key } => match self.table.get(key) {
                Some(value) => (Status::Ok, value),
                None => (Status::NotFound, 0),
            },
            Op::CompareAndSet { key, expected, value } => {
                self.compare_and_set(key, expected, value)
            }
            Op::SetDirty { pages_per_second, region_pages } => {
                (Status::Ok, u64::from(dirty::command(pages_per_second, region_pages)))
            }
            Op::Verify => (Status::Ok, self.verify()),
            Op::Touch { pages, whole } => (Status::Ok, dirty::touch(pages, whole, self.cpus - 1)),
            Op::Compute { kib } => (Status::Ok, compute(kib)),
            Op::PowerOff => {
                self.ending = Some(Ending::PowerOff);
                (Status::Ok, 0)
            }
            Op::Reset => {
                self.ending = Some(Ending::Reset);
                (Status::Ok, 0)
            }
            Op::ConsoleMark { number } => {
                say!("MARK {number}");
                if let Some(console) = &mut self.console {
                    // Ignore the result: a write to the console cannot fail.
                    let _ = writeln!(console, "MARK {number}");
                }
                (Status::Ok, number)
            }
            // Append and put are not performed here: they are logged first, and `apply` performs
            // them.
            Op::Ping | Op::Append { .. } | Op::Put { .. } => (Status::Ok, self.cpus as u64),
        }
    }

    fn verify(&mut self) -> u64 {
        let pages = dirty::verify(self.cpus - 1);
        let entries = self.table.verify();
        let records = self.log.as_mut().map_or(0, Log::verify);
        pages + entries + records
    }

    fn poll_log(&mut self, clock: &mut Clock) -> bool {
        let Some(log) = &mut self.log else {
            return false;
        };
        let busy = log.poll();
        while let Some(outcome) = self.log.as_mut().and_then(Log::take_outcome) {
            let (entry, status, value) = match outcome {
                Outcome::Durable(entry) => {
                    let value = self.apply(&entry);
                    (entry, Status::Ok, value)
                }
                Outcome::Failed(entry) => (entry, Status::DiskError, 0),
            };
            let reply = self.reply(entry.client_id, entry.seq, entry.op, status, value, clock);
            self.finish(entry.client, &reply);
        }
        busy
    }

    fn apply(&mut self, entry: &Entry) -> u64 {
        assert!(
            entry.index == self.applied + 1,
            "operation {} follows {}",
            entry.index,
            self.applied
        );
        (self.applied, self.chain) = (entry.index, entry.chain);
        if entry.op == OpCode::Put {
            self.table.put(entry.key, entry.value);
            return entry.value;
        }
        entry.index
    }

    fn reply(
        &self,
        client: u32,
        seq: u64,
        op: OpCode,
        status: Status,
        value: u64,
        clock: &mut Clock,
    ) -> Reply {
        Reply {
            client,
            seq,
            op,
            status,
            applied: self.applied,
            chain: self.chain,
            clock_ns: clock.now(),
            dirty_pages: dirty::written(),
            faults: faults::count(),
            value,
            boot_id: self.boot_id,
        }
    }

    fn finish(&mut self, place: usize, reply: &Reply) {
        let bytes = reply.encode();
        if let Some(peer) = self.clients.finish(place, reply.seq, &bytes) {
            self.send(&peer, &bytes);
        }
    }
}

fn compute(kib: u32) -> u64 {
    let mut block = [0; 1024];
    (0..kib).fold(0, |sum: u64, round| {
        block[..4].copy_from_slice(&round.to_le_bytes());
        sum.wrapping_add(u64::from(kemari_workload::crc::crc32(core::hint::black_box(&block))))
    })
}
