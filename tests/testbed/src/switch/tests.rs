//! Tests of the switch: it learns, floods, cuts and records, and never blocks on a stopped
//! receiver.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(5);
const A: Mac = [2, 0, 0, 0, 0, 1];
const B: Mac = [2, 0, 0, 0, 0, 2];
const CLIENT: Mac = [2, 0, 0, 0, 0, 3];

fn frame(to: Mac, from: Mac, content: u8) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.resize(60, content);
    frame
}

fn send(mut socket: &UnixStream, frame: &[u8]) {
    let mut message = (frame.len() as u32).to_be_bytes().to_vec();
    message.extend_from_slice(frame);
    socket.write_all(&message).unwrap();
}

fn receive(mut socket: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut frame).unwrap();
    frame
}

fn plugged(switch: &Switch, port: usize) -> UnixStream {
    let socket = UnixStream::connect(switch.socket(port)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

struct Bench {
    switch: Switch,
    client: Cable,
    a: UnixStream,
    b: UnixStream,
    _dir: tempfile::TempDir,
}

/// Two connected hosts and a client. The switch knows their addresses.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::new(dir.path(), &["a", "b"]).unwrap();
    let client = switch.plug_in();
    let (a, b) = (plugged(&switch, 0), plugged(&switch, 1));
    for (socket, mac) in [(&a, A), (&b, B)] {
        send(socket, &frame(CLIENT, mac, 0));
        client.receive(SOON).unwrap();
    }
    client.send(&frame(A, CLIENT, 0));
    // Skip the frames that were flooded before the addresses were known.
    while receive(&a) != frame(A, CLIENT, 0) {}
    Bench { switch, client, a, b, _dir: dir }
}

#[test]
fn a_known_address_gets_its_frames_alone() {
    let bench = bench();
    bench.client.send(&frame(B, CLIENT, 1));
    bench.client.send(&frame(A, CLIENT, 2));
    assert_eq!(receive(&bench.a), frame(A, CLIENT, 2), "the frame to b did not go to a");
    while receive(&bench.b) != frame(B, CLIENT, 1) {}
}

#[test]
fn an_address_moves_with_its_announcement_only() {
    let bench = bench();
    bench.client.send(&frame(A, CLIENT, 1));
    assert_eq!(receive(&bench.a), frame(A, CLIENT, 1));
    send(&bench.b, &frame([0xff; 6], A, 2));
    assert_eq!(bench.client.receive(SOON), Some(frame([0xff; 6], A, 2)));
    bench.client.send(&frame(A, CLIENT, 3));
    while receive(&bench.b) != frame(A, CLIENT, 3) {}
}

#[test]
fn a_cut_cable_is_silent_and_recorded() {
    let bench = bench();
    bench.switch.take_capture();
    bench.switch.cut(0);
    send(&bench.a, &frame(CLIENT, A, 1));
    bench.client.send(&frame(A, CLIENT, 2));
    assert_eq!(bench.client.receive(Duration::from_millis(50)), None);
    bench.switch.heal(0);
    bench.client.send(&frame(A, CLIENT, 3));
    assert_eq!(receive(&bench.a), frame(A, CLIENT, 3));
    let fates: Vec<_> =
        bench.switch.take_capture().iter().map(|frame| (frame.port, frame.fate)).collect();
    assert!(fates.contains(&(0, Fate::Cut)), "{fates:?}");
    assert!(fates.contains(&(2, Fate::Forwarded)), "{fates:?}");
}

#[test]
fn a_stopped_receiver_costs_frames_and_no_time() {
    let bench = bench();
    let count = 10_000;
    let before = Instant::now();
    for _ in 0..count {
        bench.client.send(&frame(A, CLIENT, 7));
    }
    assert!(before.elapsed() < SOON, "the sender never waited");
    let mut received = 0;
    bench.a.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut next = [0; 64];
    while (&bench.a).read_exact(&mut next).is_ok() {
        assert_eq!(next[4..], frame(A, CLIENT, 7), "no frame is torn");
        received += 1;
    }
    assert!((1..count).contains(&received), "{received} of {count}");
    for content in 8..12 {
        bench.client.send(&frame(A, CLIENT, content));
    }
    bench.a.set_read_timeout(Some(SOON)).unwrap();
    while receive(&bench.a) != frame(A, CLIENT, 11) {}
}

/// Frames that a slow switch has not accepted wait in the sender's queue. If the sender dies, they
/// are lost.
#[test]
fn what_a_slow_switch_has_not_taken_is_lost_with_its_sender() {
    let bench = bench();
    bench.switch.slow(0, Duration::from_millis(1));
    for content in 0..20 {
        send(&bench.a, &frame(CLIENT, A, content));
    }
    for content in 0..20 {
        assert_eq!(bench.client.receive(SOON), Some(frame(CLIENT, A, content)), "all, in order");
    }
    bench.switch.take_capture();
    bench.switch.lose(0);
    send(&bench.a, &frame(CLIENT, A, 30));
    let again = plugged(&bench.switch, 0);
    bench.switch.heal(0);
    send(&again, &frame(CLIENT, A, 31));
    assert_eq!(bench.client.receive(SOON), Some(frame(CLIENT, A, 31)));
    send(&bench.a, &frame(CLIENT, A, 32));
    send(&again, &frame(CLIENT, A, 33));
    assert_eq!(bench.client.receive(SOON), Some(frame(CLIENT, A, 33)));
    assert_eq!(bench.switch.take_capture().len(), 2, "nobody has seen the others");
}

#[test]
fn a_new_program_on_a_port_gets_a_new_number() {
    let bench = bench();
    bench.switch.take_capture();
    send(&bench.a, &frame(CLIENT, A, 1));
    bench.client.receive(SOON).unwrap();
    let again = plugged(&bench.switch, 0);
    send(&again, &frame(CLIENT, A, 2));
    bench.client.receive(SOON).unwrap();
    let numbers: Vec<_> =
        bench.switch.take_capture().iter().map(|frame| frame.connection).collect();
    assert_eq!(numbers, [1, 2]);
    bench.client.send(&frame(A, CLIENT, 3));
    while receive(&again) != frame(A, CLIENT, 3) {}
}

#[test]
fn an_impossible_length_ends_the_connection() {
    let bench = bench();
    (&bench.a).write_all(&u32::MAX.to_be_bytes()).unwrap();
    let mut byte = [0];
    while (&bench.a).read(&mut byte).unwrap() != 0 {}
}

/// Fails if the switch ignores a frame that the reader holds or that waits in the socket.
#[test]
fn a_port_is_settled_when_all_that_was_sent_is_in_the_capture() {
    let bench = bench();
    for round in 1..=20 {
        bench.switch.take_capture();
        bench.switch.slow(0, Duration::from_millis(round % 3));
        (0..5).for_each(|content| send(&bench.a, &frame(CLIENT, A, content)));
        let begun = Instant::now();
        while !bench.switch.is_settled(0) {
            assert!(begun.elapsed() < SOON);
            thread::yield_now();
        }
        assert_eq!(bench.switch.with_capture(<[Frame]>::len), 5);
    }
}
