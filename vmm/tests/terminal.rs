//! A real terminal with real sessions and process groups. A process in the background does not
//! touch the terminal, a takeover needs no terminal (P7), and after any end of a process the
//! terminal is as before.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kemari_testbed::pair::status::control;
use kemari_testbed::process::{Process, tied_to_us};
use kemari_vmm::control::{ControlSocket, Reply};
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};
use rustix::process::Signal;

/// A terminal, and a thread at its other end that reads all output.
struct Terminal {
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open() -> Self {
        let (mut master, mut slave) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: both pointers are to integers that outlive the call; the others may be null.
        let result = unsafe {
            libc::openpty(&raw mut master, &raw mut slave, none, std::ptr::null(), std::ptr::null())
        };
        assert_eq!(result, 0);
        // SAFETY: the system has just given us both descriptors.
        let terminal = unsafe {
            let shown = Arc::default();
            Self { master: File::from_raw_fd(master), slave: OwnedFd::from_raw_fd(slave), shown }
        };
        let mut reader = terminal.master.try_clone().unwrap();
        let shown = terminal.shown.clone();
        // This thread ends with the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shown.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        terminal
    }

    fn is_raw(&self) -> bool {
        // SAFETY: a zeroed `termios` is valid, and it outlives the call.
        unsafe {
            let mut attributes: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &raw mut attributes), 0);
            attributes.c_lflag & libc::ICANON == 0
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn type_in(&self, keys: &[u8]) {
        (&self.master).write_all(keys).unwrap();
    }

    /// Makes `command` lead a new session on this terminal. Its standard error goes elsewhere.
    fn leads(&self, command: &mut Command) {
        let copy = || Stdio::from(self.slave.try_clone().unwrap());
        command.stdin(copy()).stdout(copy());
        // SAFETY: signal, setsid and ioctl are async-signal-safe system calls on the child itself;
        // nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // The test runner may ignore these signals (`nohup`), and kemari would then ignore
                // them, too.
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                // `Process` has made the child the leader of a group, and such a leader cannot
                // begin a session: leave the group first.
                libc::setpgid(0, libc::getpgid(libc::getppid()));
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }
}

fn wait_for(what: &str, log: impl Fn() -> String, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A guest whose serial line is on a terminal.
struct Bench {
    terminal: Terminal,
    guest: micro::Guest,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(flags: &[&str]) -> Self {
        let (terminal, dir) = (Terminal::open(), tempfile::tempdir().unwrap());
        let arbiter = format!("file:{}", dir.path().join("arbiter").display());
        let flags = [&["--arbiter", &arbiter, "--serial", "stdio"], flags].concat();
        let mut guest = micro::Guest::boot_as(1, &flags, |command| terminal.leads(command));
        guest.ask(Op::Ping);
        assert!(terminal.is_raw(), "{:?}", guest.process.lines());
        Self { terminal, guest, dir }
    }

    /// Waits for the guest's process to end with `code`; the terminal must be as before. Returns
    /// the log.
    #[track_caller]
    fn ends(mut self, code: i32) -> Vec<String> {
        let ended = self.guest.wait_exit();
        let lines = self.guest.process.lines();
        assert_eq!(ended.code(), Some(code), "{lines:?}");
        assert!(!self.terminal.is_raw(), "{lines:?}");
        lines
    }
}

#[test]
fn the_guest_powers_off() {
    let mut bench = Bench::new(&[]);
    bench.guest.tell(Op::PowerOff);
    bench.ends(0);
}

#[test]
fn a_signal_or_a_key_asks_for_the_end() {
    for (signal, code) in
        [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129), (Signal::QUIT, 131)]
    {
        let mut bench = Bench::new(&[]);
        bench.guest.process.signal(signal);
        bench.ends(code);
    }
    let bench = Bench::new(&[]);
    bench.terminal.type_in(b"\x01x");
    bench.ends(143);
}

