//! An operator's answers say what has happened, and a silent client delays neither an operator nor
//! a primary.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ft_core::Term;
use kemari_arbiter::{Arbiter, FileArbiter, Verdict};
use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::ports::free_address;
use kemari_testbed::process::{Process, tied_to_us};
use kemari_vmm::control::{Command as ControlCommand, ControlSocket, Reply, Request, request};
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};
use rustix::process::Signal;
use serde_json::{Value, json};

struct Bench {
    dir: tempfile::TempDir,
    arbiter: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arbiter = format!("file:{}", dir.path().join("arbiter").display());
        Self { dir, arbiter }
    }

    fn without_arbiter() -> Self {
        Self { arbiter: "none".to_owned(), ..Self::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A guest whose control socket is `primary`.
    fn guest(&self) -> micro::Guest {
        self.guest_with("")
    }

    /// As [`guest`](Self::guest), with an additional word on the guest's command line.
    fn guest_with(&self, word: &str) -> micro::Guest {
        let socket = self.path("primary").display().to_string();
        let flags = ["--control", &socket, "--arbiter", &self.arbiter];
        let mut guest = micro::Guest::boot_through(Command::new(KEMARI), word, 1, &flags);
        guest.ask(Op::Ping);
        guest
    }

    /// A standby for the guest, which listens at `link`; its control socket is `name`.
    fn standby(&self, name: &str, guest: &micro::Guest, link: &str) -> Process {
        let disk = guest.dir.path().join("disk.img");
        let mut command = tied_to_us(Path::new(KEMARI));
        command
            .args(["standby", "--rng", "--serial", "none", "--virtio-console", "none"])
            .args(["--listen", link, "--arbiter", &self.arbiter, "--insecure-plain-tcp"])
            .args(["--disk", &format!("path={},serial=micro", disk.display())])
            .args(["--net", &format!("stream={}", self.path("nobody").display())])
            .arg("--control")
            .arg(self.path(name))
            .stdin(Stdio::null());
        let log = self.path(&format!("{name}.log"));
        let standby = Process::start(name, command, &log).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        standby
    }

    fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }

    fn tell(&self, name: &str, arguments: &[&str]) -> Result<Value, String> {
        control(Path::new(KEMARI), &self.path(name), arguments)
            .map_err(|error| format!("{error:#}"))
    }

    fn state(&self, name: &str) -> String {
        Status::ask(Path::new(KEMARI), &self.path(name)).unwrap().state().to_owned()
    }

    #[track_caller]
    fn wait_for(&self, name: &str, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.state(name) != state {
            assert!(Instant::now() < deadline, "{name} is {}, not {state}", self.state(name));
            std::thread::yield_now();
        }
    }
}

fn request_for(command: ControlCommand) -> Request {
    Request { command, wait_ms: None }
}

#[test]
fn a_silent_client_delays_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let handler = |command| match command {
        ControlCommand::Status => Reply::done("idle"),
        // Longer than a socket's buffer.
        _ => Reply::Now(Ok(json!({ "huge": "x".repeat(1 << 20) }))),
    };
    let _socket = ControlSocket::listen(&path, Arc::new(handler)).unwrap();
    let connect = || UnixStream::connect(&path).unwrap();
    // More clients than may be connected at once: some send nothing, some send half a request, some
    // do not read their answer.
    let clients: Vec<UnixStream> = std::iter::repeat_with(connect).take(150).collect();
    for (index, mut client) in clients.iter().enumerate() {
        let said: &[u8] = match index % 30 {
            0 => b"{\"command\":\"reset-stats\"}\n",
            1..15 => b"{\"comm",
            _ => b"",
        };
        // The connection may be dropped already.
        let _ = client.write_all(said);
    }
    let begun = Instant::now();
    for _ in 0..3 {
        request(&path, &request_for(ControlCommand::Status)).unwrap();
    }
    // Waiting for a single one of the clients would take five seconds.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(clients);
}

