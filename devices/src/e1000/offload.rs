//! Work that drivers leave to the card: checksums, segmentation, VLAN tags (8254x manual, 3.3 to
//! 3.5).

use alloc::vec::Vec;

/// The longest packet that the card assembles, in bytes: 64 KiB and an Ethernet header.
pub(super) const MAX_PACKET: usize = 65550;
/// The shortest payload of a segment, in bytes. A packet becomes at most about 2000 frames, which
/// limits what the card stages at once. TCP's smallest segment with options is 48 bytes. A driver
/// whose peer accepts less must segment by itself.
const MIN_SEGMENT: usize = 32;
/// Bytes of the two addresses of a frame. A VLAN tag is inserted after them.
const ADDRESSES: usize = 12;

/// A checksum: the bytes that it covers, and its destination. Offsets count from the frame's
/// beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checksum {
    /// First byte.
    pub(super) start: u8,
    /// Destination of the checksum.
    pub(super) offset: u8,
    /// Last byte; 0 for the frame's end.
    pub(super) end: u16,
}

/// A transmit context: the driver's settings for the frames that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// The checksum of the IP header.
    pub(super) ip: Checksum,
    /// The checksum of TCP or UDP.
    pub(super) transport: Checksum,
    /// Bytes of a frame's headers.
    pub(super) header: u8,
    /// Bytes of payload in each segment.
    pub(super) segment: u16,
    /// Whether it is TCP; UDP otherwise.
    pub(super) tcp: bool,
    /// Whether it is IPv4; IPv6 otherwise.
    pub(super) ipv4: bool,
}

impl Context {
    /// Reads a context descriptor.
    pub(super) fn read(words: [u32; 4]) -> Self {
        let checksum = |word: u32| Checksum {
            start: word as u8,
            offset: (word >> 8) as u8,
            end: (word >> 16) as u16,
        };
        Self {
            ip: checksum(words[0]),
            transport: checksum(words[1]),
            header: (words[3] >> 8) as u8,
            segment: (words[3] >> 16) as u16,
            tcp: words[2] >> 24 & 1 != 0,
            ipv4: words[2] >> 25 & 1 != 0,
        }
    }

    /// The context as four numbers for the saved state; the reverse of [`read`](Self::read).
    pub(super) fn words(&self) -> [u32; 4] {
        let checksum = |sum: &Checksum| {
            u32::from(sum.start) | u32::from(sum.offset) << 8 | u32::from(sum.end) << 16
        };
        [
            checksum(&self.ip),
            checksum(&self.transport),
            u32::from(self.tcp) << 24 | u32::from(self.ipv4) << 25,
            u32::from(self.header) << 8 | u32::from(self.segment) << 16,
        ]
    }
}

