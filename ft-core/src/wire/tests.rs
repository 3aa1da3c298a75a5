//! Every kind encoded and decoded, every byte altered, and arbitrary bytes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};
use proptest::prelude::*;

use super::*;
use crate::testing::{decode, hello};

fn every_message() -> Vec<Message> {
    let hashes = Hashes { memory: 1, state: u64::MAX };
    let beat = Heartbeat { sequence: 3, sent: 4 };
    let end =
        End { session: 5, pages: 2, digest: 3, previous: Some(Epoch(4)), hashes: Some(hashes) };
    let all = vec![
        Message::Hello(hello()),
        Message::Welcome(hello()),
        Message::Refuse { reason: "memory: 1, 2".into() },
        Message::Bulk(Data(vec![1; 100])),
        Message::Pages(Data(vec![2; 5000])),
        Message::State(Data(vec![3; 10])),
        Message::End(end),
        Message::Ack,
        Message::Verified(Verified { agree: false, primary: hashes, standby: hashes }),
        Message::Heartbeat(beat),
        Message::HeartbeatReply(beat),
        Message::Bye { reason: ByeReason::Detach, session: 7, from: 8, why: String::new() },
        Message::Image(Data(vec![4; 300])),
        Message::Readiness { lack: Some("tap0: down".into()), session: 7, from: 8 },
    ];
    let kinds: Vec<Kind> = all.iter().map(Message::kind).collect();
    assert_eq!(kinds, Kind::ALL);
    all
}

fn encode(message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    Outgoing { epoch: Epoch(7), term: Term(8), message }.encode(&mut bytes).unwrap();
    bytes
}

/// Decodes a whole stream, given in pieces of at most `piece` bytes.
fn decode_all(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, WireError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for mut part in bytes.chunks(piece) {
        while !part.is_empty() {
            frames.extend(decoder.decode(&mut part)?);
        }
    }
    Ok(frames)
}

#[test]
fn every_message_comes_back_as_it_was() {
    for message in every_message() {
        let frame = decode(&encode(message.clone()));
        assert_eq!((frame.header.epoch, frame.header.term), (Epoch(7), Term(8)));
        assert_eq!(frame.message, message);
    }
}

#[test]
fn frames_are_found_in_pieces_of_any_size() {
    let stream: Vec<u8> = every_message().into_iter().flat_map(encode).collect();
    for piece in [1, 3, 40, 41, 4096, usize::MAX] {
        let frames = decode_all(&stream, piece).unwrap();
        let messages: Vec<Message> = frames.into_iter().map(|frame| frame.message).collect();
        assert_eq!(messages, every_message(), "in pieces of {piece}");
    }
}

