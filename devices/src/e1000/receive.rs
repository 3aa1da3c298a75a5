//! The receiver: a frame that passes the filters goes into the driver's buffers (8254x manual,
//! 3.2).

use alloc::vec::Vec;

use io_gate::Gate;

use super::registers::{ADDRESS_VALID, reg};
use super::ring::{RECEIVE, Ring};
use super::{E1000, HEADER, cause, offload};

/// Bits of RCTL.
mod rctl {
    pub(super) const ENABLE: u32 = 1 << 1;
    pub(super) const ALL_UNICAST: u32 = 1 << 3;
    pub(super) const ALL_MULTICAST: u32 = 1 << 4;
    pub(super) const LONG: u32 = 1 << 5;
    pub(super) const THRESHOLD_SHIFT: u32 = 8;
    pub(super) const HASH_SHIFT: u32 = 12;
    pub(super) const BROADCAST: u32 = 1 << 15;
    pub(super) const SIZE_SHIFT: u32 = 16;
    pub(super) const TAG_FILTER: u32 = 1 << 18;
    pub(super) const SIZE_TIMES_16: u32 = 1 << 25;
    pub(super) const STRIP_CHECK: u32 = 1 << 26;
}

/// Bits of a descriptor's status: done, end of the frame, checksums not checked, tag removed.
const DONE: u8 = 1 << 0;
const END: u8 = 1 << 1;
const IGNORE_CHECKSUMS: u8 = 1 << 2;
const TAG: u8 = 1 << 3;

/// Offset in a descriptor of the fields that the card writes: length, checksum, status, errors,
/// tag.
const WRITE_BACK: u64 = 8;
/// The shortest valid frame, and the longest one without a tag.
const MIN_FRAME: usize = 14;
const MAX_FRAME: usize = 1514;
const TAG_BYTES: usize = 4;
/// The length to which a sender pads short frames, in bytes.
const WIRE_FRAME: usize = 60;

impl E1000 {
    /// Takes a frame with its header. Returns the number of bytes consumed: 0 if the driver must
    /// give more buffers first.
    pub(super) fn receive(&mut self, data: &[u8], gate: &mut Gate<'_>) -> usize {
        let control = self.registers.get(reg::RCTL);
        let Some(frame) = data.get(HEADER..).filter(|frame| frame.len() >= MIN_FRAME) else {
            return data.len();
        };
        if control & rctl::ENABLE == 0 || !self.wants(frame, control) {
            return data.len();
        }
        let mut frame = frame.to_vec();
        frame.resize(frame.len().max(WIRE_FRAME), 0);
        let tag = self.take_tag(&mut frame);
        let counted = frame.len();
        if control & rctl::STRIP_CHECK == 0 {
            let check = offload::check_sequence(&frame);
            frame.extend(check);
        }
        let Some(ring) = Ring::of(&self.registers, RECEIVE) else { return data.len() };
        let needed = frame.len().div_ceil(buffer_size(control));
        if needed >= ring.size as usize {
            return data.len();
        }
        if needed > ring.owned() as usize {
            return 0;
        }
        self.fill(ring, &frame, tag, control, gate);
        self.statistics.received(&frame[..counted]);
        data.len()
    }

    fn take_tag(&self, frame: &mut Vec<u8>) -> Option<u16> {
        let tag = offload::tag(frame, self.registers.get(reg::VET) as u16);
        let tag = tag.filter(|_| self.tags());
        if tag.is_some() {
            offload::remove_tag(frame);
        }
        tag
    }

    fn fill(
        &mut self,
        mut ring: Ring,
        frame: &[u8],
        tag: Option<u16>,
        control: u32,
        gate: &mut Gate<'_>,
    ) {
        let pieces = frame.chunks(buffer_size(control));
        let last = pieces.len() - 1;
        for (index, piece) in pieces.enumerate() {
            let descriptor = ring.read(gate);
            let address = u64::from_le_bytes(core::array::from_fn(|at| descriptor[at]));
            // A write outside of memory is lost, as on a bus.
            let _ = gate.dma_write(address, piece);
            let mut back = [0; 8];
            back[..2].copy_from_slice(&(piece.len() as u16).to_le_bytes());
            back[4] = DONE | IGNORE_CHECKSUMS;
            if index == last {
                back[4] |= END | if tag.is_some() { TAG } else { 0 };
                back[6..].copy_from_slice(&tag.unwrap_or_default().to_le_bytes());
            }
            ring.write(gate, WRITE_BACK, &back);
            ring.advance();
        }
        self.registers.put(RECEIVE.head, ring.head);
        self.causes |= cause::RX_TIMER;
        // The threshold is a half, a quarter or an eighth of the ring.
        let threshold = ring.size >> (1 + (control >> rctl::THRESHOLD_SHIFT & 3));
        if ring.owned() <= threshold {
            self.causes |= cause::RX_LOW;
        }
    }

    /// Whether a frame passes the filters.
    fn wants(&self, frame: &[u8], control: u32) -> bool {
        let tag = offload::tag(frame, self.registers.get(reg::VET) as u16);
        let longest = MAX_FRAME + if tag.is_some() { TAG_BYTES } else { 0 };
        if frame.len() > longest && control & rctl::LONG == 0 {
            return false;
        }
        if let Some(tag) = tag
            && control & rctl::TAG_FILTER != 0
        {
            let network = usize::from(tag & 0xfff);
            if self.registers.vfta[network / 32] >> (network % 32) & 1 == 0 {
                return false;
            }
        }
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if *to == [0xff; 6] {
            return control & (rctl::BROADCAST | rctl::ALL_MULTICAST) != 0 || self.is_ours(to);
        }
        let group = to[0] & 1 == 1;
        let all = if group { rctl::ALL_MULTICAST } else { rctl::ALL_UNICAST };
        control & all != 0 || self.is_ours(to) || group && self.hashed(to, control)
    }

    fn is_ours(&self, to: &[u8; 6]) -> bool {
        let low = u32::from_le_bytes([to[0], to[1], to[2], to[3]]);
        let high = u32::from(u16::from_le_bytes([to[4], to[5]])) | ADDRESS_VALID;
        let known = ADDRESS_VALID | 0xffff;
        self.registers.ra.chunks_exact(2).any(|pair| pair[0] == low && pair[1] & known == high)
    }

    fn hashed(&self, to: &[u8; 6], control: u32) -> bool {
        let shift = [4, 3, 2, 0][(control >> rctl::HASH_SHIFT & 3) as usize];
        let hash = usize::from(u16::from_le_bytes([to[4], to[5]]) >> shift & 0xfff);
        self.registers.mta[hash / 32] >> (hash % 32) & 1 == 1
    }
}

/// The size of each of the driver's buffers, in bytes.
fn buffer_size(control: u32) -> usize {
    match (control & rctl::SIZE_TIMES_16 != 0, control >> rctl::SIZE_SHIFT & 3) {
        (false, code) => 2048 >> code,
        (true, 1) => 16384,
        (true, 2) => 8192,
        (true, 3) => 4096,
        // Reserved.
        (true, _) => 2048,
    }
}
