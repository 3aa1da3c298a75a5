//! A virtio network interface (virtio 1.2, 5.1): one queue in, one queue out.

use alloc::format;

use io_gate::{
    Chain, Device, DeviceError, Gate, Identity, Intake, NetTx, Outcome, Port, SavedState,
    StateError, Verdict,
};

use crate::read_bytes;

const IDENTITY: Identity = Identity { kind: "virtio-net", virtio_id: 1, state_version: 2 };

const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
/// The network behind it.
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
const OFFLOADS: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN;

/// The link is up (5.1.4).
const S_LINK_UP: u16 = 1;

/// The header in front of every frame, and where its count of buffers is (5.1.6).
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// The longest frame with its header: 64 KiB of segments and the headers in front of them.
const MAX_FRAME: usize = HEADER + 65550;

/// What a network interface is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Whether what is behind it does checksums and segmentation.
    pub offloads: bool,
}

/// A virtio network interface.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    features: u64,
}

impl Net {
    /// An interface of this kind to the network behind port 0.
    #[must_use]
    pub fn new(config: NetConfig) -> Self {
        Self { config, features: 0 }
    }
}

impl Device for Net {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn features(&self) -> u64 {
        F_MAC | F_MRG_RXBUF | F_STATUS | if self.config.offloads { OFFLOADS } else { 0 }
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let mut space = [0; 8];
        space[..6].copy_from_slice(&self.config.mac);
        space[6..].copy_from_slice(&S_LINK_UP.to_le_bytes());
        read_bytes(&space, offset, into);
    }

    fn write_config(&mut self, _offset: u64, _from: &[u8], _gate: &mut Gate<'_>) {
        // The address can be written by old drivers only, which are not supported.
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn process<'e>(
        &mut self,
        queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        if queue == RECEIVE {
            return Err(DeviceError::Malformed("expected no request on the receive queue".into()));
        }
        let len = chain.readable();
        if len <= HEADER || len > MAX_FRAME {
            return Err(DeviceError::Malformed(format!(
                "expected a frame of {} to {MAX_FRAME} bytes with its header, found {len}",
                HEADER + 1
            )));
        }
        let frame = chain.take_payload(len)?;
        Ok(gate.token::<NetTx>().stage(NETWORK, frame))
    }

    fn complete(&mut self, _queue: u16, _chain: &mut Chain<'_>, _outcome: Outcome) -> u32 {
        // Nobody is told whether a frame arrived.
        0
    }

    fn intake_queue(&self, port: Port) -> Option<u16> {
        (port == NETWORK).then_some(RECEIVE)
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
            return Err(DeviceError::Malformed(format!(
                "expected a frame with its header of {HEADER} bytes, found {}",
                data.len()
            )));
        };
        let mut header = *header;
        // One, where the driver has not agreed to more (5.1.6.4).
        header[NUM_BUFFERS..].copy_from_slice(&chain.merged().to_le_bytes());
        if chain.writable() < data.len() {
            return Err(DeviceError::Malformed(format!(
                "expected room for a frame of {} bytes, found {}",
                data.len(),
                chain.writable()
            )));
        }
        chain.write(&header)?;
        chain.write(frame)?;
        Ok(Intake { used: data.len() as u32, consumed: data.len() })
    }

    fn save(&self) -> SavedState {
        SavedState::new(&IDENTITY).bytes("mac", &self.config.mac).number("features", self.features)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let mac = fields.bytes("mac")?;
        let mac = <[u8; 6]>::try_from(mac.as_slice())
            .map_err(|_| fields.invalid("mac", "6 bytes", &format!("{} bytes", mac.len())))?;
        let features = fields.number("features")?;
        // A guest that relies on offloads cannot go on without them.
        if features & OFFLOADS != 0 && !self.config.offloads {
            return Err(fields.invalid(
                "features",
                "no offloads (this backend has none)",
                &format!("{features:#x}"),
            ));
        }
        fields.close()?;
        // What is offered is the backend's; the guest's is what it has accepted.
        *self = Self { config: NetConfig { mac, ..self.config }, features };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{ChainOutcome, EffectOp, Request};

    use super::*;
    use crate::test_support::{Memory, TestGate, chain, merged_chain};

    const PLAIN: NetConfig = NetConfig { mac: [2, 0, 0, 0, 0, 1], offloads: false };

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

    /// 5.1.6.4: the header counts the buffers, and the frame goes on from one to the next.
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
        let mut space = [0xaa; 10];
        Net::new(PLAIN).read_config(0, &mut space);
        assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn offloads_follow_the_backend() {
        let able = Net::new(NetConfig { offloads: true, ..PLAIN });
        assert_eq!(able.features(), F_MAC | F_MRG_RXBUF | F_STATUS | OFFLOADS);
        assert_eq!(Net::new(PLAIN).features(), F_MAC | F_MRG_RXBUF | F_STATUS);
    }

    #[test]
    fn its_state_comes_back() {
        let mut device = Net::new(NetConfig { offloads: true, ..PLAIN });
        device.activate(F_MAC | F_CSUM);
        let saved = device.save();
        let mut able = Net::new(NetConfig { mac: [4; 6], offloads: true });
        assert_eq!(able.restore(&saved), Ok(()));
        assert_eq!(able.save(), saved);
        // The driver counts on an offload that this backend does not have.
        assert!(Net::new(PLAIN).restore(&saved).is_err());
        assert!(able.restore(&SavedState::new(&IDENTITY)).is_err());
    }
}