/// Fails if the end of the process drops clients that were accepted and not read yet: of two
/// clients that power the machine off at once, one would get a broken pipe.
#[test]
fn a_request_before_the_end_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let handler = |_| Reply::done("powered-off");
    let socket = ControlSocket::listen(&path, Arc::new(handler)).unwrap();
    let mut clients = [(); 3].map(|()| UnixStream::connect(&path).unwrap());
    request(&path, &request_for(ControlCommand::Status)).unwrap();
    let [asks, silent, half] = &mut clients;
    half.write_all(b"{\"comm").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(socket));
        while path.exists() {
            std::thread::yield_now();
        }
        asks.write_all(b"{\"command\":\"power-off\"}\n").unwrap();
        let read = |client: &mut UnixStream| {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(read(asks).contains("powered-off"));
        assert!(read(silent).contains("this process ends"));
        assert!(read(half).contains("this process ends"));
    });
}

/// Fails if silent clients can use all descriptors of a process.
#[test]
fn silent_clients_leave_descriptors_to_others() {
    let bench = Bench::new();
    let socket = bench.path("primary");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 64; exec \"$@\"", "sh", KEMARI]);
    let flags = ["--control", socket.to_str().unwrap(), "--arbiter", &bench.arbiter];
    let mut guest = micro::Guest::boot_through(limited, "", 1, &flags);
    guest.ask(Op::Ping);
    let silent: Vec<_> = (0..70).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    let begun = Instant::now();
    let status = bench.tell("primary", &["status"]).unwrap();
    // Waiting until a silent client times out would take five seconds.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let open = std::fs::read_dir(format!("/proc/{}/fd", status["pid"])).unwrap().count();
    assert!(open < 50, "{open} of 64 descriptors are in use");
    drop(silent);
}

/// Fails if the refusal is reported as a success first, or twice.
#[test]
fn a_seizure_that_is_refused_says_why_once() {
    let bench = Bench::without_arbiter();
    let guest = bench.guest();
    let mut second = Command::new(KEMARI);
    second.args(["run", "--memory", "64", "--serial", "none", "--seize", "--kernel"]);
    second.arg(micro::image()).stdin(Stdio::null());
    second.arg(format!("--disk=path={}", guest.dir.path().join("disk.img").display()));
    second.arg(format!("--arbiter=file:{}", bench.path("arbiter").display()));
    let refused = second.output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(text.matches("another process uses it").count(), 1, "{text}");
    assert_eq!(refused.status.code(), Some(2), "{text}");
}

#[test]
fn what_takes_time_is_answered_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let over = Arc::new(AtomicBool::new(false));
    let seen = over.clone();
    let socket = ControlSocket::listen(
        &path,
        Arc::new(move |command| match command {
            ControlCommand::Status => Reply::done("idle"),
            _ => {
                let seen = seen.clone();
                let look = move || seen.load(Ordering::SeqCst).then(|| Ok(json!({ "done": true })));
                Reply::later(look, || "half of it".to_owned())
            }
        }),
    )
    .unwrap();
    let short = Request { command: ControlCommand::RunAlone, wait_ms: Some(1) };
    let late = request(&path, &short).unwrap_err();
    assert!(late.contains("still in progress: half of it"), "{late}");
    let at_once = Request { command: ControlCommand::RunAlone, wait_ms: Some(0) };
    assert_eq!(request(&path, &at_once).unwrap()["done"], false);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| request(&path, &request_for(ControlCommand::RunAlone)));
        // Other clients are served while this one waits.
        request(&path, &request_for(ControlCommand::Status)).unwrap();
        over.store(true, Ordering::SeqCst);
        assert_eq!(waits.join().unwrap().unwrap()["done"], true);
    });
    // A client that waits when the process ends gets an answer.
    over.store(false, Ordering::SeqCst);
    let mut waits = UnixStream::connect(&path).unwrap();
    waits.write_all(b"{\"command\":\"run-alone\"}\n").unwrap();
    request(&path, &request_for(ControlCommand::Status)).unwrap();
    drop(socket);
    let mut answer = String::new();
    waits.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("this process ends: half of it"), "{answer}");
    assert!(!path.exists());
}

