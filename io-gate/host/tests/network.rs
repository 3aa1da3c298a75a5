//! A network interface behind the gate: order, holding, input, and peers that come and go.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::net::{
    HEADER, MAC, NetMachine, RECEIVE, TRANSMIT, listen, read_frame, stream_net, write_frame,
};
use common::{QUEUE_SIZE, SLOT, complete, wait_readable};
use devices::NetConfig;
use io_gate::Port;
use io_gate::host::{Term, new_gate};
use io_gate_host::backend::net::{MAX_FRAME, Net};
use io_gate_host::{Backend, Fence, GateHost, GateOptions, Permission, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

/// P6: when the machine runs alone, frames leave at once and in order, and their chains return.
#[test]
fn frames_leave_at_once_and_in_order_when_alone() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    for n in 0..5_u8 {
        machine.offer(&[n; 100]);
    }
    assert!(machine.send());
    assert_eq!(machine.transmit.used().len(), 5);
    for n in 0..5_u8 {
        assert_eq!(read_frame(&mut peer), [n; 100]);
    }
    assert_eq!(machine.gate.counts().performed, 5);
    assert_eq!(machine.gate.dropped_frames(), 0);
}

/// A fence whose thread is stopped before its answer arrives. Meanwhile another machine gets the
/// right.
struct Stopped(AtomicUsize);

impl Fence for Stopped {
    fn ask(&self) -> Permission {
        if self.0.fetch_add(1, Ordering::SeqCst) > 0 {
            return Permission::Lost;
        }
        // Sleep, which has the effect of a stopped process.
        std::thread::sleep(Duration::from_millis(300));
        Permission::Granted
    }
}

/// P2: a stopped process continues after the system call in which it was stopped. Then the fence's
/// answer is too old to use.
#[test]
fn p2_a_permission_that_took_long_is_asked_for_again() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::fenced(stream_net(&dir), Arc::new(Stopped(AtomicUsize::new(0))));
    let (mut peer, _) = listener.accept().unwrap();
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.offer(&[1; 64]);
    let _ = machine.slot.kick(TRANSMIT);
    common::wait_readable(machine.gate.fenced_event().as_raw_fd());
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0; 1]).is_err(), "nothing has left");
    assert_eq!(machine.gate.counts().performed, 0);
}

/// Counts the questions. Its answers may be reused for this long.
struct Counted(AtomicUsize, Duration);

impl Fence for Counted {
    fn ask(&self) -> Permission {
        self.0.fetch_add(1, Ordering::SeqCst);
        Permission::Granted
    }

    fn good_for(&self) -> Duration {
        self.1
    }
}

/// P2: each effect asks the fence, unless the fence says that its answer may be reused.
#[test]
fn p2_a_permission_is_used_as_long_as_it_is_good_for() {
    const FRAMES: usize = 8;
    // The opening of the gate asks too.
    let hour = Duration::from_secs(3600);
    for (good_for, asked) in [(Duration::ZERO, FRAMES..=FRAMES + 4), (hour, 1..=2)] {
        let (dir, listener) = listen();
        let fence = Arc::new(Counted(AtomicUsize::new(0), good_for));
        let mut machine = NetMachine::fenced(stream_net(&dir), fence.clone());
        let (mut peer, _) = listener.accept().unwrap();
        machine.gate.run_alone(machine.authority.alone(Term(1)));
        let before = fence.0.load(Ordering::SeqCst);
        for n in 0..FRAMES as u8 {
            machine.offer(&[n; 64]);
        }
        assert!(machine.send());
        for n in 0..FRAMES as u8 {
            assert_eq!(read_frame(&mut peer), [n; 64]);
        }
        let now = fence.0.load(Ordering::SeqCst);
        assert!(asked.contains(&(now - before)), "{good_for:?}: {}", now - before);
    }
}

/// Grants until the test changes it. Its answer may be reused for [`Brief::GOOD_FOR`].
struct Brief(AtomicBool);

impl Brief {
    const GOOD_FOR: Duration = Duration::from_millis(1);
}

impl Fence for Brief {
    fn ask(&self) -> Permission {
        if self.0.load(Ordering::SeqCst) { Permission::Lost } else { Permission::Granted }
    }

    fn good_for(&self) -> Duration {
        Self::GOOD_FOR
    }
}

