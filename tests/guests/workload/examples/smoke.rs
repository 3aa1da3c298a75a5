//! A smoke test of a running micro-guest from outside: tests each operation, repetitions, and
//! several clients at the same time. It recomputes the history from the answers, and compares it
//! with the disk.
//!
//! Usage: `cargo run -p kemari-workload --example smoke -- 127.0.0.1:PORT [DISK] [SECONDS]
//! [PAGES_PER_SECOND]`. The test powers the guest off at the end.

use kemari_workload::{
    CHAIN_START, MAX_REQUEST_LEN, Op, REPLY_LEN, Record, Reply, Request, Status, log_capacity,
    log_sector, payload_hash, record::SLOT_LEN,
};
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

const CLIENTS: u32 = 4;

/// The applied operations by number: client, seq, operation code, payload hash, chain afterwards.
type History = BTreeMap<u64, (u32, u64, u8, u64, u64)>;

struct Client {
    /// Not connected: a guest that does not listen yet is then silent, and causes no error.
    socket: UdpSocket,
    address: String,
    id: u32,
    seq: u64,
    history: History,
    times: Vec<Duration>,
    last_clock: u64,
}

impl Client {
    fn new(address: &str, id: u32) -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
        let patience = Some(Duration::from_millis(500));
        socket.set_read_timeout(patience).expect("a time-out");
        Self {
            socket,
            address: address.to_owned(),
            id,
            seq: 0,
            history: History::new(),
            times: Vec::new(),
            last_clock: 0,
        }
    }

    fn ask(&mut self, op: Op<'_>) -> Reply {
        self.seq += 1;
        let (start, id, seq) = (Instant::now(), self.id, self.seq);
        let request = Request { client: id, seq, op };
        let reply = self.exchange(&request);
        self.times.push(start.elapsed());
        assert!(reply.clock_ns > self.last_clock, "the clock: {reply:?}");
        assert_eq!(reply.faults, 0, "the guest found faults: {reply:?}");
        self.last_clock = reply.clock_ns;
        if op.code().changes_state() && reply.status == Status::Ok {
            let hash = op.with_log_payload(payload_hash);
            let entry = (id, seq, op.code() as u8, hash, reply.chain);
            assert!(self.history.insert(reply.applied, entry).is_none());
        }
        reply
    }

    fn exchange(&self, request: &Request<'_>) -> Reply {
        let mut message = [0; MAX_REQUEST_LEN];
        let length = request.encode(&mut message).expect("it fits");
        for _ in 0..60 {
            self.socket.send_to(&message[..length], &self.address).expect("sent");
            let mut answer = [0; REPLY_LEN + 1];
            while let Ok(length) = self.socket.recv(&mut answer) {
                let reply = Reply::decode(&answer[..length]).expect("a good reply");
                if (reply.client, reply.seq) == (request.client, request.seq) {
                    assert_eq!(reply.op, request.op.code());
                    return reply;
                }
            }
        }
        panic!("no answer to {request:?}");
    }
}

fn check_history(history: &History, applied: u64) {
    let mut chain = CHAIN_START;
    for (expected, (&applied, &(client, seq, op, hash, after))) in (1..).zip(history) {
        assert_eq!(applied, expected, "an applied operation that nobody saw");
        chain = kemari_workload::chain_after(chain, client, seq, op, hash);
        assert_eq!(chain, after, "the chain after {applied}");
    }
    assert_eq!(applied, history.len() as u64, "operations that nobody saw");
    println!("{} operations, one chain", history.len());
}

fn check_disk(path: &str, history: &History, boot_id: u64) {
    let disk = std::fs::read(path).expect("the disk image");
    let capacity = log_capacity(disk.len() as u64 / 512);
    let last = history.keys().last().copied().unwrap_or(0);
    for (&index, &(client, seq, op, _, chain)) in history {
        if index + capacity <= last {
            continue;
        }
        let start = log_sector(index, capacity) as usize * 512;
        let record = Record::decode(&disk[start..start + SLOT_LEN]).expect("a record");
        let found = (record.client, record.seq, record.op as u8, record.chain);
        assert_eq!((record.index, record.boot_id), (index, boot_id));
        assert_eq!(found, (client, seq, op, chain));
    }
    println!("the disk holds them");
}

fn try_everything(client: &mut Client) -> u64 {
    let first = client.ask(Op::Ping);
    assert_eq!((first.status, first.applied), (Status::Ok, 0));
    let appended = client.ask(Op::Append { payload: &[7; 1024], flush: true });
    assert_eq!((appended.status, appended.applied), (Status::Ok, 1));
    let again = Request {
        client: client.id,
        seq: client.seq,
        op: Op::Append { payload: &[7; 1024], flush: true },
    };
    assert_eq!(client.exchange(&again), appended, "a repetition");
    let value = u64::MAX - 1;
    let put = Op::Put { key: 5, value, flush: false };
    assert_eq!(client.ask(put).value, value);
    assert_eq!(client.ask(Op::Get { key: 5 }).value, value);
    let nothing = client.ask(Op::Get { key: 6 });
    assert_eq!(nothing.status, Status::NotFound);
    let stale = Request { client: client.id, seq: 1, op: Op::Ping };
    assert_eq!(client.exchange(&stale).status, Status::Stale);
    client.ask(Op::ConsoleMark { number: 42 });
    assert_eq!(client.ask(Op::Verify).value, 0);
    println!("every operation works, on {} CPUs", first.value);
    first.boot_id
}

fn work(client: &mut Client, until: Instant) {
    while Instant::now() < until {
        let number = client.seq;
        let payload = vec![number as u8; (number * 37 % 1025) as usize];
        client.ask(Op::Append { payload: &payload, flush: number.is_multiple_of(3) });
        let (key, value) = (client.id * 100 + (number % 50) as u32, number);
        let flush = number.is_multiple_of(2);
        client.ask(Op::Put { key, value, flush });
        assert_eq!(client.ask(Op::Get { key }).value, value);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().expect("first argument: host:port");
    let disk = arguments.get(1);
    let number = |place: usize, default| {
        let argument = arguments.get(place);
        argument.map_or(default, |text| text.parse().expect("a number"))
    };
    let (seconds, rate) = (number(2, 3), number(3, 2000));
    let mut first = Client::new(address, 1);
    let boot_id = try_everything(&mut first);
    let before = first.ask(Op::SetDirty { pages_per_second: rate, region_pages: 2048 });
    let start = Instant::now();
    let until = start + Duration::from_secs(u64::from(seconds));
    let mut clients: Vec<Client> = (2..=CLIENTS).map(|id| Client::new(address, id)).collect();
    std::thread::scope(|scope| {
        for client in clients.iter_mut().chain([&mut first]) {
            scope.spawn(move || work(client, until));
        }
    });
    let after = first.ask(Op::Ping);
    let dirtied = (after.dirty_pages - before.dirty_pages) as f64 / start.elapsed().as_secs_f64();
    println!("{dirtied:.0} pages dirtied in a second, of {rate} commanded");
    assert_eq!(first.ask(Op::Verify).value, 0);
    let mut times: Vec<Duration> = Vec::new();
    let mut history = History::new();
    for client in clients.iter_mut().chain([&mut first]) {
        times.append(&mut client.times);
        history.append(&mut client.history);
    }
    times.sort();
    let (half, tail) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{} requests, p50 {half:?}, p99 {tail:?}", times.len());
    let end = first.ask(Op::PowerOff);
    check_history(&history, end.applied);
    if let Some(disk) = disk {
        check_disk(disk, &history, boot_id);
    }
    println!("smoke test passed");
}