#[test]
fn a_takeover_that_is_refused_is_not_done() {
    let bench = Bench::without_arbiter();
    let mut guest = bench.guest();
    let mut standby = bench.standby("standby", &guest, &bench.unix("link"));
    let refusal = bench.tell("standby", &["take-over"]).unwrap_err();
    assert!(refusal.contains("only a standby with a checkpoint"), "{refusal}");
    assert!(bench.tell("standby", &["discard"]).is_err());

    let protected = bench.tell("primary", &["protect", &bench.unix("link")]).unwrap();
    assert_eq!((&protected["done"], &protected["state"]), (&json!(true), &json!("protected")));
    assert_eq!(bench.state("primary"), "protected");
    // Without an arbiter, a standby does not take over from a connected primary.
    let refusal = bench.tell("standby", &["take-over"]).unwrap_err();
    assert!(refusal.contains("without an arbiter"), "{refusal}");
    assert_eq!(
        (bench.state("primary").as_str(), bench.state("standby").as_str()),
        ("protected", "ready")
    );
    guest.ask(Op::Ping);

    // When the primary is dead, the standby takes over; the answer comes when the guest runs there.
    guest.process.kill().unwrap();
    bench.wait_for("standby", "waiting-for-operator");
    let taken = bench.tell("standby", &["take-over"]).unwrap();
    assert_eq!((&taken["done"], &taken["term"]), (&json!(true), &json!(1)));
    assert_eq!(bench.state("standby"), "alone");
    let off = bench.tell("standby", &["power-off"]).unwrap();
    assert_eq!(off["state"], "powered-off");
    assert!(standby.wait_exit(PATIENCE).unwrap().success());
}

#[test]
fn a_checkpoint_that_waits_for_an_operator_can_be_given_up() {
    let bench = Bench::without_arbiter();
    let mut guest = bench.guest();
    let mut standby = bench.standby("standby", &guest, &bench.unix("link"));
    bench.tell("primary", &["protect", &bench.unix("link")]).unwrap();
    guest.process.kill().unwrap();
    bench.wait_for("standby", "waiting-for-operator");
    assert_eq!(bench.tell("standby", &["discard"]).unwrap()["state"], "waiting");
    assert_eq!(bench.state("standby"), "waiting");
    assert_eq!(bench.tell("standby", &["power-off"]).unwrap()["state"], "stopped");
    assert!(standby.wait_exit(PATIENCE).unwrap().success());
}

#[test]
fn protect_says_what_came_of_it_and_leaves_a_standby_that_hangs() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let nobody = bench.tell("primary", &["protect", &bench.unix("nowhere")]).unwrap_err();
    assert!(nobody.contains("not protected") && nobody.contains("nowhere"), "{nobody}");

    // A standby that accepts connections and sends nothing.
    let hangs = UnixListener::bind(bench.path("hangs")).unwrap();
    let late =
        bench.tell("primary", &["--timeout", "1", "protect", &bench.unix("hangs")]).unwrap_err();
    assert!(late.contains("still in progress") && late.contains("joining"), "{late}");
    let _standby = bench.standby("standby", &guest, &bench.unix("link"));
    std::thread::scope(|scope| {
        // The client that waits for the former request gets an answer.
        let replaced = scope.spawn(|| bench.tell("primary", &["protect", &bench.unix("hangs")]));
        let (mut link, _) = hangs.accept().unwrap();
        let (mut second, _) = hangs.accept().unwrap();
        let mut byte = [0; 1];
        link.read_exact(&mut byte).unwrap();
        second.read_exact(&mut byte).unwrap();
        let protected = bench.tell("primary", &["protect", &bench.unix("link")]).unwrap();
        assert_eq!(protected["state"], "protected");
        let replaced = replaced.join().unwrap().unwrap_err();
        assert!(replaced.contains("another `protect`"), "{replaced}");
    });
    // P2: a standby that holds a checkpoint is not dropped without an operator's decision.
    let refusal = bench.tell("primary", &["protect", &bench.unix("hangs")]).unwrap_err();
    assert!(refusal.contains("run-alone"), "{refusal}");
    assert_eq!(bench.tell("primary", &["run-alone"]).unwrap()["state"], "alone");
    assert_eq!(bench.state("primary"), "alone");
    assert_eq!(bench.tell("primary", &["power-off"]).unwrap()["state"], "powered-off");
    assert!(guest.wait_exit().success());
}

