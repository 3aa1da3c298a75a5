//! P2, with real processes. A primary is stopped (SIGSTOP) while it drains output that a slow
//! receiver has delayed, another machine wins the next term, and the primary continues. It may send
//! the one frame that was permitted, and no more: docs/arbiter.md, README ("late").
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ft_core::Term;
use kemari_arbiter::{Arbiter, FileArbiter, Verdict};
use kemari_testbed::packet::{Host, Incoming};
use kemari_testbed::process::Process;
use kemari_workload::{GUEST_PORT, MAX_REQUEST_LEN, Op, Request};
use rustix::process::Signal;

const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const OWN: Host = Host { mac: [0x52, 0x55, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 0, 2, 1) };
const OWN_PORT: u16 = 40_000;
/// The answers to this many requests fill a socket several times, although the guest does not
/// answer all requests.
const ASKED: u64 = 60_000;
/// The longest frame that the guest sends here, with its length prefix.
const FRAME: usize = 4 + 1514;
const STOPS: usize = 3;

fn send(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

fn receive(peer: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    peer.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

/// Sends ARP requests until the guest answers.
fn find_guest(peer: &mut UnixStream) -> Host {
    peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut asker = peer.try_clone().unwrap();
    let found = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !found.load(Ordering::SeqCst) {
                send(&mut asker, &OWN.arp_request(GUEST_IP));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        loop {
            if let Some(Incoming::ArpReply(guest)) = OWN.parse(&receive(peer)) {
                found.store(true, Ordering::SeqCst);
                return guest;
            }
        }
    })
}

/// Number of bytes that wait to be read at this end.
fn ready_bytes(peer: &UnixStream) -> usize {
    count(peer, libc::FIONREAD)
}

fn unread_bytes(peer: &UnixStream) -> usize {
    count(peer, libc::TIOCOUTQ)
}

fn count(peer: &UnixStream, what: libc::c_ulong) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the argument points to an `int` that lives through the call.
    assert_eq!(unsafe { libc::ioctl(peer.as_raw_fd(), what, &raw mut bytes) }, 0);
    bytes as usize
}

/// Whether every thread of a process is stopped.
fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| task.unwrap().path().join("stat"))
        .all(|stat| std::fs::read_to_string(stat).is_ok_and(|stat| stat.contains(") T ")))
}

/// Reads at most `most` of the waiting bytes; returns their number.
fn read_some(peer: &mut UnixStream, most: usize) -> usize {
    let mut bytes = vec![0; most];
    peer.read(&mut bytes).unwrap_or(0)
}

/// Makes room in the socket, waits until the first delayed frame arrives, and stops the process.
fn stop_while_it_sends(primary: &mut Process, peer: &mut UnixStream, in_socket: usize) {
    let few = in_socket / 8;
    while ready_bytes(peer) > few {
        read_some(peer, few);
    }
    // The kernel wakes a socket's writer when most of its buffer is free.
    let left = ready_bytes(peer);
    let until = Instant::now() + Duration::from_secs(60);
    while ready_bytes(peer) <= left {
        assert!(Instant::now() < until, "nothing waits any more: this test shows nothing");
    }
    primary.signal(Signal::STOP);
    while !is_stopped(primary.pid()) {
        std::thread::yield_now();
    }
}

#[test]
fn p2_a_stopped_and_replaced_primary_sends_one_frame_late() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("net")).unwrap();
    let terms = dir.path().join("terms");
    std::fs::create_dir(&terms).unwrap();
    let mut command = Command::new(micro::KEMARI);
    command
        .args(["run", "--name", "late", "--memory", "64", "--kernel"])
        .arg(micro::image())
        .args(["--cmdline", "virtio_mmio.device=0x1000@0xd0000000:5"])
        .arg("--net")
        .arg(format!("stream={}", dir.path().join("net").display()))
        .args(["--serial", "none", "--arbiter"])
        .arg(format!("file:{}", terms.display()))
        .stdin(Stdio::null());
    let mut primary = Process::start("primary", command, &dir.path().join("log")).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let guest = find_guest(&mut peer);
    // Thousands of answers that are not read.
    let mut message = [0; MAX_REQUEST_LEN];
    for seq in 1..=ASKED {
        let len = Request { client: 1, seq, op: Op::Ping }.encode(&mut message).unwrap();
        send(&mut peer, &OWN.udp(guest, OWN_PORT, GUEST_PORT, &message[..len]));
    }
    while unread_bytes(&peer) > 0 {
        std::thread::yield_now();
    }
    let in_socket = ready_bytes(&peer);
    peer.set_nonblocking(true).unwrap();
    // Stop the primary several times while it sends; it must continue from any point.
    for _ in 1..STOPS {
        stop_while_it_sends(&mut primary, &mut peer, in_socket);
        primary.signal(Signal::CONT);
    }
    stop_while_it_sends(&mut primary, &mut peer, in_socket);
    let before = ready_bytes(&peer);
    // From now on, the winner of the next term is the only active machine.
    let other = FileArbiter::open(&terms, "late", "other".to_owned()).unwrap();
    assert_eq!(other.claim(Term(2), "test").unwrap(), Verdict::Granted);
    // Now there is room for all delayed frames.
    let mut seen = 0;
    while ready_bytes(&peer) > 0 {
        seen += read_some(&mut peer, 1 << 20);
    }
    assert_eq!(seen, before);
    primary.signal(Signal::CONT);
    let mut late = 0;
    let until = Instant::now() + Duration::from_secs(60);
    while primary.wait_exit(Duration::from_millis(1)).is_none() || ready_bytes(&peer) > 0 {
        late += read_some(&mut peer, 1 << 20);
        assert!(Instant::now() < until, "it does not end:\n{}", primary.lines().join("\n"));
    }
    assert!(late <= FRAME, "{late} bytes have left late, {before} were in the socket");
    let code = primary.wait_exit(Duration::ZERO).and_then(|status| status.code());
    assert_eq!(code, Some(3), "{}", primary.lines().join("\n"));
}
