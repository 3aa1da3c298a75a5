//! Virtio network interface (virtio 1.2, section 5.1) with 1 to 8 pairs of queues.
//!
//! A frame from the driver is an effect: the device stages it at the gate. A frame from the network
//! goes into the driver's buffers, on the receive queue that the hash of its flow selects.

use io_gate::{
    Chain, ConfigSpace, Device, DeviceError, Gate, Identity, Intake, NetTx, Outcome, Port,
    SavedState, StateError, Verdict, config_space, saved_state,
};

const IDENTITY: Identity = Identity { kind: "virtio-net", virtio_id: 1, state_version: 3 };

const QUEUE_SIZE: u16 = 256;
/// The port of the network.
const NETWORK: Port = Port(0);

// Feature bits (5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;
const OFFLOADS: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN;

/// Features that need others (5.1.3.1).
const NEEDS: &[(u64, u64)] = &[
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6),
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
    (F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6),
    (F_MQ, F_CTRL_VQ),
];

/// The link is up (5.1.4).
const S_LINK_UP: u16 = 1;

/// The header in front of each frame (5.1.6): its length in bytes, and the offsets and values of
/// its fields.
const HEADER: usize = 12;
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
const NUM_BUFFERS: usize = 10;
/// The longest frame with its header, in bytes: 64 KiB that the receiver segments, and an Ethernet
/// header.
const MAX_FRAME: usize = HEADER + 65550;

// The only offered command of the control queue, and its answers (5.1.6.5, 5.1.6.5.5).
const CTRL_MQ: [u8; 2] = [4, 0];
const CTRL_OK: u8 = 0;
const CTRL_ERR: u8 = 1;

/// The features that let a frame's sender leave work to its receiver.
struct Left {
    checksum: u64,
    tcp4: u64,
    tcp6: u64,
    ecn: u64,
}

const LEFT_BY_GUEST: Left =
    Left { checksum: F_CSUM, tcp4: F_HOST_TSO4, tcp6: F_HOST_TSO6, ecn: F_HOST_ECN };
const LEFT_BY_HOST: Left =
    Left { checksum: F_GUEST_CSUM, tcp4: F_GUEST_TSO4, tcp6: F_GUEST_TSO6, ecn: F_GUEST_ECN };

/// The properties of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Whether the backend does checksums and segmentation.
    pub offloads: bool,
    /// Number of queue pairs, 1 to [`Net::MAX_PAIRS`].
    pub pairs: u16,
}

config_space! {
    /// The configuration space (5.1.4).
    struct Space {
        mac: [u8; 6],
        status: u16,
        max_virtqueue_pairs: u16,
    }
}

saved_state! {
    /// The saved state of an interface. It contains the features that the driver has accepted,
    /// because a guest that relies on offloads cannot run without them.
    struct State {
        mac: [u8; 6],
        pairs: u16,
        pairs_in_use: u16,
        features: u64,
    }
}

/// A virtio network interface.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    features: u64,
    /// Number of queue pairs that the driver uses.
    pairs: u16,
}

impl Net {
    /// The maximum number of queue pairs.
    pub const MAX_PAIRS: u16 = 8;

    /// An interface with these properties on port 0. A number of pairs outside the range becomes
    /// the nearest valid one.
    #[must_use]
    pub fn new(mut config: NetConfig) -> Self {
        config.pairs = config.pairs.clamp(1, Self::MAX_PAIRS);
        Self { config, features: 0, pairs: 1 }
    }

    /// Index of the control queue (5.1.2): after all pairs, or after the first pair if the driver
    /// has not accepted `VIRTIO_NET_F_MQ`.
    fn control_queue(&self) -> Option<u16> {
        match (self.features & F_CTRL_VQ != 0, self.features & F_MQ != 0) {
            (false, _) => None,
            (true, true) => Some(2 * self.config.pairs),
            (true, false) => Some(2),
        }
    }

    /// Number of queue pairs that exist with the features that the driver has accepted.
    fn pairs_there(&self) -> u16 {
        if self.features & F_MQ != 0 { self.config.pairs } else { 1 }
    }