/// Inserts a checksum into a frame. A checksum outside the frame is ignored.
pub(super) fn insert_checksum(frame: &mut [u8], what: Checksum) {
    let (start, offset) = (usize::from(what.start), usize::from(what.offset));
    let end = match what.end {
        0 => frame.len(),
        end => frame.len().min(usize::from(end) + 1),
    };
    if start >= end || offset + 2 > frame.len() {
        return;
    }
    let sum = !ones_complement(&frame[start..end]);
    frame[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The one's complement sum (RFC 1071).
fn ones_complement(bytes: &[u8]) -> u16 {
    let mut words = bytes.chunks_exact(2);
    let mut sum: u64 =
        words.by_ref().map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    fold(sum)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Cuts a packet into segments, each with its own headers, and passes them to `emit`. An invalid
/// context gives no segments.
pub(super) fn segment(packet: &[u8], context: &Context, mut emit: impl FnMut(Vec<u8>)) {
    let header = usize::from(context.header);
    let size = usize::from(context.segment);
    if header == 0 || size < MIN_SEGMENT || packet.len() <= header {
        return;
    }
    let (headers, payload) = packet.split_at(header);
    let last = (payload.len() - 1) / size;
    for (index, piece) in payload.chunks(size).enumerate() {
        let mut frame = Vec::with_capacity(header + piece.len());
        frame.extend_from_slice(headers);
        frame.extend_from_slice(piece);
        let position = Position { index, offset: index * size, last: index == last };
        adjust_ip(&mut frame, context, position);
        adjust_transport(&mut frame, context, position);
        emit(frame);
    }
}

/// The position of a segment in its packet.
#[derive(Clone, Copy)]
struct Position {
    index: usize,
    offset: usize,
    last: bool,
}

fn adjust_ip(frame: &mut [u8], context: &Context, position: Position) {
    /// The length in an IPv6 header does not count that header.
    const IPV6_HEADER: usize = 40;
    let start = usize::from(context.ip.start);
    let len = frame.len().saturating_sub(start);
    if context.ipv4 {
        put(frame, start + 2, len as u16);
        if let Some(identifier) = get(frame, start + 4) {
            put(frame, start + 4, identifier.wrapping_add(position.index as u16));
        }
    } else {
        put(frame, start + 4, len.saturating_sub(IPV6_HEADER) as u16);
    }
}

fn adjust_transport(frame: &mut [u8], context: &Context, position: Position) {
    const FLAGS: usize = 13;
    const FIN_AND_PUSH: u8 = 0x09;
    const WINDOW_REDUCED: u8 = 0x80;
    let start = usize::from(context.transport.start);
    let len = frame.len().saturating_sub(start);
    if context.tcp {
        if let (Some(high), Some(low)) = (get(frame, start + 4), get(frame, start + 6)) {
            let sequence = u32::from(high) << 16 | u32::from(low);
            let sequence = sequence.wrapping_add(position.offset as u32);
            put(frame, start + 4, (sequence >> 16) as u16);
            put(frame, start + 6, sequence as u16);
        }
        if let Some(flags) = frame.get_mut(start + FLAGS) {
            if !position.last {
                *flags &= !FIN_AND_PUSH;
            }
            if position.index > 0 {
                *flags &= !WINDOW_REDUCED;
            }
        }
    } else {
        put(frame, start + 4, len as u16);
    }
    // At this place the driver has put the sum of the pseudo header without the length.
    let offset = usize::from(context.transport.offset);
    if let Some(pseudo) = get(frame, offset) {
        put(frame, offset, fold(u64::from(pseudo) + len as u64));
    }
}

fn get(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *bytes = value.to_be_bytes();
    }
}

/// Inserts a VLAN tag after the addresses.
pub(super) fn insert_tag(frame: &mut Vec<u8>, ethertype: u16, tag: u16) {
    if frame.len() >= ADDRESSES {
        let ([e0, e1], [t0, t1]) = (ethertype.to_be_bytes(), tag.to_be_bytes());
        frame.splice(ADDRESSES..ADDRESSES, [e0, e1, t0, t1]);
    }
}

/// The VLAN tag of a frame, if it has one.
pub(super) fn tag(frame: &[u8], ethertype: u16) -> Option<u16> {
    (get(frame, ADDRESSES)? == ethertype).then(|| get(frame, ADDRESSES + 2)).flatten()
}

/// Removes a VLAN tag.
pub(super) fn remove_tag(frame: &mut Vec<u8>) {
    if frame.len() >= ADDRESSES + 4 {
        frame.drain(ADDRESSES..ADDRESSES + 4);
    }
}

/// The frame check sequence (IEEE 802.3, 3.2.9), its bytes in the order of the wire.
pub(super) fn check_sequence(frame: &[u8]) -> [u8; 4] {
    let crc =
        frame.iter().fold(u32::MAX, |crc, byte| CRC[usize::from(crc as u8 ^ byte)] ^ crc >> 8);
    (!crc).to_le_bytes()
}

const CRC: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn sums_and_check_sequences_are_the_known_ones() {
        // The example of RFC 1071, 3.
        assert_eq!(ones_complement(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(ones_complement(&[0x01]), 0x0100);
        assert_eq!(check_sequence(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
    }

    #[test]
    fn a_checksum_outside_the_frame_is_left_out() {
        let mut frame = [1; 20];
        for (start, offset, end) in [(20, 0, 0), (0, 19, 0), (255, 255, 65535), (5, 0, 4)] {
            insert_checksum(&mut frame, Checksum { start, offset, end });
            assert_eq!(frame, [1; 20]);
        }
        insert_checksum(&mut frame, Checksum { start: 0, offset: 2, end: 3 });
        assert_eq!(frame[..4], [1, 1, 0xfd, 0xfd]);
    }

    #[test]
    fn contexts_come_back_from_their_words() {
        let words = [0x0021_1814, 0x0000_3222, 0x0312_3456, 0x05b4_3600];
        let context = Context::read(words);
        assert_eq!((context.header, context.segment), (0x36, 0x5b4));
        assert!(context.tcp && context.ipv4);
        assert_eq!(Context::read(context.words()), context);
    }

    /// IPv4 and TCP headers of 20 bytes each after an Ethernet header of 14.
    const TCP4: Context = Context {
        ip: Checksum { start: 14, offset: 24, end: 33 },
        transport: Checksum { start: 34, offset: 50, end: 0 },
        header: 54,
        segment: 100,
        tcp: true,
        ipv4: true,
    };

    #[test]
    fn segments_have_headers_of_their_own() {
        let mut packet = vec![0; 54 + 250];
        packet[18..20].copy_from_slice(&7_u16.to_be_bytes());
        packet[38..42].copy_from_slice(&u32::MAX.to_be_bytes());
        packet[47] = 0x99;
        let mut segments = Vec::new();
        segment(&packet, &TCP4, |frame| segments.push(frame));
        let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
        assert_eq!(lengths, [154, 154, 104]);
        let field = |at| segments.iter().map(|frame| get(frame, at)).collect::<Vec<_>>();
        assert_eq!(field(16), [Some(140), Some(140), Some(90)]);
        assert_eq!(field(18), [Some(7), Some(8), Some(9)]);
        assert_eq!(field(40), [Some(0xffff), Some(99), Some(199)]);
        let flags: Vec<u8> = segments.iter().map(|frame| frame[47]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
        // The TCP length of each segment, for its pseudo header.
        assert_eq!(field(50), [Some(120), Some(120), Some(70)]);
    }

    #[test]
    fn contexts_without_sense_give_nothing() {
        let give = |context: Context, len: usize| {
            let mut count = 0;
            segment(&vec![0; len], &context, |_| count += 1);
            count
        };
        assert_eq!(give(Context { segment: 0, ..TCP4 }, 300), 0);
        assert_eq!(give(Context { header: 0, ..TCP4 }, 300), 0);
        assert_eq!(give(TCP4, 54), 0);
        let far = Checksum { start: 255, offset: 255, end: 0 };
        assert_eq!(give(Context { ip: far, transport: far, ..TCP4 }, 300), 3);
    }

    #[test]
    fn tags_go_in_and_out() {
        let mut frame = vec![7; 60];
        insert_tag(&mut frame, 0x8100, 0x0005);
        assert_eq!((frame.len(), tag(&frame, 0x8100)), (64, Some(5)));
        remove_tag(&mut frame);
        assert_eq!((frame, tag(&[7; 60], 0x8100)), (vec![7; 60], None));
    }
}
