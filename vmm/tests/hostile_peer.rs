//! A real standby and a real primary with hostile peers, which send garbage, torn streams, huge
//! lengths, and an old session. The state of both sides does not change, and their memory use is
//! bounded.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::ports::free_address;
use kemari_testbed::process::{Process, tied_to_us};
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};

/// A field of `/proc/PID/status`, in KiB.
fn memory(process: &Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// All bytes that a primary has sent to its standby.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<u8>>>);

/// Connects each peer with `to`, and records the bytes that the peer sends.
fn listen_in(to: SocketAddr) -> (SocketAddr, Recording) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, recording) = (listener.local_addr().unwrap(), Recording::default());
    let kept = recording.clone();
    thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let far = TcpStream::connect(to).unwrap();
            kept.0.lock().unwrap().clear();
            let kept = kept.clone();
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || pump(near, far, |bytes| kept.0.lock().unwrap().extend(bytes)));
            thread::spawn(move || pump(back.0, back.1, |_| {}));
        }
    });
    (address, recording)
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        hear(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Sends bytes to the listener, closes the writing direction, and reads all answers.
fn say(to: SocketAddr, bytes: &[u8]) {
    let mut link = TcpStream::connect(to).unwrap();
    link.set_read_timeout(Some(PATIENCE)).unwrap();
    // The listener may have closed before it has read all bytes.
    let _ = link.write_all(bytes);
    let _ = link.shutdown(Shutdown::Write);
    let _ = link.read_to_end(&mut Vec::new());
}

struct Pair {
    guest: micro::Guest,
    standby: Process,
    address: SocketAddr,
    primary_socket: PathBuf,
    standby_socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (arbiter, address) = (format!("file:{}", path("arbiter")), free_address().unwrap());
        let common = ["--arbiter", &arbiter, "--insecure-plain-tcp"];
        let (primary_socket, standby_socket) = (path("primary"), path("standby"));
        let flags = [&common[..], &["--control", &primary_socket]].concat();
        let mut guest = micro::Guest::boot_with(1, &flags);
        guest.ask(Op::Ping);
        let mut command = tied_to_us(Path::new(KEMARI));
        let disk = guest.dir.path().join("disk.img");
        command
            .args(["standby", "--listen", &address.to_string(), "--rng"])
            .args(["--disk", &format!("path={},serial=micro", disk.display())])
            .args(["--net", &format!("stream={}", path("nobody"))])
            .args(["--serial", "none", "--virtio-console", "none"])
            .args(["--control", &standby_socket])
            .args(common)
            .stdin(Stdio::null());
        let standby = Process::start("standby", command, &dir.path().join("standby.log")).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        let [primary_socket, standby_socket] = [primary_socket, standby_socket].map(PathBuf::from);
        Self { guest, standby, address, primary_socket, standby_socket, _dir: dir }
    }

    fn order(&self, arguments: &[&str]) {
        control(Path::new(KEMARI), &self.primary_socket, arguments).unwrap();
    }

    fn wait_for(&mut self, socket: &Path, state: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let found = Status::ask(Path::new(KEMARI), socket).unwrap();
            if found.state() == state {
                return;
            }
            let said = self.standby.lines().join("\n");
            assert!(std::time::Instant::now() < deadline, "{state}: {:?}\n{said}", found.json());
            thread::yield_now();
        }
    }

    fn protect(&mut self, through: SocketAddr) {
        self.order(&["protect", &through.to_string()]);
        let socket = self.primary_socket.clone();
        self.wait_for(&socket, "protected");
        self.guest.ask(Op::Append { payload: b"protected", flush: true });
    }

    fn give_up(&mut self) {
        self.order(&["run-alone"]);
        let (primary, standby) = (self.primary_socket.clone(), self.standby_socket.clone());
        self.wait_for(&primary, "alone");
        self.wait_for(&standby, "waiting");
    }
}

