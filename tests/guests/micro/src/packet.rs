//! Ethernet, ARP, IPv4, ICMP echo and UDP (RFC 826, 791, 792, 768), as far as the guest needs them
//! to receive requests and to reply.

/// A hardware address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ip = [u8; 4];

const BROADCAST: Mac = [0xff; 6];
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const ARP: usize = 28;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const ICMP_ECHO: u8 = 8;
const TIME_TO_LIVE: u8 = 64;

/// The guest's own addresses.
#[derive(Clone, Copy)]
pub struct Own {
    /// The hardware address.
    pub mac: Mac,
    /// The IPv4 address.
    pub ip: Ip,
}

/// The destination of a reply.
#[derive(Clone, Copy)]
pub struct Peer {
    mac: Mac,
    ip: Ip,
    port: u16,
}

/// The content of a received frame.
pub enum Received<'a> {
    /// An ARP request for our address. Answer it with [`write_arp`].
    Arp(Peer),
    /// An ICMP echo request and its message. Answer it with [`write_echo`].
    Echo(Peer, &'a [u8]),
    /// A datagram to our address.
    Udp {
        /// The sender.
        peer: Peer,
        /// The destination port.
        port: u16,
        /// The payload.
        payload: &'a [u8],
    },
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// The Internet checksum (RFC 1071) of all `parts`. Each part except the last has an even length.
/// The result is 0 if the parts contain their correct checksum.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo_header(source: Ip, target: Ip, length: usize) -> [u8; 12] {
    let mut header = [0; 12];
    put(&mut header, 0, &source);
    put(&mut header, 4, &target);
    header[9] = PROTOCOL_UDP;
    put(&mut header, 10, &(length as u16).to_be_bytes());
    header
}

/// Parses a frame; `None` if it is for another host, damaged, or of a kind that the guest does not
/// answer.
pub fn read<'a>(frame: &'a [u8], own: &Own) -> Option<Received<'a>> {
    let (header, rest) = frame.split_at_checked(ETHERNET)?;
    let target: Mac = field(header, 0);
    if target != own.mac && target != BROADCAST {
        return None;
    }
    match get_u16(header, 12) {
        TYPE_ARP => read_arp(rest, own),
        TYPE_IPV4 => read_ipv4(field(header, 6), rest, own),
        _ => None,
    }
}

fn read_arp<'a>(arp: &[u8], own: &Own) -> Option<Received<'a>> {
    // Hardware type Ethernet, protocol IPv4, and a request for our address.
    let asks = arp.len() >= ARP
        && arp[..6] == [0, 1, 8, 0, 6, 4]
        && get_u16(arp, 6) == ARP_REQUEST
        && arp[24..28] == own.ip;
    asks.then(|| Received::Arp(Peer { mac: field(arp, 8), ip: field(arp, 14), port: 0 }))
}

fn read_ipv4<'a>(mac: Mac, packet: &'a [u8], own: &Own) -> Option<Received<'a>> {
    if packet.len() < IPV4 || packet[0] >> 4 != 4 {
        return None;
    }
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(get_u16(packet, 2));
    // Drop fragments: more follow, or this is not the first.
    let fragment = get_u16(packet, 6) & 0x3fff != 0;
    if header < IPV4 || total < header || total > packet.len() || fragment {
        return None;
    }
    if checksum(&[&packet[..header]]) != 0 || packet[16..20] != own.ip {
        return None;
    }
    let peer = Peer { mac, ip: field(packet, 12), port: 0 };
    let body = &packet[header..total];
    match packet[9] {
        PROTOCOL_ICMP => read_icmp(peer, body),
        PROTOCOL_UDP => read_udp(peer, body, own),
        _ => None,
    }
}

fn read_icmp(peer: Peer, message: &[u8]) -> Option<Received<'_>> {
    let asks = message.len() >= 8 && message[0] == ICMP_ECHO && checksum(&[message]) == 0;
    asks.then_some(Received::Echo(peer, message))
}

