//! P9: a console on standard input and output whose reader has stopped: on a terminal, a pipe, and
//! a socket. The guest's output waits, keys still reach the guest, and the guest can still end. The
//! console is in another process, because a process has only one standard input and output.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{SLOT, guest_memory};
use io_gate::Port;
use io_gate::host::{Request, Term, new_gate};
use io_gate_host::adapter::Serial;
use io_gate_host::backend::console::Console;
use io_gate_host::{Backend, Fence, GateHost, GateOptions, Permission, RegisterSlot};

const ROLE: &str = "STOPPED_READER_ROLE";
/// Number of bytes of output that nobody reads. It is more than the buffer between the console and
/// its reader holds: 64 KiB in a pipe, about the same in a terminal, and some hundred single bytes
/// in a socket. The console keeps all bytes beyond that.
const PIPE_BYTES: usize = 80_000;
const SOCKET_BYTES: usize = 20_000;
/// Bytes that the test harness prints before the test: "running 1 test" between line ends.
const HARNESS: usize = 16;
/// Longer than the end of a machine takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Grants this many more times, and then never again. `usize::MAX` has no end.
struct Quota(AtomicUsize);

impl Fence for Quota {
    fn ask(&self) -> Permission {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            0 => None,
            usize::MAX => Some(usize::MAX),
            left => Some(left - 1),
        });
        if left.is_ok() { Permission::Granted } else { Permission::Lost }
    }
}

/// Not a test itself: the process whose console nobody reads. It reports its progress on standard
/// error.
#[test]
#[ignore = "the other process of the tests in this file"]
fn child() {
    let Ok(bytes) = std::env::var(ROLE) else { return };
    let bytes: usize = bytes.parse().unwrap();
    let (ledger, mut authority) = new_gate();
    let fence = Arc::new(Quota(AtomicUsize::new(usize::MAX)));
    let gate =
        GateHost::new(ledger, guest_memory(), fence.clone(), GateOptions::default()).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    gate.attach(SLOT, Port(0), Backend::Console(Console::stdio())).unwrap();
    let mut slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
    for n in 0..bytes {
        let _ = slot.write(0, &[b'a' + (n % 26) as u8]);
    }
    while !gate.lanes_idle() {
        std::thread::yield_now();
    }
    tell(&format!("printed {}", in_flight(&gate)));
    loop {
        wait_for_any(&[gate.inputs_fd(), gate.fenced_event().as_raw_fd()]);
        for (_, port) in gate.ready_inputs() {
            let _ = slot.intake(port);
        }
        let mut byte = [0];
        while {
            let _ = slot.read(5, &mut byte);
            byte[0] & 1 != 0
        } {
            let _ = slot.read(0, &mut byte);
            match byte[0] {
                // P2: the right is valid for one more message.
                b'f' => {
                    fence.0.store(1, Ordering::SeqCst);
                    tell("last");
                }
                b'q' => {
                    gate.drain();
                    tell("drained");
                    std::process::exit(7);
                }
                key => tell(&format!("key {}", char::from(key))),
            }
        }
        if gate.is_fenced_off() && gate.lanes_idle() {
            tell("fenced");
            std::process::exit(8);
        }
    }
}

fn wait_for_any(fds: &[RawFd]) {
    let poll = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut polls: Vec<libc::pollfd> = fds.iter().map(poll).collect();
    // SAFETY: valid `pollfd`s, as many as the count says.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) };
}

fn tell(text: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{text}").unwrap();
}

fn in_flight(gate: &GateHost) -> usize {
    let records = gate.seal().in_flight;
    let lengths = records.iter().map(|record| match &record.request {
        Request::Effect(op) => op.payload().map_or(0, |payload| payload.len()),
        Request::Input(_) | Request::Own(_) => 0,
    });
    lengths.sum()
}

/// The process, its keyboard, and its screen, which nobody reads.
struct Stopped {
    bytes: usize,
    child: Child,
    keys: File,
    screen: File,
}

impl Stopped {
    fn start(bytes: usize, input: OwnedFd, output: OwnedFd, keys: File, screen: File) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child", "--nocapture", "--quiet"])
            .env(ROLE, bytes.to_string())
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { bytes, child, keys, screen }
    }

    /// Returns the next line that the process reports. Fails if none comes within [`PATIENCE`].
    #[track_caller]
    fn output(&mut self) -> String {
        let mut line = Vec::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        let until = Instant::now() + PATIENCE;
        while line.last() != Some(&b'\n') {
            let left = until.saturating_duration_since(Instant::now());
            let mut poll =
                libc::pollfd { fd: stderr.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid `pollfd`, and the count says one.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            let so_far = String::from_utf8_lossy(&line).into_owned();
            if ready != 1 {
                let _ = self.child.kill();
                panic!("the process does not go on; it has told `{so_far}`");
            }
            let mut byte = [0];
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "it has ended: {so_far}");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    fn in_flight(&mut self) -> usize {
        let output = self.output();
        output.strip_prefix("printed ").unwrap_or_else(|| panic!("{output}")).parse().unwrap()
    }

    /// Number of unread bytes on the screen.
    fn shown(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the argument points to an `int` that lives through the call.
        let result =
            unsafe { libc::ioctl(self.screen.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        assert_eq!(result, 0);
        bytes as usize
    }
}

type Start = fn() -> Stopped;

fn pty() -> Stopped {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: both pointers are to integers that live through the call; the others may be null; the
    // descriptors are new.
    let (master, slave) = unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                null,
                std::ptr::null(),
                std::ptr::null()
            ),
            0
        );
        let mut raw: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(slave, &raw mut raw), 0);
        libc::cfmakeraw(&raw mut raw);
        assert_eq!(libc::tcsetattr(slave, libc::TCSANOW, &raw const raw), 0);
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    };
    let input = slave.try_clone().unwrap();
    Stopped::start(PIPE_BYTES, input, slave, master.try_clone().unwrap(), master)
}

