//! Tests that every device keeps the contract, and that no request of a guest makes it panic.

use io_gate::Port;
use io_gate_contract::{RegisterContract, VirtioContract};
use kemari_devices::{Block, BlockConfig, Console, E1000, Entropy, Net, NetConfig, PowerControl};

const PORT: Port = Port(0);

/// A request header of virtio-blk (virtio 1.2, 5.2.6).
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn block(read_only: bool, queues: u16) -> VirtioContract {
    let (input, output, flush, identify, discard, zero) = (0, 1, 4, 8, 11, 13);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let write = |sector: u64, fill: u8| [header(output, sector), vec![fill; 1024]].concat();
    VirtioContract::new(move || {
        let serial = b"contract".to_vec();
        Box::new(Block::new(BlockConfig { sectors: 64, read_only, serial, queues }))
    })
    .request(0, &write(3, 0xaa), 1)
    .request(0, &header(input, 3), 1025)
    .request(0, &header(flush, 0), 1)
    .needs(F_FLUSH)
    .request(0, &header(identify, 0), 21)
    .request(0, &[header(discard, 0), range(8, 8, 0)].concat(), 1)
    .needs(F_DISCARD)
    .request(0, &[header(zero, 0), range(16, 4, 1)].concat(), 1)
    .needs(F_WRITE_ZEROES)
    .request(queues - 1, &write(63, 0xbb), 1)
    .request(queues - 1, &header(input, 1), 513)
    .needs(if queues > 1 { F_MQ } else { 0 })
    .request(0, &write(1 << 40, 0xcc), 1)
    // Two reads that the device refuses, and a write with room for data.
    .request(0, &header(input, 1 << 40), 1025)
    .request(0, &header(input, 0), 1000)
    .request(0, &write(4, 0xdd), 513)
    .request(0, &header(99, 0), 1)
    .without_requests(F_SIZE_MAX | F_SEG_MAX | F_RO | F_BLK_SIZE)
}

// Feature bits of virtio-blk (virtio 1.2, 5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

#[test]
fn block_keeps_it() {
    block(false, 1).check();
}

#[test]
fn block_bears_any_guest() {
    block(false, 4).fuzz();
}

#[test]
fn block_keeps_it_read_only() {
    block(true, 1).check();
}

#[test]
fn block_keeps_it_with_several_queues() {
    block(false, 4).check();
}

/// Feature bits of virtio-net (5.1.3).
mod net_features {
    pub(crate) const CSUM: u64 = 1 << 0;
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    pub(crate) const MAC: u64 = 1 << 5;
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    pub(crate) const GUEST_ECN: u64 = 1 << 9;
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    pub(crate) const HOST_ECN: u64 = 1 << 13;
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    pub(crate) const STATUS: u64 = 1 << 16;
    pub(crate) const CTRL_VQ: u64 = 1 << 17;
    pub(crate) const MQ: u64 = 1 << 22;
}

fn net(offloads: bool, pairs: u16) -> VirtioContract {
    use net_features::*;
    let frame = |fill: u8, len: usize| [vec![0; 12], vec![fill; len]].concat();
    // The flags and the segment type of a frame (5.1.6).
    let left = |flags: u8, segments: u8| [&[flags, segments][..], &[0; 10], &[8; 60]].concat();
    let mac = [2, 0, 0, 0, 0, 1];
    let mut contract =
        VirtioContract::new(move || Box::new(Net::new(NetConfig { mac, offloads, pairs })))
            .request(1, &frame(1, 60), 0)
            .input(PORT, &frame(2, 60), 1600)
            .request(1, &frame(3, 1514), 0)
            .input(PORT, &frame(4, 1514), 1600)
            // A frame that is longer than a chain: only a driver with merged buffers gets it.
            .input(PORT, &frame(7, 9000), 1536)
            .needs(MRG_RXBUF)
            .request(1, &frame(5, 0), 0)
            .request(1, &frame(6, 60), 0)
            .without_requests(MAC | STATUS);
    // Frames that leave work to the receiver. Without offloads, one such frame shows that the
    // device refuses it.
    let of_all = if offloads { 4 } else { 1 };
    for (flags, segments, of_guest, of_host) in [
        (1, 0, CSUM, GUEST_CSUM),
        (1, 1, CSUM | HOST_TSO4, GUEST_CSUM | GUEST_TSO4),
        (1, 4, CSUM | HOST_TSO6, GUEST_CSUM | GUEST_TSO6),
        (1, 0x81, CSUM | HOST_TSO4 | HOST_ECN, GUEST_CSUM | GUEST_TSO4 | GUEST_ECN),
    ]
    .into_iter()
    .rev()
    .take(of_all)
    {
        contract = contract.request(1, &left(flags, segments), 0).needs(of_guest);
        contract = contract.input(PORT, &left(flags, segments), 1600).needs(of_host);
    }
    // UDP segmentation is never offered.
    contract.request(1, &left(1, 3), 0).needs(1 << 14)
}

#[test]
fn net_keeps_it() {
    net(false, 1).check();
}

#[test]
fn net_bears_any_guest() {
    with_queues().fuzz();
    net(true, 1).fuzz();
}

#[test]
fn net_keeps_it_with_offloads() {
    net(true, 1).check();
}

