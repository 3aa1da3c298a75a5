//! The transmitter (8254x manual, 3.3): it assembles packets from descriptors, and makes one or
//! more frames of each packet.

use alloc::vec::Vec;

use io_gate::{Gate, NetTx};

use super::offload::{Checksum, Context, MAX_PACKET};
use super::registers::reg;
use super::ring::{Ring, TRANSMIT};
use super::{E1000, HEADER, NETWORK, cause, ctrl, offload};

/// Bits of TCTL: the transmitter is enabled, and short frames are padded.
const ENABLE: u32 = 1 << 1;
const PAD_SHORT: u32 = 1 << 3;
/// The shortest frame without its check sequence, in bytes.
const MIN_FRAME: usize = 60;
/// Offset of the status in a descriptor.
const STATUS: u64 = 12;
/// The status of a descriptor that the card has processed.
const DONE: u8 = 1;

/// Limits of one call, in descriptors and in bytes, so that a driver cannot keep a thread busy.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_BYTES: usize = 256 << 10;

/// Bits of a descriptor's command.
mod command {
    pub(super) const END: u32 = 1 << 24;
    /// Legacy: insert a checksum.
    pub(super) const CHECKSUM: u32 = 1 << 26;
    /// In a data descriptor: cut the packet into segments. In a context descriptor: the context is
    /// for packets that are cut.
    pub(super) const SEGMENT: u32 = 1 << 26;
    pub(super) const REPORT: u32 = 1 << 27;
    pub(super) const EXTENDED: u32 = 1 << 29;
    pub(super) const TAG: u32 = 1 << 30;
    /// The type of an extended descriptor: data, or a context.
    pub(super) const TYPE: u32 = 0xf << 20;
    pub(super) const DATA: u32 = 1 << 20;
}

/// Bits of a data descriptor: insert the IP header's checksum, insert the TCP or UDP checksum.
const INSERT_IP: u8 = 1;
const INSERT_TRANSPORT: u8 = 2;

/// A packet that is being assembled, and the contexts for later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transmit {
    /// The bytes so far.
    pub(super) packet: Vec<u8>,
    /// Whether its first descriptor was seen.
    pub(super) begun: bool,
    /// Whether it is invalid (for instance too long) and will be dropped.
    pub(super) spoiled: bool,
    /// The checksums that its first descriptor requests.
    pub(super) insert: u8,
    /// Whether it will be cut into segments.
    pub(super) segmented: bool,
    /// The context for packets that are not cut.
    pub(super) plain: Context,
    /// The context for packets that are cut.
    pub(super) segments: Context,
}

/// A descriptor's words.
fn words(descriptor: &[u8; 16]) -> [u32; 4] {
    core::array::from_fn(|index| {
        let bytes = &descriptor[index * 4..index * 4 + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    })
}

impl E1000 {
    /// Processes descriptors from the ring, up to the limits. Returns whether more are left.
    pub(super) fn transmit(&mut self, gate: &mut Gate<'_>) -> bool {
        if self.registers.get(reg::TCTL) & ENABLE == 0 {
            return false;
        }
        let Some(mut ring) = Ring::of(&self.registers, TRANSMIT) else { return false };
        if ring.owned() == 0 {
            return false;
        }
        let mut bytes = 0;
        for _ in 0..ring.owned().min(MAX_DESCRIPTORS) {
            if bytes >= MAX_BYTES || gate.is_full() {
                break;
            }
            let descriptor = words(&ring.read(gate));
            bytes += self.take_descriptor(descriptor, gate);
            if descriptor[2] & command::REPORT != 0 {
                ring.write(gate, STATUS, &[descriptor[3] as u8 | DONE]);
                self.causes |= cause::TX_DONE;
            }
            ring.advance();
        }
        self.registers.put(TRANSMIT.head, ring.head);
        let more = ring.owned() > 0;
        self.causes |= if more { 0 } else { cause::TX_EMPTY };
        more
    }

    /// Processes a descriptor. Returns the number of bytes that it names.
    fn take_descriptor(&mut self, words: [u32; 4], gate: &mut Gate<'_>) -> usize {
        let command = words[2];
        let extended = command & command::EXTENDED != 0;
        if extended && command & command::TYPE != command::DATA {
            let context = Context::read(words);
            if command & command::SEGMENT != 0 {
                self.transmit.segments = context;
                self.statistics.segmented();
            } else {
                self.transmit.plain = context;
            }
            return 0;
        }
        let length = (command & if extended { 0x000f_ffff } else { 0xffff }) as usize;
        if !self.transmit.begun {
            self.transmit.begun = true;
            self.transmit.insert = if extended { (words[3] >> 8) as u8 } else { 0 };
            self.transmit.segmented = extended && command & command::SEGMENT != 0;
        }
        let address = u64::from(words[1]) << 32 | u64::from(words[0]);
        self.append(address, length, gate);
        if command & command::END != 0 {
            if !extended && command & command::CHECKSUM != 0 {
                let sum = Checksum {
                    start: (words[3] >> 8) as u8,
                    offset: (command >> 16) as u8,
                    end: 0,
                };
                offload::insert_checksum(&mut self.transmit.packet, sum);
            }
            let tagged = command & command::TAG != 0 && self.tags();
            self.end_packet(tagged.then_some((words[3] >> 16) as u16), gate);
        }
        length
    }

    /// Whether VLAN tags are inserted and removed.
    pub(super) fn tags(&self) -> bool {
        self.registers.get(reg::CTRL) & ctrl::TAGS != 0
    }

    fn append(&mut self, address: u64, length: usize, gate: &Gate<'_>) {
        let transmit = &mut self.transmit;
        let begin = transmit.packet.len();
        if transmit.spoiled || begin + length > MAX_PACKET {
            transmit.spoiled = true;
            transmit.packet.clear();
            return;
        }
        transmit.packet.resize(begin + length, 0);
        if gate.dma_read(address, &mut transmit.packet[begin..]).is_err() {
            transmit.spoiled = true;
        }
    }

    fn end_packet(&mut self, tag: Option<u16>, gate: &mut Gate<'_>) {
        let idle = Transmit {
            plain: self.transmit.plain,
            segments: self.transmit.segments,
            ..Transmit::default()
        };
        let done = core::mem::replace(&mut self.transmit, idle);
        if done.spoiled {
            return;
        }
        if done.segmented {
            offload::segment(&done.packet, &done.segments, |frame| {
                self.send(frame, &done.segments, done.insert, tag, gate);
            });
        } else {
            self.send(done.packet, &done.plain, done.insert, tag, gate);
        }
    }

    fn send(
        &mut self,
        mut frame: Vec<u8>,
        context: &Context,
        insert: u8,
        tag: Option<u16>,
        gate: &mut Gate<'_>,
    ) {
        if insert & INSERT_TRANSPORT != 0 {
            offload::insert_checksum(&mut frame, context.transport);
        }
        if insert & INSERT_IP != 0 {
            offload::insert_checksum(&mut frame, context.ip);
        }
        if let Some(tag) = tag {
            offload::insert_tag(&mut frame, self.registers.get(reg::VET) as u16, tag);
        }
        if frame.len() < MIN_FRAME && self.registers.get(reg::TCTL) & PAD_SHORT != 0 {
            frame.resize(MIN_FRAME, 0);
        }
        if frame.is_empty() {
            return;
        }
        self.statistics.sent(&frame);
        // The card has done all offloads, so the header requests none.
        frame.splice(0..0, [0; HEADER]);
        gate.token::<NetTx>().emit(NETWORK, frame);
    }
}
