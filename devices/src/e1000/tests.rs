//! Tests of the card from its driver's side: registers, rings in guest memory, frames at the gate.

use alloc::vec;
use alloc::vec::Vec;

use io_gate::host::{EffectOp, Request};
use io_gate::{LineState, RegisterDevice};

use super::registers::reg;
use super::{E1000, HEADER, NETWORK, cause};
use crate::test_support::{Memory, TestGate};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const TX_RING: usize = 0x1000;
const RX_RING: usize = 0x2000;
const BUFFERS: usize = 0x1_0000;
/// Descriptors of each ring.
const RING: u32 = 8;
const END_AND_REPORT: u32 = 0x0900_0000;
const EXTENDED: u32 = 0x2000_0000;

/// A card with memory and an open gate.
struct Bench {
    memory: Memory,
    gate: TestGate,
    card: E1000,
}

impl Bench {
    fn new() -> Self {
        Self { memory: Memory::new(), gate: TestGate::open(), card: E1000::new(MAC) }
    }

    /// A card that its driver has activated.
    fn up() -> Self {
        let mut bench = Self::new();
        for (offset, value) in [
            (reg::TDBAL, TX_RING as u32),
            (reg::TDLEN, RING * 16),
            (reg::TCTL, 2),
            (reg::RDBAL, RX_RING as u32),
            (reg::RDLEN, RING * 16),
            (reg::RCTL, 2 | 1 << 15),
            (reg::IMS, 0xff),
        ] {
            bench.write(offset, value);
        }
        for index in 0..RING as usize {
            let buffer = BUFFERS + 0x8000 + index * 2048;
            bench.memory.put(RX_RING + index * 16, &(buffer as u64).to_le_bytes());
        }
        bench
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.write_bytes(offset.into(), &value.to_le_bytes());
    }

    fn write_bytes(&mut self, offset: u64, bytes: &[u8]) {
        let card = &mut self.card;
        self.gate.ledger.bus_master_session(0, &self.memory, |gate| {
            card.write(offset, bytes, gate);
            while card.proceed(gate) {}
        });
    }

    fn read(&mut self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        let card = &mut self.card;
        self.gate.ledger.bus_master_session(0, &self.memory, |gate| {
            card.read(offset.into(), &mut bytes, gate);
        });
        u32::from_le_bytes(bytes)
    }

    fn intake(&mut self, frame: &[u8]) -> usize {
        let data = [&[0; HEADER], frame].concat();
        let card = &mut self.card;
        let taken = self
            .gate
            .ledger
            .bus_master_session(0, &self.memory, |gate| card.intake(NETWORK, &data, gate));
        assert!(taken == 0 || taken == data.len(), "a frame is taken whole or not at all");
        taken
    }

    /// Puts a descriptor into the transmit ring.
    fn describe(&mut self, index: usize, words: [u32; 4]) {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        self.memory.put(TX_RING + index * 16, &bytes);
    }