#[test]
fn strangers_do_not_hold_the_standbys_place() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let address = free_address().unwrap();
    let standby = bench.standby("standby", &guest, &address.to_string());
    // Repeated connections without a limit: silent ones, and some that send a few bytes.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let knock = || {
            let mut kept = std::collections::VecDeque::new();
            while !over.load(Ordering::SeqCst) {
                if let Ok(mut link) = TcpStream::connect(address) {
                    let _ = link.write_all(&b"KEM"[..kept.len() % 4]);
                    kept.push_back(link);
                }
                if kept.len() > 40 {
                    kept.pop_front();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        for _ in 0..2 {
            scope.spawn(knock);
        }
        let protected = bench.tell("primary", &["protect", &address.to_string()]);
        let found = bench.state("standby");
        over.store(true, Ordering::SeqCst);
        assert_eq!(protected.unwrap()["state"], "protected");
        assert_eq!(found, "ready");
    });
    guest.ask(Op::Append { payload: b"protected", flush: true });
    // Log lines about strangers are limited in time.
    let said = standby.lines();
    assert!(said.len() < 100, "{} lines:\n{}", said.len(), said.join("\n"));
}

#[test]
fn a_socket_that_was_left_behind_is_listened_on_again() {
    let bench = Bench::new();
    let guest = bench.guest();
    let link = bench.unix("link");
    let mut first = bench.standby("first", &guest, &link);
    first.kill().unwrap();
    assert!(bench.path("link").exists(), "a killed process removes nothing");
    let _second = bench.standby("first", &guest, &link);
    assert_eq!(bench.tell("primary", &["protect", &link]).unwrap()["state"], "protected");
}

/// P2: the machine of a guest without output never asks the fence for an effect, and still learns
/// that it was replaced.
#[test]
fn a_replaced_machine_whose_guest_is_idle_ends_by_itself() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let dir = bench.path("arbiter");
    let other = FileArbiter::open(&dir, "default", "another host".to_owned()).unwrap();
    assert_eq!(other.claim(Term(2), "suspicion").unwrap(), Verdict::Granted);
    let exit = guest.wait_exit();
    assert_eq!(exit.code(), Some(3), "{}", guest.process.lines().join("\n"));
    let said = guest.process.lines().join("\n");
    assert!(said.contains("fenced") && said.contains("another host"), "{said}");
}

/// Fails if a request that only improves the message uses the time of the command itself.
#[test]
fn a_shutdown_is_sent_where_the_question_before_is_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = move || {
        let (_silent, _) = listener.accept().unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let mut said = [0; 1024];
        let count = client.read(&mut said).unwrap();
        client.write_all(b"{\"done\":true}\n").unwrap();
        String::from_utf8_lossy(&said[..count]).into_owned()
    };
    let served = std::thread::spawn(serve);
    let socket = socket.display().to_string();
    let mut ctl = Command::new(KEMARI);
    ctl.args(["ctl", "--control", &socket, "--timeout", "20", "shutdown"]).stdin(Stdio::null());
    let done = ctl.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(served.join().unwrap().contains("shutdown"));
}