/// P2: no answer is used for longer than it is valid.
#[test]
fn p2_a_permission_that_is_no_longer_good_is_asked_for_again() {
    let (dir, listener) = listen();
    let fence = Arc::new(Brief(AtomicBool::new(false)));
    let mut machine = NetMachine::fenced(stream_net(&dir), fence.clone());
    let (mut peer, _) = listener.accept().unwrap();
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.offer(&[1; 64]);
    assert!(machine.send());
    assert_eq!(read_frame(&mut peer), [1; 64]);
    fence.0.store(true, Ordering::SeqCst);
    // The test needs time to pass: no event signals its end.
    std::thread::sleep(2 * Brief::GOOD_FOR);
    machine.offer(&[2; 64]);
    let _ = machine.slot.kick(TRANSMIT);
    common::wait_readable(machine.gate.fenced_event().as_raw_fd());
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0; 1]).is_err(), "nothing more has left");
    assert_eq!(machine.gate.counts().performed, 1);
}

/// P1: held frames leave when their epoch is committed, with the staged bytes.
#[test]
fn held_frames_leave_with_their_epoch() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::new(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    let first = machine.offer(&[1; 64]);
    assert!(!machine.slot.kick(TRANSMIT).any());
    machine.memory.write_slice(&[9; 64], GuestAddress(first + HEADER as u64)).unwrap();
    let sealed = machine.gate.seal();
    machine.offer(&[2; 64]);
    let _ = machine.slot.kick(TRANSMIT);
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0; 1]).is_err(), "nothing has left yet");
    peer.set_nonblocking(false).unwrap();

    machine.gate.release(machine.authority.acknowledged(sealed.epoch));
    assert_eq!(read_frame(&mut peer), [1; 64]);
    assert_eq!(machine.gate.held(), 1);
    assert!(complete(&machine.gate, &mut machine.slot, 1).used);
    let next = machine.gate.seal();
    machine.gate.release(machine.authority.acknowledged(next.epoch));
    assert_eq!(read_frame(&mut peer), [2; 64]);
}

/// A batch larger than the socket's buffer waits in the gate: no frame is lost, and no thread
/// blocks.
#[test]
fn a_peer_that_reads_late_loses_nothing() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    let frame = |n: u8| vec![n; 60_000];
    for n in 0..40_u8 {
        machine.offer(&frame(n));
        assert!(machine.send());
    }
    let reader = std::thread::spawn(move || {
        (0..40_u8).for_each(|n| assert!(read_frame(&mut peer) == frame(n), "frame {n}"));
    });
    while !reader.is_finished() {
        wait_readable_or_done(&machine.gate, &reader);
        let _ = machine.gate.ready_inputs();
    }
    reader.join().unwrap();
    assert_eq!(machine.gate.dropped_frames(), 0);
}

/// Waits until the gate has work or the peer has read everything: then the peer closes its end,
/// which wakes the gate too.
fn wait_readable_or_done(gate: &GateHost, reader: &std::thread::JoinHandle<()>) {
    if !reader.is_finished() {
        wait_readable(gate.inputs_fd());
    }
}

#[test]
fn input_is_taken_as_far_as_there_is_room() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    let rooms = [machine.room(2048), machine.room(2048)];
    for n in 1..=3_u8 {
        write_frame(&mut peer, &[n; 200]);
    }
    assert!(machine.take_input());
    assert_eq!(machine.receive.used(), [(0, 212), (1, 212)]);
    for (n, room) in (1_u8..).zip(rooms) {
        let mut got = [0; 212];
        machine.memory.read_slice(&mut got, GuestAddress(room)).unwrap();
        assert_eq!(got[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(got[HEADER..], [n; 200]);
    }
    // The third frame waits until the driver makes room and notifies the device. Meanwhile it does
    // not keep the thread busy.
    write_frame(&mut peer, &[4; 200]);
    assert!(!common::is_readable(machine.gate.inputs_fd()));
    let third = machine.room(2048);
    assert!(machine.slot.kick(RECEIVE).used);
    assert_eq!(machine.memory.read_obj::<u8>(GuestAddress(third + 12)).unwrap(), 3);
    machine.room(2048);
    let _ = machine.slot.kick(RECEIVE);
    if machine.receive.used().len() < 2 {
        assert!(machine.take_input());
    }
}

/// A frame that does not fit the driver's buffer is dropped; the next one arrives.
#[test]
fn a_frame_that_does_not_fit_is_dropped() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    machine.room(64);
    machine.room(2048);
    write_frame(&mut peer, &[1; 1000]);
    write_frame(&mut peer, &[2; 1000]);
    machine.take_input();
    assert_eq!(machine.receive.used(), [(0, 0), (1, 1012)]);
}