    /// The frames that the card has sent, without their headers.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let frame = |request: Request| match request {
            Request::Effect(EffectOp::NetTx { port: NETWORK, frame }) => {
                let bytes = frame.inline_bytes().unwrap_or_default();
                assert_eq!(bytes[..HEADER], [0; HEADER]);
                bytes[HEADER..].to_vec()
            }
            other => panic!("{other:?}"),
        };
        self.gate.requests().into_iter().map(frame).collect()
    }

    /// The receive descriptor after the card wrote to it: length, status, tag.
    fn received(&self, index: usize) -> (u16, u8, u16) {
        let bytes = self.memory.get(RX_RING + index * 16 + 8, 8);
        let word = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (word(0), bytes[4], word(6))
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|index| index as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

#[test]
fn a_packet_of_two_descriptors_is_one_frame() {
    let mut bench = Bench::up();
    let packet = frame([1; 6], 100);
    bench.memory.put(BUFFERS, &packet);
    bench.describe(0, [BUFFERS as u32, 0, 40, 0]);
    bench.describe(1, [BUFFERS as u32 + 40, 0, 60 | END_AND_REPORT, 0]);
    bench.write(reg::TDT, 1);
    assert!(bench.frames().is_empty(), "its end is not there yet");
    bench.write(reg::TDT, 2);
    assert_eq!(bench.frames(), [packet]);
    assert_eq!(bench.read(reg::TDH), 2);
    assert_eq!(
        (bench.memory.get(TX_RING + 12, 1), bench.memory.get(TX_RING + 28, 1)),
        (vec![0], vec![1])
    );
    assert_eq!(bench.card.line(), LineState::Level(true));
    assert_eq!(bench.read(reg::ICR), cause::TX_DONE | cause::TX_EMPTY);
    assert_eq!(bench.card.line(), LineState::Level(false));
    assert_eq!([0x4080, 0x40d4, 0x40d4].map(|offset| bench.read(offset)), [1, 1, 0]);
}

#[test]
fn checksums_are_inserted_as_the_context_says() {
    let mut bench = Bench::up();
    bench.memory.put(BUFFERS, &[1; 64]);
    bench.describe(0, [0, 34 | 50 << 8, EXTENDED, 0]);
    let data = 64 | END_AND_REPORT | EXTENDED | 1 << 20;
    bench.describe(1, [BUFFERS as u32, 0, data, 2 << 8]);
    bench.write(reg::TDT, 2);
    // 15 words of 0x0101, inverted.
    let mut expected = vec![1; 64];
    expected[50..52].copy_from_slice(&(!(15 * 0x0101_u16)).to_be_bytes());
    assert_eq!(bench.frames(), [expected]);
}

#[test]
fn a_packet_is_cut_into_segments_with_right_checksums() {
    let mut bench = Bench::up();
    let mut packet = vec![3; 54 + 2500];
    packet[14..34]
        .copy_from_slice(&[0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    // The sum of the pseudo header without a length.
    packet[50..52].copy_from_slice(&(0x0a00_u16 * 2 + 3 + 6).to_be_bytes());
    bench.memory.put(BUFFERS, &packet);
    let tcp4 = EXTENDED | 0x0700_0000;
    bench.describe(0, [14 | 24 << 8 | 33 << 16, 34 | 50 << 8, 2500 | tcp4, 54 << 8 | 1000 << 16]);
    let data = packet.len() as u32 | END_AND_REPORT | EXTENDED | 1 << 20 | 1 << 26;
    bench.describe(1, [BUFFERS as u32, 0, data, 3 << 8]);
    bench.write(reg::TDT, 2);
    let frames = bench.frames();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
    for frame in frames {
        assert_eq!(sum(&frame[14..34], 0), 0xffff, "of the IP header");
        let length = frame.len() - 34;
        let pseudo = 0x0a00 * 2 + 3 + 6 + length as u32;
        assert_eq!(sum(&frame[34..], pseudo), 0xffff, "of TCP");
    }
}

/// A one's complement sum, computed as by a receiver.
fn sum(bytes: &[u8], begin: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + begin;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn a_frame_waits_until_there_is_room() {
    let mut bench = Bench::up();
    let arriving = frame(MAC, 100);
    assert_eq!(bench.intake(&arriving), 0, "the driver has given no buffer");
    bench.write(reg::RDT, 2);
    assert_eq!(bench.intake(&arriving), HEADER + 100);
    assert_eq!(bench.memory.get(BUFFERS + 0x8000, 100), arriving);
    // The check sequence is part of the length.
    assert_eq!(bench.received(0), (104, 0b111, 0));
    assert_eq!(bench.read(reg::RDH), 1);
    assert_eq!(bench.read(reg::ICR), cause::RX_TIMER | cause::RX_LOW);
    // This frame needs two buffers, and one is free.
    bench.write(reg::RCTL, 2 | 1 << 15 | 1 << 5);
    assert_eq!(bench.intake(&frame([0xff; 6], 3000)), 0);
    bench.write(reg::RDT, 3);
    assert_eq!(bench.intake(&frame([0xff; 6], 3000)), HEADER + 3000);
    assert_eq!((bench.received(1), bench.received(2)), ((2048, 0b101, 0), (956, 0b111, 0)));
}

#[test]
fn filters_decide_what_is_taken() {
    let taken = |set_up: &[(u32, u32)], to: [u8; 6]| {
        let mut bench = Bench::up();
        bench.write(reg::RDT, 7);
        set_up.iter().for_each(|(offset, value)| bench.write(*offset, *value));
        assert_eq!(bench.intake(&frame(to, 60)), HEADER + 60, "none is left waiting");
        bench.read(reg::RDH) == 1
    };
    let group = [1, 0, 0x5e, 0, 0, 0xfb];
    assert!(taken(&[], MAC) && taken(&[], [0xff; 6]));
    assert!(!taken(&[], [2; 6]) && !taken(&[], group));
    assert!(!taken(&[(reg::RCTL, 2)], [0xff; 6]));
    assert!(!taken(&[(reg::RCTL, 1 << 15)], MAC), "the receiver is off");
    assert!(taken(&[(reg::RCTL, 2 | 1 << 3)], [2; 6]) && taken(&[(reg::RCTL, 2 | 1 << 4)], group));
    // The hash is the upper twelve bits of the address's last two bytes.
    let hash = 0xfb00_u32 >> 4;
    assert!(taken(&[(reg::MTA + hash / 32 * 4, 1 << (hash % 32))], group));
    assert!(taken(&[(reg::RA + 8, 0x0202_0202), (reg::RA + 12, 0x8000_0202)], [2; 6]));
}

#[test]
fn tags_are_taken_out_and_put_in() {
    let mut bench = Bench::up();
    bench.write(reg::CTRL, 1 << 30);
    bench.write(reg::RDT, 7);
    let mut tagged = frame(MAC, 68);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 42]);
    let _ = bench.intake(&tagged);
    assert_eq!(bench.received(0), (68, 0b1111, 42));
    tagged.drain(12..16);
    assert_eq!(bench.memory.get(BUFFERS + 0x8000, 64), tagged);
    bench.memory.put(BUFFERS, &tagged);
    bench.describe(0, [BUFFERS as u32, 0, 64 | END_AND_REPORT | 1 << 30, 42 << 16]);
    bench.write(reg::TDT, 1);
    assert_eq!(bench.frames()[0][12..16], [0x81, 0, 0, 42]);
}

#[test]
fn the_ports_reach_the_registers_and_reset_the_card() {
    let mut bench = Bench::up();
    let (address, data) = (E1000::WINDOW as u32, E1000::WINDOW as u32 + 4);
    bench.write(address, reg::RDLEN);
    assert_eq!((bench.read(address), bench.read(data)), (reg::RDLEN, RING * 16));
    bench.write(address, reg::CTRL);
    bench.write(data, 1 << 26);
    assert_eq!(
        (bench.read(reg::RDLEN), bench.read(reg::IMS), bench.read(reg::CTRL) >> 26),
        (0, 0, 0)
    );
    assert_eq!(bench.read(reg::STATUS) & 2, 2, "the link is up");
    // Accesses beyond the registers, and narrow ones.
    bench.write(address, u32::MAX);
    assert_eq!(bench.read(data), 0);
    bench.write_bytes(reg::FCT.into(), &[1]);
    assert_eq!(bench.read(reg::FCT), 0);
}

#[test]
fn its_state_comes_back_in_the_middle_of_a_packet() {
    let mut bench = Bench::up();
    bench.memory.put(BUFFERS, &frame([1; 6], 100));
    bench.describe(0, [BUFFERS as u32, 0, 40, 0]);
    bench.describe(1, [BUFFERS as u32 + 40, 0, 60 | END_AND_REPORT, 0]);
    bench.write(reg::TDT, 1);
    let saved = bench.card.save();
    let mut other = E1000::new([2; 6]);
    assert_eq!(other.restore(&saved), Ok(()));
    assert_eq!(other, bench.card);
    bench.card = other;
    bench.write(reg::TDT, 2);
    assert_eq!(bench.frames(), [frame([1; 6], 100)]);
    bench.card.reset();
    assert_eq!(bench.card, E1000::new(MAC));
}

/// For any accesses of a driver: the card does not panic, its work ends, and its state can be saved
/// and restored.
#[test]
fn a_storm_of_accesses_is_weathered() {
    let mut bench = Bench::up();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let favourites = [
        reg::CTRL,
        reg::EECD,
        reg::EERD,
        reg::MDIC,
        reg::RCTL,
        reg::TCTL,
        reg::TDT,
        reg::TDH,
        reg::TDLEN,
        reg::TDBAL,
        reg::RDT,
        reg::RDH,
        reg::RDLEN,
        reg::RDBAL,
        reg::ICS,
        reg::VET,
    ];
    for step in 0..4_000 {
        let value = match random.below(4) {
            0 => random.next() as u32,
            1 => random.below(64) as u32,
            2 => 1 << random.below(32) | 2,
            // Rings in memory with a few descriptors.
            _ => (random.below(0x8000) as u32) << 4,
        };
        let offset = match random.below(4) {
            0 => random.below(0x2_0040) as u32,
            _ => favourites[random.below(favourites.len() as u64) as usize],
        };
        match random.below(8) {
            0 => {
                let at = random.below(0x8_0000) as usize;
                let bytes: Vec<u8> = (0..64).map(|_| random.next() as u8).collect();
                bench.memory.put(at, &bytes);
            }
            1 => {
                let len = random.below(3000) as usize;
                let _ = bench.intake(&vec![random.next() as u8; len]);
            }
            2 => {
                let _ = bench.read(offset);
            }
            _ => bench.write(offset, value),
        }
        let _ = bench.gate.requests();
        if step % 64 == 0 {
            let mut other = E1000::new(MAC);
            assert_eq!(other.restore(&bench.card.save()), Ok(()), "step {step}");
            assert_eq!(other, bench.card);
        }
    }
}

/// Numbers from a seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
