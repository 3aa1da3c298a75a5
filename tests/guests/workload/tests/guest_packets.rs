//! The micro-guest's packet code, run on this host: which frames it answers, and which it must not
//! answer.

#![allow(clippy::expect_used, missing_docs, unreachable_pub, dead_code)]

#[path = "../../micro/src/packet.rs"]
mod packet;

use packet::{Own, Peer, Received};

const GUEST: Own = Own { mac: [2, 0, 0, 0, 0, 1], ip: [10, 0, 2, 15] };
const HOST: Own = Own { mac: [2, 0, 0, 0, 0, 2], ip: [10, 0, 2, 2] };
const MAX_FRAME: usize = 1514;

/// `own` as a peer, as the other host reads it from an ARP request.
fn peer_of(own: &Own) -> Peer {
    let other = if own.ip == GUEST.ip { &HOST } else { &GUEST };
    let Some(Received::Arp(peer)) = packet::read(&arp_request(own, other), other).map(owned) else {
        panic!("an ARP request is read");
    };
    peer
}

fn owned(received: Received<'_>) -> Received<'static> {
    match received {
        Received::Arp(peer) => Received::Arp(peer),
        _ => panic!("only ARP is expected here"),
    }
}

fn arp_request(from: &Own, to: &Own) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&from.mac);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&from.mac);
    frame.extend_from_slice(&from.ip);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&to.ip);
    frame
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; MAX_FRAME];
    let length = packet::write_udp(&mut frame, &HOST, &peer_of(&GUEST), 5555, payload);
    frame.truncate(length);
    frame
}

fn read_payload(frame: &[u8]) -> Option<Vec<u8>> {
    match packet::read(frame, &GUEST) {
        Some(Received::Udp { payload, .. }) => Some(payload.to_vec()),
        _ => None,
    }
}

#[test]
fn a_datagram_arrives_with_every_length() {
    for length in 0..=1200 {
        let payload: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
        assert_eq!(read_payload(&datagram(&payload)), Some(payload));
    }
}

#[test]
fn a_damaged_datagram_is_dropped() {
    let frame = datagram(b"some payload");
    // Start at the IP header: the Ethernet header has no checksum here.
    for bit in 14 * 8..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read_payload(&damaged), None, "bit {bit}");
    }
}

#[test]
fn a_datagram_without_checksum_is_taken() {
    let mut frame = datagram(b"some payload");
    frame[40..42].fill(0);
    assert_eq!(read_payload(&frame), Some(b"some payload".to_vec()));
}

#[test]
fn a_cut_frame_is_dropped() {
    let frame = datagram(b"some payload");
    for length in 0..frame.len() {
        assert!(packet::read(&frame[..length], &GUEST).is_none());
    }
}

#[test]
fn frames_for_others_are_dropped() {
    let other = Own { mac: GUEST.mac, ip: [10, 0, 2, 16] };
    assert!(packet::read(&datagram(b"x"), &other).is_none());
    let other = Own { mac: [2, 0, 0, 0, 0, 9], ip: GUEST.ip };
    assert!(packet::read(&datagram(b"x"), &other).is_none());
    assert!(packet::read(&arp_request(&HOST, &other), &HOST).is_none());
}

#[test]
fn an_echo_is_answered_with_the_same() {
    let mut message = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
    let sum = !message.chunks(2).fold(0_u32, |sum, pair| {
        let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    }) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; MAX_FRAME];
    let length = packet::write_echo(&mut frame, &GUEST, &peer_of(&HOST), &message);
    let reply = &frame[34..length];
    assert_eq!((reply[0], reply[1]), (0, 0));
    assert_eq!(reply[4..], message[4..]);
    let long = vec![0; MAX_FRAME];
    assert_eq!(packet::write_echo(&mut frame, &GUEST, &peer_of(&HOST), &long), 0);
}