fn read_udp<'a>(mut peer: Peer, datagram: &'a [u8], own: &Own) -> Option<Received<'a>> {
    if datagram.len() < UDP {
        return None;
    }
    let length = usize::from(get_u16(datagram, 4));
    if length < UDP || length > datagram.len() {
        return None;
    }
    let datagram = &datagram[..length];
    let pseudo = pseudo_header(peer.ip, own.ip, length);
    // 0 means that the datagram has no checksum.
    if get_u16(datagram, 6) != 0 && checksum(&[&pseudo, datagram]) != 0 {
        return None;
    }
    peer.port = get_u16(datagram, 0);
    Some(Received::Udp { peer, port: get_u16(datagram, 2), payload: &datagram[UDP..] })
}

fn write_ethernet(out: &mut [u8], own: &Own, target: Mac, kind: u16) {
    put(out, 0, &target);
    put(out, 6, &own.mac);
    put(out, 12, &kind.to_be_bytes());
}

/// Writes an ARP reply to `peer`, and returns the frame's length.
pub fn write_arp(out: &mut [u8], own: &Own, peer: &Peer) -> usize {
    write_ethernet(out, own, peer.mac, TYPE_ARP);
    let arp = &mut out[ETHERNET..ETHERNET + ARP];
    put(arp, 0, &[0, 1, 8, 0, 6, 4]);
    put(arp, 6, &ARP_REPLY.to_be_bytes());
    put(arp, 8, &own.mac);
    put(arp, 14, &own.ip);
    put(arp, 18, &peer.mac);
    put(arp, 24, &peer.ip);
    ETHERNET + ARP
}

/// Writes an ARP announcement of our address to all hosts, and returns the frame's length.
pub fn write_announcement(out: &mut [u8], own: &Own) -> usize {
    let everybody = Peer { mac: BROADCAST, ip: own.ip, port: 0 };
    write_arp(out, own, &everybody)
}

fn write_ipv4(out: &mut [u8], own: &Own, peer: &Peer, protocol: u8, body: usize) {
    write_ethernet(out, own, peer.mac, TYPE_IPV4);
    let header = &mut out[ETHERNET..ETHERNET + IPV4];
    header.fill(0);
    header[0] = 0x45;
    put(header, 2, &((IPV4 + body) as u16).to_be_bytes());
    // Don't fragment: the identification may then be 0 (RFC 6864).
    header[6] = 0x40;
    header[8] = TIME_TO_LIVE;
    header[9] = protocol;
    put(header, 12, &own.ip);
    put(header, 16, &peer.ip);
    let sum = checksum(&[header]);
    put(header, 10, &sum.to_be_bytes());
}

/// Writes the reply to the echo request `message`. Returns the frame's length, or 0 if the reply
/// does not fit.
pub fn write_echo(out: &mut [u8], own: &Own, peer: &Peer, message: &[u8]) -> usize {
    let start = ETHERNET + IPV4;
    let end = start + message.len();
    if end > out.len() {
        return 0;
    }
    write_ipv4(out, own, peer, PROTOCOL_ICMP, message.len());
    let body = &mut out[start..end];
    body.copy_from_slice(message);
    body[0] = 0;
    put(body, 2, &[0, 0]);
    let sum = checksum(&[body]);
    put(body, 2, &sum.to_be_bytes());
    end
}

/// Writes a datagram with `payload` from `port` to `peer`, and returns the frame's length.
pub fn write_udp(out: &mut [u8], own: &Own, peer: &Peer, port: u16, payload: &[u8]) -> usize {
    let start = ETHERNET + IPV4;
    let length = UDP + payload.len();
    write_ipv4(out, own, peer, PROTOCOL_UDP, length);
    let body = &mut out[start..start + length];
    put(body, 0, &port.to_be_bytes());
    put(body, 2, &peer.port.to_be_bytes());
    put(body, 4, &(length as u16).to_be_bytes());
    put(body, 6, &[0, 0]);
    put(body, UDP, payload);
    let sum = checksum(&[&pseudo_header(own.ip, peer.ip, length), body]);
    // Send the equivalent value instead of 0, which means "no checksum".
    let sum = if sum == 0 { 0xffff } else { sum };
    put(body, 6, &sum.to_be_bytes());
    start + length
}