    /// Checks that the driver has accepted the features for the work that a frame's header leaves
    /// to the receiver: checksums and segmentation.
    fn check_work(&self, header: &[u8; HEADER], left: &Left) -> Result<(), DeviceError> {
        let checksum = if header[FLAGS] & NEEDS_CSUM != 0 { left.checksum } else { 0 };
        let segments = match header[GSO_TYPE] & !GSO_ECN {
            GSO_NONE => 0,
            GSO_TCPV4 => left.tcp4,
            GSO_TCPV6 => left.tcp6,
            other => {
                return Err(DeviceError::Value {
                    expected: "segments of TCP or none",
                    found: other.into(),
                });
            }
        };
        let ecn = if header[GSO_TYPE] & GSO_ECN != 0 { left.ecn } else { 0 };
        let missing = (checksum | segments | ecn) & !self.features;
        if missing != 0 {
            return Err(DeviceError::Value {
                expected: "a frame that needs no features but those that the driver has accepted",
                found: missing,
            });
        }
        Ok(())
    }

    /// Executes a command of the control queue (5.1.6.5). The chain has the class, the command and
    /// its data, and room for the answer.
    fn control<'e>(&mut self, chain: &mut Chain<'_>) -> Result<Verdict<'e>, DeviceError> {
        let mut command = [0; 2];
        chain.read(&mut command)?;
        let mut pairs = [0; 2];
        let known = command == CTRL_MQ
            && self.features & F_MQ != 0
            && chain.readable() == pairs.len()
            && chain.writable() > 0;
        if known {
            chain.read(&mut pairs)?;
        }
        let pairs = u16::from_le_bytes(pairs);
        let done = known && (1..=self.config.pairs).contains(&pairs);
        chain.write(&[if done { CTRL_OK } else { CTRL_ERR }])?;
        if done {
            self.pairs = pairs;
        }
        Ok(Verdict::Done(1))
    }
}

/// The maximum sizes of the queues: two for each pair, and one for the control queue.
const SIZES: &[u16] = &[QUEUE_SIZE; 2 * Net::MAX_PAIRS as usize + 1];