/// The orderly end waits for an arbiter that does not answer; a second signal does not.
#[test]
fn a_second_signal_ends_it_at_once() {
    let mut bench = Bench::new(&[]);
    let (there, away) = (bench.dir.path().join("arbiter"), bench.dir.path().join("away"));
    std::fs::rename(there, away).unwrap();
    bench.guest.tell(Op::Append { payload: b"waits for the arbiter", flush: true });
    bench.guest.process.wait_line("arbiter", PATIENCE);
    let begun = Instant::now();
    while bench.guest.process.exited().is_none() {
        assert!(begun.elapsed() < PATIENCE);
        bench.guest.process.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    let lines = bench.ends(143);
    assert!(lines.iter().any(|line| line.contains("again: ending at once")), "{lines:?}");
}

/// P2: another machine has a newer term.
#[test]
fn it_is_fenced() {
    let mut bench = Bench::new(&[]);
    let mut command = Command::new(KEMARI);
    command.args(["run", "--serial", "none", "--memory", "64", "--seize", "--kernel"]);
    command.arg(micro::image()).stdin(Stdio::null());
    command.arg("--arbiter").arg(format!("file:{}", bench.dir.path().join("arbiter").display()));
    let log = bench.dir.path().join("log");
    let _other = Process::start("other", command, &log).unwrap();
    // The next effect meets the newer term.
    let begun = Instant::now();
    while bench.guest.process.exited().is_none() && begun.elapsed() < PATIENCE {
        bench.guest.try_ask(Op::Ping, Duration::from_millis(100));
    }
    bench.ends(3);
}

/// A violation of the filters, or what looks like one: a SIGSYS from outside takes the same path.
#[test]
fn a_filter_ends_it() {
    let mut bench = Bench::new(&[]);
    bench.guest.process.signal(Signal::SYS);
    bench.ends(159);
}

/// A start that fails after the terminal may have become raw.
#[test]
fn the_start_fails() {
    let (terminal, dir) = (Terminal::open(), tempfile::tempdir().unwrap());
    let mut command = Command::new(KEMARI);
    command.args(["run", "--memory", "64", "--net", "tap=lo", "--kernel"]).arg(micro::image());
    terminal.leads(&mut command);
    let mut process = Process::start("kemari", command, &dir.path().join("log")).unwrap();
    assert_eq!(process.wait_exit(PATIENCE).unwrap().code(), Some(2));
    assert!(!terminal.is_raw());
}

/// If log lines and the guest's output share the terminal, a hint says how to separate them;
/// otherwise there is no hint.
#[test]
fn a_log_that_shares_the_guests_terminal_says_how_to_part_them() {
    const HINT: &str = "`2>>FILE`";
    let (terminal, dir) = (Terminal::open(), tempfile::tempdir().unwrap());
    let log = dir.path().join("kemari.log");
    for parted in [false, true] {
        let mut command = tied_to_us(Path::new(KEMARI));
        command.args(["run", "--memory", "64", "--kernel"]).arg(micro::image());
        terminal.leads(&mut command);
        command.stderr(match parted {
            true => Stdio::from(File::options().create(true).append(true).open(&log).unwrap()),
            false => Stdio::from(terminal.slave.try_clone().unwrap()),
        });
        terminal.shown.lock().unwrap().clear();
        let guest = RefCell::new(command.spawn().unwrap());
        wait_for("raw", || terminal.shown(), || terminal.is_raw());
        let lines =
            || if parted { std::fs::read_to_string(&log).unwrap() } else { terminal.shown() };
        if !parted {
            wait_for("the hint", lines, || lines().contains(HINT));
        }
        terminal.type_in(b"\x01x");
        // This wait has a bound as well: a lost key ends nothing.
        let ended = RefCell::new(None);
        wait_for("the end", lines, || {
            *ended.borrow_mut() = guest.borrow_mut().try_wait().unwrap();
            ended.borrow().is_some()
        });
        let ended = ended.take().unwrap();
        assert_eq!(ended.code(), Some(143), "{}", lines());
        assert_eq!(lines().contains(HINT), !parted, "{}", lines());
        assert!(!terminal.shown().contains(HINT) || !parted, "{}", terminal.shown());
    }
    assert!(std::fs::read_to_string(&log).unwrap().contains("ended by signal"));
}

/// On a terminal, a person gets one line for each field; a program gets one line in all.
#[test]
fn an_answer_has_a_line_for_each_field_on_a_terminal_only() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let status = serde_json::json!({ "state": "alone", "pause_us": { "p50": 1, "p99": 2 } });
    let answer = status.clone();
    let _server =
        ControlSocket::listen(&socket, Arc::new(move |_| Reply::Now(Ok(answer.clone())))).unwrap();
    let ask = |flags: &[&str]| {
        let mut command = Command::new(KEMARI);
        command.arg("ctl").arg("--control").arg(&socket).args(flags).stdin(Stdio::null());
        command
    };
    let on_a_terminal = |flags: &[&str]| {
        let terminal = Terminal::open();
        let done = ask(flags).stdout(terminal.slave.try_clone().unwrap()).status().unwrap();
        assert!(done.success());
        wait_for("the answer", || terminal.shown(), || terminal.shown().ends_with("}\r\n"));
        terminal.shown()
    };
    let lines = on_a_terminal(&["status"]);
    assert!(lines.contains("\r\n  \"state\": \"alone\""), "{lines}");
    assert_eq!(lines.lines().count(), 4, "{lines}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&lines).unwrap(), status);
    let line = format!("{status}\n");
    assert_eq!(on_a_terminal(&["--json", "status"]), line.replace('\n', "\r\n"));
    assert_eq!(on_a_terminal(&["status", "--json"]), line.replace('\n', "\r\n"));
    assert_eq!(String::from_utf8(ask(&["status"]).output().unwrap().stdout).unwrap(), line);
}

/// A standby in the background of a shell's session.
struct Background {
    shell: Process,
    pid: PathBuf,
    control: PathBuf,
}

impl Background {
    /// Starts the shell, which waits for a key and then brings the standby to the foreground.
    fn start(terminal: &Terminal, guest: &micro::Guest, dir: &Path) -> Self {
        let (pid, control) = (dir.join("pid"), dir.join("standby"));
        let at = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new("sh");
        // With job control, as at a prompt. The shell must not end when its job does.
        command.args(["-mc", "\"$@\" & read key; fg; echo ended: $? >&2", "sh", KEMARI]);
        command.args(["standby", "--rng", "--virtio-console=none", "--serial=stdio"]);
        command.arg(format!("--listen=unix:{}", at("link")));
        command.arg(format!("--arbiter=file:{}", at("arbiter")));
        command.arg(format!("--control={}", control.display()));
        command.arg(format!("--pid-file={}", pid.display()));
        let disk = guest.dir.path().join("disk.img");
        command.arg(format!("--disk=path={},serial=micro", disk.display()));
        command.arg(format!("--net=stream={}", at("nobody")));
        terminal.leads(&mut command);
        let shell = Process::start("shell", command, &dir.join("log")).unwrap();
        shell.wait_line("listening on", PATIENCE).unwrap();
        Self { shell, pid, control }
    }

    fn log(&self) -> String {
        self.shell.lines().join("\n")
    }

    fn state(&self) -> char {
        let pid = std::fs::read_to_string(&self.pid).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
        stat.rsplit(')').next().unwrap().trim().chars().next().unwrap()
    }
}

/// P7: the standby wins the term and the guest continues, whichever process has the terminal.
#[test]
fn p7_a_standby_in_the_background_takes_over() {
    let (terminal, dir) = (Terminal::open(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (arbiter, primary) = (format!("file:{}", at("arbiter")), at("primary"));
    let mut guest = micro::Guest::boot_with(
        1,
        &["--control", &primary, "--arbiter", &arbiter, "--virtio-console", "none"],
    );
    guest.ask(Op::Ping);
    let standby = Background::start(&terminal, &guest, dir.path());
    let link = format!("unix:{}", at("link"));
    control(Path::new(KEMARI), Path::new(&primary), &["protect", &link]).unwrap();
    let status = |socket: &Path| {
        control(Path::new(KEMARI), socket, &["status"]).map(|status| format!("{status:?}"))
    };
    wait_for(
        "protected",
        || guest.process.lines().join("\n"),
        || status(Path::new(&primary)).is_ok_and(|text| text.to_lowercase().contains("protected")),
    );
    guest.process.kill();
    standby.shell.wait_line("took over in term", PATIENCE).unwrap_or_else(|| {
        panic!("state {}: {}", standby.state(), standby.log());
    });
    assert!(!terminal.is_raw(), "it is the shell's");
    // The shell receives keys as well: this one makes it bring its job to the foreground.
    terminal.type_in(b"\n");
    wait_for("raw", || standby.log(), || terminal.is_raw());
    assert_ne!(standby.state(), 'T');
    assert!(status(&standby.control).is_ok());
    // From now on the guest gets the keys, except for these, which ask for the end.
    let begun = Instant::now();
    while standby.shell.wait_line("ended: ", Duration::from_millis(500)).is_none() {
        assert!(begun.elapsed() < PATIENCE, "{}", standby.log());
        terminal.type_in(b"\x01x");
    }
    assert!(standby.log().contains("ended: 143"), "{}", standby.log());
    assert!(!terminal.is_raw());
}

/// A person types into a terminal that belongs to the shell: the guest's process neither stops nor
/// spins.
#[test]
fn a_guest_in_the_background_leaves_the_keys_to_the_shell() {
    let (terminal, dir) = (Terminal::open(), tempfile::tempdir().unwrap());
    let control_path = dir.path().join("control");
    let mut command = Command::new("sh");
    command.args([
        "-mc",
        "\"$@\" & sleep 1000; true",
        "sh",
        KEMARI,
        "run",
        "--memory",
        "64",
        "--kernel",
    ]);
    command.arg(micro::image()).arg("--control").arg(&control_path);
    let pid = dir.path().join("pid");
    command.arg("--pid-file").arg(&pid);
    terminal.leads(&mut command);
    let shell = Process::start("shell", command, &dir.path().join("log")).unwrap();
    let answers = || control(Path::new(KEMARI), &control_path, &["status"]).is_ok();
    wait_for("runs", || shell.lines().join("\n"), answers);
    terminal.type_in(b"not for the guest\n");
    let pid = std::fs::read_to_string(&pid).unwrap().trim().to_owned();
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        assert_ne!(fields[0], "T", "it is stopped");
        fields[12].parse::<u64>().unwrap()
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(2));
    // Time in the kernel: a tenth of the time would be 20 ticks.
    let ticks = used() - before;
    assert!(ticks < 20, "{ticks} ticks in the kernel: it spins");
    assert!(!terminal.is_raw() && answers());
    let process: i32 = pid.parse().unwrap();
    let process = rustix::process::Pid::from_raw(process).unwrap();
    rustix::process::kill_process(process, Signal::TERM).unwrap();
}