#[test]
fn p4_every_changed_bit_is_found() {
    for message in every_message() {
        let good = encode(message);
        for at in 0..good.len().min(300) {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // An increased length is detected at once: the decoder does not wait for it (P7).
                assert!(decode_all(&bad, usize::MAX).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn the_errors_say_what_is_wrong() {
    let header = |change: fn(&mut [u8; HEADER_LEN])| {
        let mut head: [u8; HEADER_LEN] = encode(Message::Ack).try_into().unwrap();
        change(&mut head);
        Header::parse(&head).unwrap_err()
    };
    assert!(matches!(header(|h| h[0] = b'G'), WireError::Magic { .. }));
    assert_eq!(header(|h| h[4] = 10), WireError::Version { found: 10 });
    assert_eq!(header(|h| h[6] = 99), WireError::Kind { found: 99 });
    assert!(matches!(header(|h| h[12] ^= 1), WireError::Header { .. }));
    assert!(matches!(header(|h| h[16] ^= 1), WireError::Header { .. }));
    assert_eq!(header(|h| h[8] = 1), WireError::TooLong { kind: Kind::Ack, found: 1 });
    assert!(matches!(header(|h| h[31] = 0x80), WireError::Number { .. }));
    assert!(matches!(header(|h| h[23] = 0x40), WireError::Number { .. }));
    let text = header(|h| h[4] = 10).to_string();
    assert!(text.contains("version 9, the other 10: run the same release"), "{text}");
}

#[test]
fn a_refusal_is_read_from_any_release() {
    let message = Message::Refuse { reason: "protocol: primary 1, standby 9".into() };
    let mut bytes = encode(message.clone());
    bytes[4] = 9;
    // The other release computes the checksums over its own header.
    let mut covered: Vec<u8> = bytes[..32].to_vec();
    let fields = [&covered[..12], &covered[16..]].concat();
    let check = xxhash_rust::xxh3::xxh3_64(&fields) as u32;
    covered[12..16].copy_from_slice(&check.to_le_bytes());
    let seed = xxhash_rust::xxh3::xxh3_64(&covered);
    let sum = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes[HEADER_LEN..], seed);
    covered.extend(sum.to_le_bytes());
    bytes[..HEADER_LEN].copy_from_slice(&covered);
    assert_eq!(decode(&bytes).message, message);
}

#[test]
fn nothing_longer_than_its_limit_is_sent() {
    let mut out = vec![9];
    let message = Message::State(Data(vec![0; (16 << 20) + 1]));
    let outgoing = Outgoing { epoch: Epoch(0), term: Term(0), message };
    assert!(matches!(outgoing.encode(&mut out), Err(WireError::TooLong { .. })));
    assert_eq!(out, [9], "the buffer is as before");
    let reason: String = "ä".repeat(100_000);
    let Message::Refuse { reason } = decode(&encode(Message::Refuse { reason })).message else {
        panic!("another message")
    };
    assert!(reason.len() > 60_000 && reason.chars().all(|letter| letter == 'ä'));
}

#[test]
fn an_announced_length_allocates_nothing() {
    let mut bytes = encode(Message::State(Data(vec![0; 16 << 20])));
    bytes.truncate(HEADER_LEN + 10);
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&mut bytes.as_slice()), Ok(None));
    assert!(decoder.held() < 1024, "{} bytes held", decoder.held());
}

#[test]
fn after_an_error_nothing_is_given() {
    let mut decoder = Decoder::new();
    let garbage = [0; HEADER_LEN];
    let error = decoder.decode(&mut garbage.as_slice()).unwrap_err();
    let good = encode(Message::Ack);
    assert_eq!(decoder.decode(&mut good.as_slice()), Err(error));
}

#[test]
fn the_digest_knows_order_number_and_pages() {
    let header = |message| decode(&encode(message)).header;
    let (a, b) = (header(Message::State(Data(vec![1]))), header(Message::State(Data(vec![2]))));
    let end = |frames: &[(&Header, u64)]| {
        let mut digest = EpochDigest::default();
        frames.iter().for_each(|(header, pages)| digest.add(header, *pages));
        digest.end(Epoch(1), None)
    };
    let reference = end(&[(&a, 1), (&b, 2)]);
    for other in [
        end(&[(&b, 2), (&a, 1)]),
        end(&[(&a, 1)]),
        end(&[(&a, 1), (&b, 2), (&b, 2)]),
        end(&[(&a, 2), (&b, 1)]),
    ] {
        assert_ne!(reference.digest, other.digest);
    }
    assert_eq!(reference.pages, 3);
}

/// A header with valid fields and any body, which a fuzzer would rarely find.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..2000);
    (0..Kind::ALL.len(), body, any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(kind, mut body, epoch, term, good)| {
            let kind = Kind::ALL[kind];
            body.truncate(kind.max_body() as usize);
            let mut out = Vec::new();
            let start = Header::reserve(&mut out);
            out.extend(body);
            let (epoch, term) = (Epoch(epoch >> 2), Term(term >> 2));
            Header::finish(&mut out, start, kind, epoch, term).unwrap();
            if !good {
                let at = out.len() / 2;
                out[at] ^= 1;
            }
            out
        },
    )
}