/// Hashes a frame's addresses and ports (IPv4 and IPv6), or else its Ethernet addresses. Frames of
/// one flow have the same hash, unless IP options or fragments move the ports.
fn flow(frame: &[u8]) -> u32 {
    let key = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26..38),
        Some([0x86, 0xdd]) => frame.get(22..58),
        _ => None,
    };
    let key = key.or(frame.get(..12)).unwrap_or_default();
    // FNV-1a. Any hash is suitable if both hosts of a pair use the same one.
    key.iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Device for Net {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn features(&self) -> u64 {
        let several = if self.config.pairs > 1 { F_CTRL_VQ | F_MQ } else { 0 };
        let offloads = if self.config.offloads { OFFLOADS } else { 0 };
        F_MAC | F_MRG_RXBUF | F_STATUS | several | offloads
    }

    fn feature_needs(&self) -> &[(u64, u64)] {
        NEEDS
    }

    fn queues(&self) -> &[u16] {
        let pairs = usize::from(self.config.pairs);
        &SIZES[..2 * pairs + usize::from(pairs > 1)]
    }

    fn config(&self) -> ConfigSpace {
        // Only legacy drivers may write the address, and this device does not support them.
        ConfigSpace::of(&Space {
            mac: self.config.mac,
            status: S_LINK_UP,
            max_virtqueue_pairs: self.config.pairs,
        })
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn reset(&mut self) {
        self.features = 0;
        self.pairs = 1;
    }

    fn process<'e>(
        &mut self,
        queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        if Some(queue) == self.control_queue() {
            return self.control(chain);
        }
        if queue.is_multiple_of(2) {
            return Err(DeviceError::Malformed("expected no request on the receive queue"));
        }
        let len = chain.readable();
        if len <= HEADER || len > MAX_FRAME {
            return Err(DeviceError::Amount {
                of: "bytes of a frame with its header",
                least: HEADER as u64 + 1,
                most: MAX_FRAME as u64,
                found: len as u64,
            });
        }
        if queue >= 2 * self.pairs_there() {
            return Err(DeviceError::Malformed(
                "expected frames on the first pair of queues only, without VIRTIO_NET_F_MQ",
            ));
        }
        let mut header = [0; HEADER];
        chain.peek(&mut header)?;
        self.check_work(&header, &LEFT_BY_GUEST)?;
        let frame = chain.take_payload(len)?;
        Ok(gate.token::<NetTx>().stage(NETWORK, frame))
    }

    fn complete(&mut self, _queue: u16, _chain: &mut Chain<'_>, _outcome: Outcome) -> u32 {
        // A driver does not learn whether its frame was sent.
        0
    }

    fn intake_queue(&self, port: Port) -> Option<u16> {
        (port == NETWORK).then_some(0)
    }

    fn takes_input(&self, port: Port, queue: u16) -> bool {
        port == NETWORK && queue < 2 * self.pairs_there() && queue.is_multiple_of(2)
    }

    fn steer(&self, _port: Port, data: &[u8]) -> Option<u16> {
        // Use only the first pair until the driver requests more (5.1.6.5.5.2).
        let frame = data.get(HEADER..).unwrap_or_default();
        Some(2 * if self.pairs > 1 { (flow(frame) % u32::from(self.pairs)) as u16 } else { 0 })
    }

    fn merges_input(&self, _port: Port) -> bool {
        self.features & F_MRG_RXBUF != 0
    }

    fn intake(
        &mut self,
        _port: Port,
        data: &[u8],
        chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        let Some((header, frame)) = data.split_first_chunk::<HEADER>() else {
            return Err(DeviceError::Malformed("expected a frame with its header"));
        };
        let mut header = *header;
        self.check_work(&header, &LEFT_BY_HOST)?;
        if self.features & F_GUEST_CSUM == 0 {
            header[FLAGS] &= !DATA_VALID;
        }
        // The number is 1 if the driver has not accepted merged buffers (5.1.6.4).
        header[NUM_BUFFERS..].copy_from_slice(&chain.merged().to_le_bytes());
        if chain.writable() < data.len() {
            return Err(DeviceError::Amount {
                of: "bytes of room for a frame",
                least: data.len() as u64,
                most: u64::MAX,
                found: chain.writable() as u64,
            });
        }
        chain.write(&header)?;
        chain.write(frame)?;
        Ok(Intake { used: data.len() as u32, consumed: data.len() })
    }

    fn save(&self) -> SavedState {
        let state = State {
            mac: self.config.mac,
            pairs: self.config.pairs,
            pairs_in_use: self.pairs,
            features: self.features,
        };
        SavedState::of(&IDENTITY, &state)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let State { mac, pairs, pairs_in_use, features } = state.open(&IDENTITY)?;
        let refuse =
            |field, expected, found| Err(StateError::number(&IDENTITY, field, expected, found));
        if pairs != self.config.pairs {
            return refuse("pairs", "as many as here", pairs.into());
        }
        if !(1..=pairs).contains(&pairs_in_use) {
            return refuse("pairs_in_use", "from one to all of them in use", pairs_in_use.into());
        }
        if pairs_in_use > 1 && features & F_MQ == 0 {
            return refuse("pairs_in_use", "1 without VIRTIO_NET_F_MQ", pairs_in_use.into());
        }
        if features & OFFLOADS != 0 && !self.config.offloads {
            return refuse("features", "no offloads (this backend has none)", features);
        }
        // The offered features depend on this host's backend. The accepted features belong to the
        // guest.
        let config = NetConfig { mac, ..self.config };
        *self = Self { config, features, pairs: pairs_in_use };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{ChainOutcome, EffectOp, Request};

    use super::*;
    use crate::test_support::{Memory, TestGate, chain, merged_chain};

    const PLAIN: NetConfig = NetConfig { mac: [2, 0, 0, 0, 0, 1], offloads: false, pairs: 1 };

    #[test]
    fn a_frame_is_staged_with_its_header() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Net::new(PLAIN));
        let outcome = gate.process(&mut device, 1, chain(&memory, &[(0, 12), (64, 60)], &[]));
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let requests = gate.requests();
        let [Request::Effect(EffectOp::NetTx { port: NETWORK, frame })] = requests.as_slice()
        else {
            panic!("{requests:?}")
        };
        assert_eq!(frame.len(), 72);
        let mut whole = chain(&memory, &[(0, 12), (64, 60)], &[]);
        assert_eq!(device.complete(1, &mut whole, Outcome::Failed), 0);
    }

    #[test]
    fn frames_of_no_shape_are_errors() {
        let (memory, mut gate, mut device) = (Memory::new(), TestGate::open(), Net::new(PLAIN));
        for (queue, len) in [(1, 0), (1, 12), (1, MAX_FRAME as u32 + 1), (0, 100)] {
            let outcome = gate.process(&mut device, queue, chain(&memory, &[(0, len)], &[]));
            assert!(outcome.is_err(), "queue {queue}, {len} bytes");
        }
        assert!(gate.requests().is_empty());
    }

    #[test]
    fn input_fills_one_chain() {
        let (memory, mut device) = (Memory::new(), Net::new(PLAIN));
        let mut data = [7; 112];
        data[..HEADER].fill(0);
        let mut room = chain(&memory, &[], &[(0x100, 12), (0x200, 1000)]);
        let intake = device.intake(NETWORK, &data, &mut room);
        assert_eq!(intake, Ok(Intake { used: 112, consumed: 112 }));
        assert_eq!(memory.get(0x100, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(memory.get(0x200, 101)[99..], [7, 0]);
        let mut small = chain(&memory, &[], &[(0x100, 111)]);
        assert!(device.intake(NETWORK, &data, &mut small).is_err());
        assert!(device.intake(NETWORK, &data[..11], &mut small).is_err());
        assert_eq!(device.intake_queue(NETWORK), Some(0));
        assert_eq!(device.intake_queue(Port(1)), None);
    }

    /// 5.1.6.4: the header counts the buffers, and the frame continues in the next buffer.
    #[test]
    fn input_fills_several_chains_once_the_driver_agrees() {
        let (memory, mut device) = (Memory::new(), Net::new(PLAIN));
        assert!(!device.merges_input(NETWORK));
        device.activate(F_MRG_RXBUF);
        assert!(device.merges_input(NETWORK));
        let mut data = [7; 112];
        data[..HEADER].fill(0);
        let mut room = merged_chain(&memory, &[(0x100, 50), (0x200, 50), (0x300, 50)], 3);
        assert_eq!(
            device.intake(NETWORK, &data, &mut room),
            Ok(Intake { used: 112, consumed: 112 })
        );
        assert_eq!(memory.get(0x100, 13), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 7]);
        assert_eq!(memory.get(0x200, 51)[49..], [7, 0]);
        assert_eq!(memory.get(0x300, 13)[11..], [7, 0]);
        device.reset();
        assert!(!device.merges_input(NETWORK));
    }

    #[test]
    fn the_address_and_the_link_can_be_read() {
        let mut space = [0xaa; 12];
        Net::new(PLAIN).config().read(0, &mut space);
        assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn offloads_follow_the_backend() {
        let able = Net::new(NetConfig { offloads: true, ..PLAIN });
        assert_eq!(able.features(), F_MAC | F_MRG_RXBUF | F_STATUS | OFFLOADS);
        assert_eq!(Net::new(PLAIN).features(), F_MAC | F_MRG_RXBUF | F_STATUS);
    }

    const ALL: u64 = F_CTRL_VQ | F_MQ;

    fn several() -> Net {
        Net::new(NetConfig { pairs: 4, ..PLAIN })
    }

    /// Requests a number of pairs on a queue. Returns the answer.
    fn ask(device: &mut Net, queue: u16, command: [u8; 2], pairs: u16) -> u8 {
        let (memory, mut gate) = (Memory::new(), TestGate::open());
        memory.put(0, &command);
        memory.put(2, &pairs.to_le_bytes());
        memory.put(8, &[0xaa]);
        let request = chain(&memory, &[(0, 2), (2, 2)], &[(8, 1)]);
        assert_eq!(gate.process(device, queue, request), Ok(ChainOutcome::Done(1)));
        memory.get(8, 1)[0]
    }

    /// A frame of UDP over IPv4 from a port.
    fn udp(port: u16) -> [u8; HEADER + 60] {
        let mut frame = [0; HEADER + 60];
        frame[HEADER + 12..HEADER + 14].copy_from_slice(&[0x08, 0x00]);
        frame[HEADER + 34..HEADER + 36].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn pairs_of_queues_are_offered_and_set() {
        let mut device = several();
        assert_eq!((device.queues().len(), device.features() & ALL), (9, ALL));
        assert_eq!((Net::new(PLAIN).queues().len(), Net::new(PLAIN).features() & ALL), (2, 0));
        device.activate(ALL);
        for (command, pairs, answer) in [
            (CTRL_MQ, 4, CTRL_OK),
            (CTRL_MQ, 5, CTRL_ERR),
            (CTRL_MQ, 0, CTRL_ERR),
            ([1, 0], 1, CTRL_ERR),
            ([4, 1], 1, CTRL_ERR),
        ] {
            assert_eq!(ask(&mut device, 8, command, pairs), answer, "{command:?} {pairs}");
            assert_eq!(device.pairs, 4);
        }
        device.reset();
        assert_eq!(device.pairs, 1);
    }

    /// 5.1.6.5.5.2: frames go to the first pair until the driver requests more pairs, and then to
    /// no pair beyond those.
    #[test]
    fn flows_are_spread_over_the_pairs_in_use() {
        let mut device = several();
        device.activate(ALL);
        let queues = |device: &Net| -> alloc::collections::BTreeSet<u16> {
            (0..100).filter_map(|port| device.steer(NETWORK, &udp(port))).collect()
        };
        assert_eq!(queues(&device), [0].into());
        assert_eq!(ask(&mut device, 8, CTRL_MQ, 4), CTRL_OK);
        assert_eq!(queues(&device), [0, 2, 4, 6].into());
        assert_eq!(ask(&mut device, 8, CTRL_MQ, 2), CTRL_OK);
        assert_eq!(queues(&device), [0, 2].into());
        let mut other = several();
        assert_eq!(other.restore(&device.save()), Ok(()));
        assert_eq!(other.steer(NETWORK, &udp(7)), device.steer(NETWORK, &udp(7)));
        assert!(Net::new(PLAIN).restore(&device.save()).is_err());
        assert_eq!(device.steer(NETWORK, &[]), device.steer(NETWORK, &[0; HEADER]));
    }

    /// 5.1.2: without `VIRTIO_NET_F_MQ` the driver finds the control queue after the first pair.
    #[test]
    fn the_control_queue_is_where_the_driver_looks() {
        let mut device = several();
        device.activate(F_CTRL_VQ);
        assert!(!device.takes_input(NETWORK, 2));
        assert_eq!(ask(&mut device, 2, CTRL_MQ, 2), CTRL_ERR, "it was not agreed on");
        device.activate(ALL);
        assert!([0, 2, 4, 6].iter().all(|queue| device.takes_input(NETWORK, *queue)));
        assert!([1, 3, 7, 8].iter().all(|queue| !device.takes_input(NETWORK, *queue)));
    }

    #[test]
    fn its_state_comes_back() {
        let mut device = Net::new(NetConfig { offloads: true, ..PLAIN });
        device.activate(F_MAC | F_CSUM);
        let saved = device.save();
        let mut able = Net::new(NetConfig { mac: [4; 6], offloads: true, pairs: 1 });
        assert_eq!(able.restore(&saved), Ok(()));
        assert_eq!(able.save(), saved);
        // The driver relies on an offload that this backend does not have.
        assert!(Net::new(PLAIN).restore(&saved).is_err());
        assert!(able.restore(&SavedState::of(&IDENTITY, &())).is_err());
    }
}
