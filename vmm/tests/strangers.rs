//! P9: a peer that connects to a standby and says Hello costs it a bounded amount of memory, even
//! while the standby is busy.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel};

use ft_core::Term;
use ft_core::primary::Phase;
use ft_core::wire::{HEADER_LEN, Header};
use kvm_bindings::kvm_regs;
use pair::{
    IDLE, PATIENCE, Standby, config, engine_options, machine, start_engine, threads, wait_for,
    wait_phase,
};

const MEMORY: u64 = 16 << 20;
/// The peers that may wait, those that fit in the queue, and the one whose Hello is being checked.
const KEPT: usize = 64 + 16 + 1;
const STRANGERS: usize = 200;

/// Returns the bytes of a Hello.
fn hello(dir: &Path) -> Vec<u8> {
    let path = dir.join("ear");
    let listener = UnixListener::bind(&path).unwrap();
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    let _engine = start_engine(&machine, authority, None, Term(0), engine_options(&path));
    let mut link = listener.accept().unwrap().0;
    let mut hello = vec![0; HEADER_LEN];
    link.read_exact(&mut hello).unwrap();
    let header: [u8; HEADER_LEN] = hello[..].try_into().unwrap();
    let body = Header::parse(&header).unwrap().body_len as usize;
    hello.resize(HEADER_LEN + body, 0);
    link.read_exact(&mut hello[HEADER_LEN..]).unwrap();
    hello
}

fn is_closed(mut link: &UnixStream) -> bool {
    match link.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// Fails if peers that have said Hello wait without a bound.
#[test]
fn p9_peers_that_wait_for_a_busy_standby_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let hello = hello(dir.path());
    let link = dir.path().join("link");
    let (busy, is_busy) = sync_channel(STRANGERS);
    let (let_go, held) = channel::<()>();
    let first = AtomicBool::new(true);
    let before = move || {
        if first.swap(false, Ordering::SeqCst) {
            busy.send(()).unwrap();
            // Blocks until the test releases the standby.
            let _ = held.recv();
        }
    };
    let standby = Standby::start_held(&link, PATIENCE, None, None, before);
    let say_hello = || {
        let mut stranger = UnixStream::connect(&link).unwrap();
        // The connection may be closed already.
        let _ = stranger.write_all(&hello);
        stranger.set_nonblocking(true).unwrap();
        stranger
    };
    let mut strangers = vec![say_hello()];
    is_busy.recv_timeout(PATIENCE).unwrap();
    strangers.extend((1..STRANGERS).map(|_| say_hello()));
    wait_for("the others to be turned away", || {
        strangers.iter().filter(|stranger| is_closed(stranger)).count() >= STRANGERS - KEPT
    });
    // A thread that has left its place may take a moment to end.
    wait_for("threads to end", || threads("stranger") <= 64);

    drop(let_go);
    drop(strangers);
    let (machine, authority) = machine(config(MEMORY, 1), IDLE, kvm_regs::default());
    let engine = start_engine(&machine, authority, None, Term(0), engine_options(&link));
    wait_phase(&engine, Phase::Protected);
    drop(standby);
}