#[test]
fn a_standby_that_is_lied_to_waits_on_and_holds_nothing() {
    let mut pair = Pair::start();
    // The kernel is sent in the first session only: a replayed session with a kernel would be
    // refused for that reason alone.
    pair.protect(pair.address);
    pair.give_up();
    let (proxy, recording) = listen_in(pair.address);
    pair.protect(proxy);
    pair.give_up();
    let session = recording.0.lock().unwrap().clone();
    assert!(session.len() > 1 << 16, "a session has its memory");
    let before = memory(&pair.standby, "VmHWM");
    let socket = pair.standby_socket.clone();
    let address = pair.address;

    // An old session as a whole: it is from this machine and this term, byte for byte.
    say(address, &session);
    let heard = pair.standby.wait_line("End: expected session", PATIENCE);
    assert!(heard.is_some(), "{}", pair.standby.lines().join("\n"));
    pair.wait_for(&socket, "waiting");
    // The session, cut off at several places.
    for share in 1..8 {
        say(address, &session[..session.len() * share / 8]);
    }
    // A length larger than any memory, in the first frame's header and in a later one's.
    for at in [8, 12] {
        let mut huge = session[..4096].to_vec();
        huge[at..at + 4].fill(0xff);
        say(address, &huge);
    }
    // Bytes that are not of the protocol.
    let noise: Vec<u8> =
        (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    say(address, &noise);
    say(address, b"GET / HTTP/1.1\r\n\r\n");
    // Many peers that send nothing.
    let silent: Vec<TcpStream> = (0..64).map_while(|_| TcpStream::connect(address).ok()).collect();
    pair.wait_for(&socket, "waiting");
    drop(silent);

    let said = pair.standby.lines().join("\n");
    assert!(!said.contains("took over") && !said.contains("panicked"), "{said}");
    let after = memory(&pair.standby, "VmHWM");
    // The guest has 64 MiB. An active session may hold as much again, and releases it with its
    // link.
    assert!(after < before + (80 << 10), "{before} KiB became {after} KiB\n{said}");
    assert_eq!(pair.standby.exited(), None);
    // The standby still serves its own primary.
    pair.protect(address);
}

#[test]
fn a_primary_that_is_lied_to_goes_on_and_releases_what_it_may() {
    let mut pair = Pair::start();
    // Record what a standby sends in a real session.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (liar, to) = (listener.local_addr().unwrap(), pair.address);
    let answers = Recording::default();
    let kept = answers.clone();
    thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(to).unwrap();
        let forth = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || pump(forth.0, forth.1, |_| {}));
        pump(far, near, |bytes| kept.0.lock().unwrap().extend(bytes));
        // From now on each peer gets the recorded bytes, or worse.
        let said = kept.0.lock().unwrap().clone();
        for lie in [said.clone(), said[..said.len() / 2].to_vec(), vec![0xff; 1 << 20]] {
            let (mut link, _) = listener.accept().unwrap();
            let _ = link.write_all(&lie);
            let _ = link.shutdown(Shutdown::Write);
            let _ = link.read_to_end(&mut Vec::new());
        }
    });
    pair.protect(liar);
    pair.give_up();
    assert!(!answers.0.lock().unwrap().is_empty());
    let before = memory(&pair.guest.process, "VmHWM");
    for _ in 0..3 {
        pair.order(&["--timeout", "0", "protect", &liar.to_string()]);
        let socket = pair.primary_socket.clone();
        pair.wait_for(&socket, "alone");
        pair.guest.ask(Op::Append { payload: b"alone", flush: true });
        pair.order(&["run-alone"]);
    }
    let said = pair.guest.process.lines().join("\n");
    assert_eq!(said.matches("protected: the standby holds").count(), 1, "{said}");
    let after = memory(&pair.guest.process, "VmHWM");
    assert!(after < before + (16 << 10), "{before} KiB became {after} KiB\n{said}");
    pair.protect(to);
}