/// While the peer is gone, frames are dropped, as on an unplugged cable. The peer may return.
#[test]
fn a_peer_may_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = NetMachine::alone(stream_net(&dir));
    machine.offer(&[1; 100]);
    assert!(machine.send(), "the chain comes back");
    assert_eq!(machine.gate.dropped_frames(), 1);

    for round in 2..4_u8 {
        let path = dir.path().join("net");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut peer = loop {
            wait_readable(machine.gate.inputs_fd());
            let _ = machine.gate.ready_inputs();
            // The lane connects.
            machine.gate.drain();
            if let Ok((peer, _)) = listener.accept() {
                break peer;
            }
        };
        peer.set_nonblocking(false).unwrap();
        machine.offer(&[round; 100]);
        assert!(machine.send());
        assert_eq!(read_frame(&mut peer), [round; 100]);
        drop((peer, listener));
        std::fs::remove_file(path).unwrap();
        // The gate notices that the connection is closed.
        machine.room(2048);
        machine.take_input();
    }
}

/// A peer that sends an impossible length is disconnected. The guest does not notice.
#[test]
fn an_impossible_length_ends_the_connection() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    machine.room(2048);
    peer.write_all(&(MAX_FRAME as u32 + 1).to_be_bytes()).unwrap();
    assert!(!machine.take_input());
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    let (mut again, _) = {
        wait_readable(machine.gate.inputs_fd());
        let _ = machine.gate.ready_inputs();
        listener.accept().unwrap()
    };
    write_frame(&mut again, &[5; 60]);
    while machine.receive.used().is_empty() {
        machine.take_input();
    }
}

#[test]
fn datagrams_carry_frames_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let (local, remote) = (dir.path().join("local"), dir.path().join("remote"));
    let peer = UnixDatagram::bind(&remote).unwrap();
    let mut machine = NetMachine::alone(Net::dgram(&local, &remote, MAC).unwrap());
    peer.connect(&local).unwrap();
    // More than the peer's queue holds at once.
    for n in 0..QUEUE_SIZE as u8 * 4 {
        machine.offer(&[n; 80]);
        assert!(machine.send());
    }
    let mut frame = [0; 200];
    peer.set_nonblocking(true).unwrap();
    for n in 0..QUEUE_SIZE as u8 * 4 {
        let len = loop {
            match peer.recv(&mut frame) {
                Ok(len) => break len,
                Err(_) => {
                    wait_readable(machine.gate.inputs_fd());
                    let _ = machine.gate.ready_inputs();
                }
            }
        };
        assert_eq!((len, frame[0]), (80, n));
    }
    machine.room(2048);
    peer.send(&[7; 90]).unwrap();
    assert!(machine.take_input());
    assert_eq!(machine.receive.used(), [(0, 102)]);
    drop(machine);
    assert!(!local.exists());
}

/// Fails if the socket stays connected to the former peer: then its replacement could not send
/// until the guest has sent.
#[test]
fn a_peer_that_is_made_anew_may_speak_first() {
    let dir = tempfile::tempdir().unwrap();
    let (local, remote) = (dir.path().join("local"), dir.path().join("remote"));
    let mut machine = NetMachine::alone(Net::dgram(&local, &remote, MAC).unwrap());
    let mut frame = [0; 200];
    for round in 1..4_u8 {
        let peer = UnixDatagram::bind(&remote).unwrap();
        peer.connect(&local).unwrap();
        machine.room(2048);
        let _ = machine.slot.kick(RECEIVE);
        peer.send(&[round; 90]).unwrap();
        assert!(machine.take_input());
        machine.offer(&[round; 80]);
        assert!(machine.send());
        machine.gate.drain();
        assert_eq!((peer.recv(&mut frame).unwrap(), frame[0]), (80, round));
        drop(peer);
        std::fs::remove_file(&remote).unwrap();
    }
    // The peer has gone. A frame that is dropped now is not sent later.
    machine.offer(&[9; 80]);
    assert!(machine.send());
    machine.gate.drain();
    assert_eq!(machine.gate.dropped_frames(), 1);
}