/// A reason that is too long to send would end a session without any reason; and half a character
/// is not text.
#[test]
fn a_reason_that_is_too_long_is_cut_between_characters() {
    for (begin, limit) in [("", 64 << 10), ("a", 64 << 10)] {
        let reason: String = begin.chars().chain(core::iter::repeat_n('é', limit)).collect();
        let frame = crate::testing::frame(0, 1, Message::Refuse { reason: reason.clone() });
        let Message::Refuse { reason: cut } = frame.message else { panic!("{:?}", frame.header) };
        assert!(reason.starts_with(&cut) && cut.len() > limit - 40, "{}", cut.len());
    }
}

/// A refusal is read from any release; other frames of another release are not.
#[test]
fn a_header_of_another_release_is_not_read_but_for_a_refusal() {
    for (message, read) in [(Message::Refuse { reason: "x".into() }, true), (Message::Ack, false)] {
        let mut bytes = encode(message);
        bytes[4] ^= 1;
        let error = Header::parse(bytes.first_chunk().unwrap()).unwrap_err();
        assert_eq!(matches!(error, WireError::Header { .. }), read, "{error}");
        assert_eq!(matches!(error, WireError::Version { .. }), !read, "{error}");
    }
}

#[test]
fn numbers_are_below_their_bound_and_a_body_is_as_long_as_its_header_says() {
    const BOUND: u64 = 1 << 62;
    for (epoch, term, good) in [(BOUND - 1, BOUND - 1, true), (BOUND, 1, false), (1, BOUND, false)]
    {
        let mut bytes = Vec::new();
        let (epoch, term) = (Epoch(epoch), Term(term));
        Outgoing { epoch, term, message: Message::Ack }.encode(&mut bytes).unwrap();
        let parsed = Header::parse(bytes.first_chunk().unwrap());
        assert_eq!(parsed.is_ok(), good, "{parsed:?}");
    }
    let header = crate::testing::frame(0, 1, Message::Ack).header;
    assert!(matches!(header.verify(&[1]), Err(WireError::Length { found: 1, .. })));
}

#[test]
fn after_a_body_that_is_wrong_nothing_is_given() {
    let mut bytes = encode(Message::State(Data(vec![1; 10])));
    *bytes.last_mut().unwrap() ^= 1;
    let mut decoder = Decoder::new();
    let error = decoder.decode(&mut bytes.as_slice()).unwrap_err();
    let good = encode(Message::Ack);
    assert_eq!(decoder.decode(&mut good.as_slice()), Err(error));
}

/// P4: a digest covers the content of every frame of its epoch, in order.
#[test]
fn p4_a_digest_tells_frames_apart_and_in_which_order_they_came() {
    let of = |parts: &[u8]| {
        let mut digest = EpochDigest::new(1);
        for part in parts {
            let state = Message::State(Data(vec![*part]));
            digest.add(&crate::testing::frame(1, 1, state).header, 2);
        }
        let (first, next) = (digest.end(Epoch(1), None), digest.end(Epoch(2), None));
        assert_eq!((first.pages, next.pages), (2 * parts.len() as u64, 0));
        first.digest
    };
    assert_ne!(of(&[1, 2]), of(&[2, 1]));
    assert_ne!(of(&[1, 2]), of(&[1, 3]));
    assert_ne!(of(&[1]), of(&[1, 1]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_at_all_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_all(&bytes, 7);
    }

    #[test]
    fn any_body_in_a_good_frame_does_no_harm(
        frames in prop::collection::vec(plausible(), 1..4), piece in 1..3000usize,
    ) {
        let bytes: Vec<u8> = frames.concat();
        let mut decoder = Decoder::new();
        'stream: for mut part in bytes.chunks(piece) {
            while !part.is_empty() {
                if decoder.decode(&mut part).is_err() {
                    break 'stream;
                }
                // Vec at most doubles its capacity.
                prop_assert!(decoder.held() <= 2 * bytes.len() + 128);
            }
        }
    }
}
