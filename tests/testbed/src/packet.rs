//! Encodes and parses the packets of a host that speaks only ARP, and UDP over IPv4.

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};

use crate::capture::Mac;

const BROADCAST: Mac = [0xff; 6];
const TIME_TO_LIVE: u8 = 64;

/// A host's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The Ethernet address.
    pub mac: Mac,
    /// The IPv4 address.
    pub ip: Ipv4Addr,
}

/// A packet for this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A host asks for our Ethernet address.
    ArpRequest(Host),
    /// A host answers with its Ethernet address.
    ArpReply(Host),
    /// A datagram.
    Udp {
        /// The sender.
        from: Ipv4Addr,
        /// The sender's port.
        source_port: u16,
        /// Our port.
        port: u16,
        /// The content.
        payload: &'a [u8],
    },
}

impl Host {
    /// The frame that asks for the Ethernet address of `ip`.
    pub fn arp_request(&self, ip: Ipv4Addr) -> Vec<u8> {
        self.arp(ArpOperation::REQUEST, BROADCAST, Host { mac: [0; 6], ip })
    }

    /// The frame that answers an ARP request of `asker`.
    pub fn arp_reply(&self, asker: Host) -> Vec<u8> {
        self.arp(ArpOperation::REPLY, asker.mac, asker)
    }

    fn arp(&self, operation: ArpOperation, to: Mac, target: Host) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation,
            sender_mac: self.mac,
            sender_ipv4: self.ip.octets(),
            target_mac: target.mac,
            target_ipv4: target.ip.octets(),
        };
        let builder = PacketBuilder::ethernet2(self.mac, to).arp(packet.to_arp_packet());
        let mut frame = Vec::with_capacity(builder.size());
        builder.write(&mut frame).expect("a vector takes everything");
        frame
    }

    /// The frame that carries `payload` to `to`.
    pub fn udp(&self, to: Host, source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac, to.mac)
            .ipv4(self.ip.octets(), to.ip.octets(), TIME_TO_LIVE)
            .udp(source_port, port);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, payload).expect("a vector takes everything");
        frame
    }

    /// Parses `frame`; `None` if it is for another host or has an unknown protocol.
    pub fn parse<'a>(&self, frame: &'a [u8]) -> Option<Incoming<'a>> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        match packet.net? {
            NetSlice::Arp(arp) => self.parse_arp(&arp.to_packet().try_eth_ipv4().ok()?),
            NetSlice::Ipv4(ip) if ip.header().destination_addr() == self.ip => {
                let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
                Some(Incoming::Udp {
                    from: ip.header().source_addr(),
                    source_port: udp.source_port(),
                    port: udp.destination_port(),
                    payload: udp.payload(),
                })
            }
            _ => None,
        }
    }

    fn parse_arp(&self, arp: &ArpEthIpv4Packet) -> Option<Incoming<'static>> {
        if arp.target_ipv4_addr() != self.ip {
            return None;
        }
        let sender = Host { mac: arp.sender_mac, ip: arp.sender_ipv4_addr() };
        match arp.operation {
            ArpOperation::REQUEST => Some(Incoming::ArpRequest(sender)),
            ArpOperation::REPLY => Some(Incoming::ArpReply(sender)),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: Host = Host { mac: [2, 0, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 1, 1, 1) };
    const TWO: Host = Host { mac: [2, 0, 0, 0, 0, 2], ip: Ipv4Addr::new(10, 1, 1, 2) };

    #[test]
    fn two_hosts_find_each_other() {
        assert_eq!(TWO.parse(&ONE.arp_request(TWO.ip)), Some(Incoming::ArpRequest(ONE)));
        assert_eq!(ONE.parse(&TWO.arp_reply(ONE)), Some(Incoming::ArpReply(TWO)));
        assert_eq!(ONE.parse(&ONE.arp_request(TWO.ip)), None);
    }

    #[test]
    fn a_datagram_arrives_whole_and_only_where_it_should() {
        let frame = ONE.udp(TWO, 5, 6, b"content");
        let expected = Incoming::Udp { from: ONE.ip, source_port: 5, port: 6, payload: b"content" };
        assert_eq!(TWO.parse(&frame), Some(expected));
        assert_eq!(ONE.parse(&frame), None);
        assert_eq!(TWO.parse(&frame[..30]), None);
    }
}
