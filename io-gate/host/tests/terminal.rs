//! Standard input and output as a console, and the terminal's raw mode. Both are in another
//! process, because a process has only one standard input and output.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use common::{SLOT, guest_memory, wait_readable};
use io_gate::Port;
use io_gate::host::{Term, new_gate};
use io_gate_host::adapter::Serial;
use io_gate_host::backend::console::Console;
use io_gate_host::backend::terminal::RawMode;
use io_gate_host::{Backend, GateHost, GateOptions, RegisterSlot, Unfenced};

const ROLE: &str = "TERMINAL_TEST_ROLE";

/// Not a test itself: the tests below run it as another process.
#[test]
#[ignore = "the other process of the tests in this file"]
fn child() {
    match std::env::var(ROLE).as_deref() {
        Ok("drop") => raw_until_a_key(),
        Ok("panic") => {
            let _raw = RawMode::enter().unwrap();
            wait_for_key();
            // The panic hook restores the mode before the thread is unwound.
            std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
            print_line("panicked");
            wait_for_key();
        }
        Ok("echo") => echo(),
        role => panic!("unknown role {role:?}"),
    }
}

fn raw_until_a_key() {
    let _raw = RawMode::enter().unwrap();
    wait_for_key();
}

fn wait_for_key() {
    print_line("waiting");
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

fn print_line(text: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}").unwrap();
    stdout.flush().unwrap();
}

/// A guest that prints the typed keys in capitals.
fn echo() {
    let (ledger, mut authority) = new_gate();
    let gate =
        GateHost::new(ledger, guest_memory(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    gate.attach(SLOT, Port(0), Backend::Console(Console::stdio())).unwrap();
    let mut slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
    loop {
        wait_readable(gate.inputs_fd());
        for (_, port) in gate.ready_inputs() {
            let _ = slot.intake(port);
        }
        let mut byte = [0];
        while {
            let _ = slot.read(5, &mut byte);
            byte[0] & 1 != 0
        } {
            let _ = slot.read(0, &mut byte);
            let _ = slot.write(0, &byte.map(|byte| byte.to_ascii_uppercase()));
            if byte[0] == b'!' {
                return;
            }
        }
    }
}

fn start(role: &str, stdin: Stdio) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(ROLE, role)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads the child's output until this text has appeared.
fn wait_for(child: &mut Child, text: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(text.as_bytes()) {
        let got = stdout.read(&mut byte).unwrap();
        assert_eq!(got, 1, "expected `{text}`, found `{}`", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

struct Pty {
    master: File,
    slave: OwnedFd,
}

impl Pty {
    fn open() -> Self {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: both pointers are to integers that live through the call; the others may be null.
        let result = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(result, 0);
        // SAFETY: the system has just given us both descriptors.
        unsafe { Self { master: File::from_raw_fd(master), slave: OwnedFd::from_raw_fd(slave) } }
    }

    fn is_raw(&self) -> bool {
        // SAFETY: a zeroed `termios` is valid, and it lives through the call.
        unsafe {
            let mut attributes: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &raw mut attributes), 0);
            attributes.c_lflag & libc::ICANON == 0
        }
    }
}

#[test]
fn raw_mode_ends_with_its_guard() {
    let mut pty = Pty::open();
    let mut child = start("drop", pty.slave.try_clone().unwrap().into());
    wait_for(&mut child, "waiting\n");
    assert!(pty.is_raw());
    pty.master.write_all(b"k").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!pty.is_raw());
}

#[test]
fn raw_mode_ends_with_a_panic_of_any_thread() {
    let mut pty = Pty::open();
    let mut child = start("panic", pty.slave.try_clone().unwrap().into());
    wait_for(&mut child, "waiting\n");
    assert!(pty.is_raw());
    pty.master.write_all(b"k").unwrap();
    wait_for(&mut child, "panicked\n");
    assert!(!pty.is_raw(), "the guard still lives, but the terminal is back");
    pty.master.write_all(b"k\n").unwrap();
    wait_for(&mut child, "waiting\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn keys_reach_the_guest_and_its_output_the_outside() {
    let mut child = start("echo", Stdio::piped());
    let mut keys = child.stdin.take().unwrap();
    // This is more than the 64 bytes of the chip's buffer: the rest waits for the guest.
    let text = "the quick brown fox jumps over the lazy dog. ".repeat(8);
    keys.write_all(text.as_bytes()).unwrap();
    wait_for(&mut child, &text.to_uppercase());
    keys.write_all(b"!").unwrap();
    assert!(child.wait().unwrap().success());
}

/// Ctrl-A x ends the process. A way to end it is needed, because all other keys go to the guest.
#[test]
fn the_escape_key_ends_the_process() {
    let mut child = start("echo", Stdio::piped());
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"ab\x01\x01").unwrap();
    wait_for(&mut child, "AB\x01");
    keys.write_all(b"\x01x").unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}