/// After a takeover the network learns at which port the guest's address is now.
#[test]
fn an_announcement_is_a_rarp_broadcast() {
    let (dir, listener) = listen();
    let machine = NetMachine::new(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    machine.gate.announce(SLOT);
    let frame = read_frame(&mut peer);
    assert_eq!(frame.len(), 60);
    assert_eq!(frame[..6], [0xff; 6]);
    assert_eq!(frame[6..12], MAC);
    assert_eq!(frame[12..14], [0x80, 0x35]);
    assert_eq!(frame[22..28], MAC);
    machine.gate.set_fenced_off();
    machine.gate.announce(SLOT);
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0; 1]).is_err(), "P2: fenced off, it announces nothing");
}

/// P3: a frame in flight is sent again after a takeover.
#[test]
fn held_frames_survive_a_crash() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::new(stream_net(&dir));
    let _first = listener.accept().unwrap();
    machine.offer(&[6; 70]);
    let _ = machine.slot.kick(TRANSMIT);
    let sealed = machine.gate.seal();
    let saved = machine.slot.save();
    let NetMachine { memory, slot, gate, mut transmit, .. } = machine;
    drop((slot, gate));

    let net = stream_net(&dir);
    let (ledger, mut authority) = new_gate();
    let gate = GateHost::new(ledger, memory, Arc::new(Unfenced), GateOptions::default()).unwrap();
    let config = NetConfig { mac: [2; 6], offloads: false, pairs: 1 };
    let mut slot = VirtioSlot::new(SLOT, Box::new(devices::Net::new(config)), gate.clone());
    slot.restore(&saved).unwrap();
    gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    gate.attach(SLOT, Port(0), Backend::Net(net)).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    gate.run_alone(authority.alone(Term(2)));
    assert_eq!(read_frame(&mut peer), [6; 70]);
    assert!(complete(&gate, &mut slot, 1).used);
    assert_eq!(transmit.used().len(), 1);
    // The restored address is the guest's, not that of this instance.
    let mut mac = [0; 6];
    slot.read_config(0, &mut mac);
    assert_eq!(mac, MAC);
}

/// P1: each frame leaves once, in the order of staging. One thread releases frames while another
/// one stages them, and the gate opens and closes in between.
#[test]
fn order_holds_between_threads() {
    const FRAMES: u32 = 3000;
    let (dir, listener) = listen();
    let mut machine = NetMachine::new(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    let reader = std::thread::spawn(move || {
        for n in 0..FRAMES {
            let frame = read_frame(&mut peer);
            assert_eq!(frame[..4], n.to_le_bytes(), "frame {n}");
        }
    });
    let (epochs, sealed) = std::sync::mpsc::channel::<Option<io_gate::host::Epoch>>();
    let gate = machine.gate.clone();
    let mut authority = std::mem::replace(&mut machine.authority, new_gate().1);
    let link = std::thread::spawn(move || {
        while let Ok(epoch) = sealed.recv() {
            match epoch {
                Some(epoch) => gate.release(authority.acknowledged(epoch)),
                None => gate.run_alone(authority.alone(Term(1))),
            }
        }
    });

    let mut outstanding = 0;
    for n in 0..FRAMES {
        let mut frame = vec![0; 60 + (n % 700) as usize];
        frame[..4].copy_from_slice(&n.to_le_bytes());
        machine.offer(&frame);
        outstanding += 1;
        let _ = machine.slot.kick(TRANSMIT);
        if n % 1000 == 500 {
            epochs.send(None).unwrap();
        } else if n % 1000 == 900 {
            machine.gate.hold();
        }
        if n % 5 == 4 {
            epochs.send(Some(machine.gate.seal().epoch)).unwrap();
            // Each chain has two descriptors, so eight chains fill the ring.
            outstanding -= machine.transmit.used().len();
            while outstanding > 2 {
                wait_readable(machine.gate.completions_event().as_raw_fd());
                for completion in machine.gate.take_completions() {
                    let _ = machine.slot.complete(completion);
                }
                outstanding -= machine.transmit.used().len();
            }
        }
    }
    drop(epochs);
    link.join().unwrap();
    while !reader.is_finished() {
        wait_readable_or_done(&machine.gate, &reader);
        let _ = machine.gate.ready_inputs();
    }
    reader.join().unwrap();
    assert_eq!(machine.gate.dropped_frames(), 0);
    let _ = machine.gate.seal();
}