#[test]
fn net_keeps_it_with_several_queues() {
    with_queues().check();
}

fn with_queues() -> VirtioContract {
    // Requests all pairs, then fewer, then more than exist.
    let set = |pairs: u16| [4, 0, pairs.to_le_bytes()[0], 0];
    use net_features::{CTRL_VQ, MQ};
    let contract = net(false, 3).request(6, &set(3), 1).needs(MQ | CTRL_VQ);
    let contract = contract.input(PORT, &[0; 200], 1600).request(5, &[0; 72], 0).needs(MQ);
    contract.request(6, &set(2), 1).request(6, &set(4), 1)
}

fn console() -> VirtioContract {
    VirtioContract::new(|| Box::new(Console::new()))
        .request(1, b"login: ", 0)
        .input(PORT, b"root\n", 3)
        .request(1, b"a longer line of output than the others\n", 0)
        .request(1, b"", 0)
}

#[test]
fn console_keeps_it() {
    console().check();
}

#[test]
fn console_bears_any_guest() {
    console().fuzz();
}

fn entropy() -> VirtioContract {
    VirtioContract::new(|| Box::new(Entropy::new()))
        .request(0, b"", 64)
        .request(0, b"", 1)
        .request(0, b"", 4096)
}

#[test]
fn entropy_keeps_it() {
    entropy().check();
}

#[test]
fn entropy_bears_any_guest() {
    entropy().fuzz();
}

fn power_control() -> RegisterContract {
    RegisterContract::new(|| Box::new(PowerControl::new()))
        .window(PowerControl::WINDOW)
        .read(4, 2)
        .write(2, &[0x20, 0x01])
        .read(2, 2)
        // Presses the button, clears it, and presses it again while it is disabled.
        .input(PowerControl::BUTTON, &[1])
        .read(0, 2)
        .write(0, &[0x00, 0x01])
        .write(2, &[0x00, 0x00])
        .input(PowerControl::BUTTON, &[1])
        .read(0, 4)
        .write(2, &[0x20, 0x01])
        // Writes the sleep type for power-off (S5), first without SLP_EN, then with it.
        .write(4, &(5_u16 << 10).to_le_bytes())
        .write(4, &(5_u16 << 10 | 1 << 13).to_le_bytes())
        .read(0, 4)
}

#[test]
fn power_control_keeps_it() {
    power_control().check();
}

#[test]
fn power_control_bears_any_guest() {
    power_control().fuzz();
}

mod e1000 {
    //! The e1000's registers that the example needs (82540EM manual, table 13-2).
    pub(crate) const STATUS: u64 = 0x8;
    pub(crate) const EERD: u64 = 0x14;
    pub(crate) const ICR: u64 = 0xc0;
    pub(crate) const IMS: u64 = 0xd0;
    pub(crate) const RCTL: u64 = 0x100;
    pub(crate) const TCTL: u64 = 0x400;
    pub(crate) const RDBAL: u64 = 0x2800;
    pub(crate) const RDLEN: u64 = 0x2808;
    pub(crate) const RDT: u64 = 0x2818;
    pub(crate) const TDBAL: u64 = 0x3800;
    pub(crate) const TDLEN: u64 = 0x3808;
    pub(crate) const TDT: u64 = 0x3818;
}

/// A legacy transmit descriptor: end of packet, insert the checksum of the frame, report status.
fn transmit(addr: u64, len: u16) -> Vec<u8> {
    [&addr.to_le_bytes()[..], &len.to_le_bytes(), &[0, 0b1011, 0, 0, 0, 0]].concat()
}

fn e1000_card() -> RegisterContract {
    use e1000::*;
    let frame: Vec<u8> =
        [vec![0xff; 6], vec![2, 0, 0, 0, 0, 9], vec![8, 0], vec![0x11; 50]].concat();
    let inbound = [vec![0; 12], frame.clone()].concat();
    let set = |contract: RegisterContract, register: u64, value: u32| {
        contract.write(register, &value.to_le_bytes())
    };
    let mut contract = RegisterContract::new(|| Box::new(E1000::new([2, 0, 0, 0, 0, 9])))
        .window(E1000::WINDOW)
        .bus_master()
        .memory(0x1_0000, &[transmit(0x2_0000, 64), transmit(0x2_0000, 60)].concat())
        .memory(0x2_0000, &frame)
        .memory(0x3_0000, &0x4_0000_u64.to_le_bytes())
        .memory(0x3_0010, &0x4_1000_u64.to_le_bytes())
        .read(STATUS, 4);
    let rings = [
        (EERD, 1),
        (IMS, 0x9f),
        (TDBAL, 0x1_0000),
        (TDLEN, 128),
        (TCTL, 0b1010),
        (RDBAL, 0x3_0000),
        (RDLEN, 128),
        (RCTL, 0x8002),
        (RDT, 2),
        (TDT, 1),
    ];
    for (register, value) in rings {
        contract = set(contract, register, value);
    }
    contract = contract.read(ICR, 4).input(PORT, &inbound).read(ICR, 4);
    set(contract, TDT, 2).input(PORT, &inbound).read(ICR, 4).read(EERD, 4)
}

#[test]
fn e1000_keeps_it() {
    e1000_card().check();
}

#[test]
fn e1000_bears_any_guest() {
    e1000_card().fuzz();
}
