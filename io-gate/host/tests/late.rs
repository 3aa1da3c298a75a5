//! P2: a machine that loses its right in the middle of its output lets out at most one more
//! message: the one that was permitted. In each test the peer reads nothing at first, so that
//! thousands of messages wait. Then the machine loses its right.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::net::{MAC, NetMachine, TRANSMIT, listen, stream_net};
use io_gate::host::Term;
use io_gate_host::backend::net::Net;
use io_gate_host::{Fence, GateHost, Permission};

/// Grants this many more times, and then never again.
struct Quota(AtomicUsize);

impl Quota {
    fn unlimited() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(usize::MAX)))
    }
}

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

/// Number of bytes that can be read from a socket or pipe.
fn ready_bytes(fd: RawFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the argument points to an `int` that lives through the call.
    assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) }, 0);
    bytes as usize
}

/// Runs the gate until the right is lost and the lanes are idle. `take` reads the output.
fn until_fenced(gate: &GateHost, mut take: impl FnMut()) {
    while !gate.is_fenced_off() || !gate.lanes_idle() {
        take();
        let _ = gate.ready_inputs();
        std::thread::yield_now();
    }
    take();
}

/// Sends frames to the lane, whether they leave or wait there.
fn send_all(machine: &mut NetMachine, frames: usize, len: usize) {
    for n in 0..frames {
        machine.offer(&vec![n as u8; len]);
        machine.send();
    }
    while !machine.gate.lanes_idle() {
        std::thread::yield_now();
    }
}

#[test]
fn p2_of_the_frames_that_wait_for_a_stream_one_leaves_late() {
    const FRAMES: usize = 2500;
    const LEN: usize = 1400;
    let (dir, listener) = listen();
    let fence = Quota::unlimited();
    let mut machine = NetMachine::fenced(stream_net(&dir), fence.clone());
    let (mut peer, _) = listener.accept().unwrap();
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    send_all(&mut machine, FRAMES, LEN);
    let before = ready_bytes(peer.as_raw_fd());
    assert!(before < FRAMES * LEN / 2, "most frames wait: {before} bytes have left");
    fence.0.store(1, Ordering::SeqCst);
    peer.set_nonblocking(true).unwrap();
    let mut seen = 0;
    let mut bytes = vec![0; 1 << 16];
    until_fenced(&machine.gate, || {
        while let Ok(count) = peer.read(&mut bytes) {
            if count == 0 {
                break;
            }
            seen += count;
        }
    });
    let late = seen - before;
    assert!(late <= LEN + 4, "{} frames left late", late.div_ceil(LEN + 4));
}

#[test]
fn p2_of_the_frames_that_wait_for_datagrams_one_leaves_late() {
    const FRAMES: usize = 2500;
    const LEN: usize = 1400;
    let dir = tempfile::tempdir().unwrap();
    let (local, remote) = (dir.path().join("local"), dir.path().join("remote"));
    let peer = UnixDatagram::bind(&remote).unwrap();
    peer.set_nonblocking(true).unwrap();
    let fence = Quota::unlimited();
    let net = Net::dgram(&local, &remote, MAC).unwrap();
    let mut machine = NetMachine::fenced(net, fence.clone());
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    send_all(&mut machine, FRAMES, LEN);
    fence.0.store(1, Ordering::SeqCst);
    let (mut seen, mut before) = (0, None);
    let mut frame = [0; LEN];
    until_fenced(&machine.gate, || {
        while peer.recv(&mut frame).is_ok() {
            seen += 1;
        }
        // The frames that are read the first time had left before the gate learned that there is
        // room.
        before.get_or_insert(seen);
    });
    let late = seen - before.unwrap();
    assert!(late <= 1, "{late} frames left late");
}

/// An announcement needs a permit too.
#[test]
fn p2_an_announcement_asks() {
    let (dir, listener) = listen();
    let fence = Quota::unlimited();
    let machine = NetMachine::fenced(stream_net(&dir), fence.clone());
    let (mut peer, _) = listener.accept().unwrap();
    fence.0.store(0, Ordering::SeqCst);
    machine.gate.announce(common::SLOT);
    common::wait_readable(machine.gate.fenced_event().as_raw_fd());
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0; 1]).is_err());
    let _ = TRANSMIT;
}