fn pipe() -> Stopped {
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let keys = File::from(OwnedFd::from(keys));
    let screen = File::from(OwnedFd::from(screen));
    Stopped::start(PIPE_BYTES, input.into(), output.into(), keys, screen)
}

fn socket() -> Stopped {
    let (input, keys) = UnixStream::pair().unwrap();
    let (screen, output) = UnixStream::pair().unwrap();
    let keys = File::from(OwnedFd::from(keys));
    let screen = File::from(OwnedFd::from(screen));
    Stopped::start(SOCKET_BYTES, input.into(), output.into(), keys, screen)
}

/// P9: keys reach the guest, and the guest can end, although nothing reads the screen.
#[test]
fn keys_are_taken_and_the_end_comes() {
    let kinds: &[(&str, Start)] = &[("pty", pty), ("pipe", pipe), ("socket", socket)];
    for (what, start) in kinds.iter() {
        let mut stopped = start();
        let in_flight = stopped.in_flight();
        // Make a little room: a writer of a piece larger than this blocks in the middle of its
        // write.
        stopped.screen.read_exact(&mut [0; 700]).unwrap();
        for key in ["k", "l"] {
            stopped.keys.write_all(key.as_bytes()).unwrap();
            assert_eq!(stopped.output(), format!("key {key}"), "{what}");
        }
        stopped.keys.write_all(b"q").unwrap();
        assert_eq!(stopped.output(), "drained", "{what}: {in_flight} in flight");
        assert_eq!(stopped.child.wait().unwrap().code(), Some(7), "{what}");
    }
}

/// P3: output that has not reached the screen is in flight, so the standby has it. (A terminal's
/// bytes cannot be counted from outside, because a terminal has several buffers.)
#[test]
fn p3_what_was_not_written_is_in_flight() {
    let kinds: &[(&str, Start)] = &[("pipe", pipe), ("socket", socket)];
    for (what, start) in kinds.iter() {
        let mut stopped = start();
        let (in_flight, shown) = (stopped.in_flight(), stopped.shown());
        assert_eq!(in_flight + shown, stopped.bytes + HARNESS, "{what}");
        let _ = stopped.child.kill();
        let _ = stopped.child.wait();
    }
    let mut stopped = pty();
    let in_flight = stopped.in_flight();
    assert!(in_flight > 1000, "{in_flight} bytes are in flight");
    let _ = stopped.child.kill();
    let _ = stopped.child.wait();
}

/// P2: only one message of the waiting bytes leaves after the right is lost.
#[test]
fn p2_of_the_bytes_that_wait_one_message_leaves_late() {
    const MESSAGE: usize = 4096;
    let mut stopped = pipe();
    let before = stopped.bytes - stopped.in_flight();
    stopped.keys.write_all(b"f").unwrap();
    assert_eq!(stopped.output(), "last");
    let mut screen = stopped.screen.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        // Read everything at once, so that there is room for many messages.
        let (mut all, mut bytes) = (0, vec![0; 1 << 20]);
        loop {
            match screen.read(&mut bytes).unwrap() {
                0 => return all,
                count => all += count,
            }
        }
    });
    assert_eq!(stopped.output(), "fenced");
    assert_eq!(stopped.child.wait().unwrap().code(), Some(8));
    let shown = reader.join().unwrap();
    let before = before + HARNESS;
    assert!(shown <= before + MESSAGE, "{} bytes have left late", shown - before);
}

/// A terminal hangs up, and a pipe loses its writer. Neither wakes a thread again and again.
#[test]
fn an_input_that_has_ended_wakes_nobody() {
    let terminal = pty();
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let screen = File::from(OwnedFd::from(screen));
    let null = File::open("/dev/null").unwrap();
    let ended = Stopped::start(SOCKET_BYTES, input.into(), output.into(), null, screen);
    drop(keys);
    for (what, mut stopped) in [("pty", terminal), ("pipe", ended)] {
        let _ = stopped.in_flight();
        if what == "pty" {
            // Close the two ends of the terminal that do not belong to the child.
            drop(std::mem::replace(&mut stopped.keys, File::open("/dev/null").unwrap()));
            drop(std::mem::replace(&mut stopped.screen, File::open("/dev/null").unwrap()));
        }
        let busy = processor_time(stopped.child.id());
        // This test needs time to pass: a process that is woken again and again uses all of it.
        std::thread::sleep(Duration::from_secs(2));
        let busy = processor_time(stopped.child.id()) - busy;
        assert!(busy < Duration::from_millis(500), "{what}: {busy:?} of processor time in 2 s");
        let _ = stopped.child.kill();
        let _ = stopped.child.wait();
    }
}

fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}