/// Fails if a client waits longer than its time-out: to connect, or because each answer restarts
/// the time.
#[test]
fn ctl_gives_up_in_time_on_a_process_that_does_not_answer_and_names_the_time() {
    let bench = Bench::without_arbiter();
    let mut command = tied_to_us(Path::new(KEMARI));
    command.args(["standby", "--serial", "none", "--listen", &bench.unix("link"), "--control"]);
    command.arg(bench.path("standby")).stdin(Stdio::null());
    let mut stopped = Process::start("standby", command, &bench.path("standby.log")).unwrap();
    stopped.wait_line("listening on", PATIENCE).unwrap();
    // The process serves an accepted client first.
    bench.tell("standby", &["status"]).unwrap();
    stopped.signal(Signal::STOP);
    let is_given_up = |name: &str, words: &[&str], expected: &str| {
        let mut command = Command::new(KEMARI);
        command.arg("ctl").arg("--control").arg(bench.path(name)).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut asker = Process::start("ctl", command, &bench.path("ctl.log")).unwrap();
        let ended = asker.wait_exit(PATIENCE).map(|ended| ended.code());
        asker.signal(Signal::KILL);
        // No line contains this text: the wait ends when all output was read.
        asker.wait_line("\0", PATIENCE);
        let said = asker.lines().join("\n");
        assert_eq!(ended, Some(Some(1)), "{words:?}: {said}");
        assert!(said.contains(expected) && !said.contains("os error"), "{words:?}: {said}");
    };
    is_given_up("standby", &["--timeout", "0", "status"], "within 5 s");
    is_given_up("standby", &["--timeout", "1", "status"], "within 6 s");
    is_given_up("standby", &["--timeout", "1", "shutdown"], "within 6 s");
    stopped.signal(Signal::CONT);

    // The queue is full after one client: the next one cannot connect.
    let full = UnixListener::bind(bench.path("full")).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(bench.path("full")).unwrap();
    is_given_up("full", &["--timeout", "0", "status"], "within 5 s");
}

/// The guest's operating system is notified and shuts itself down; a guest that ignores the
/// notification is reported.
#[test]
fn shutdown_presses_the_power_button() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let deaf = bench.tell("primary", &["--timeout", "1", "shutdown"]).unwrap_err();
    assert!(deaf.contains("ignores its power button"), "{deaf}");
    assert!(deaf.contains("power-off"), "{deaf}");
    guest.ask(Op::Ping);

    // The result is reported at once, not after the time-out.
    let waits = |word: &str, bench: &Bench| {
        let mut command = Command::new(KEMARI);
        command.arg("ctl").arg("--control").arg(bench.path("primary")).arg("shutdown");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let shutdown = Process::start("shutdown", command, &bench.path("shutdown.log")).unwrap();
        let said = || shutdown.lines().join("\n");
        shutdown.wait_line(word, PATIENCE).unwrap_or_else(|| panic!("{}", said()));
        (said(), shutdown)
    };
    let (said, mut shutdown) = waits("ignores its power button", &bench);
    assert!(said.contains("waiting at most 60 s"), "{said}");
    assert!(said.contains("`kemari ctl power-off`"), "{said}");
    assert!(shutdown.exited().is_none(), "{said}");
    bench.tell("primary", &["power-off"]).unwrap();
    assert!(shutdown.wait_exit(PATIENCE).unwrap().success());

    let bench = Bench::new();
    // This guest reads its button only after an interrupt.
    let mut guest = bench.guest_with("button=power-off");
    let off = bench.tell("primary", &["shutdown"]).unwrap();
    assert_eq!((&off["done"], &off["state"]), (&json!(true), &json!("powered-off")));
    assert!(guest.wait_exit().success());
    assert!(guest.process.lines().join("\n").contains("powered off"));

    let bench = Bench::new();
    let mut guest = bench.guest_with("button=power-off");
    let (said, mut shutdown) = waits("waiting at most 60 s", &bench);
    assert!(shutdown.wait_exit(PATIENCE).unwrap().success(), "{said}");
    let said = shutdown.lines().join("\n");
    assert!(guest.wait_exit().success() && !said.contains("ignores its power button"), "{said}");
}
