//! Virtio block device (virtio 1.2, section 5.2) with 1 to 16 request queues.
//!
//! A write, flush, discard or write of zeroes is an effect: the device stages it at the gate. A
//! read is an input: the device requests it from the gate. The device itself answers a request for
//! its serial number, and each request that it refuses.

use alloc::vec::Vec;

use io_gate::{
    BlockDiscard, BlockFlush, BlockWrite, BlockWriteZeroes, Bytes, Chain, ConfigSpace, Device,
    DeviceError, Gate, Identity, Outcome, Port, SavedState, StateError, Verdict, config_space,
    note, saved_state,
};

const IDENTITY: Identity = Identity { kind: "virtio-blk", virtio_id: 2, state_version: 2 };

const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 256;
const SIZES: &[u16] = &[QUEUE_SIZE; Block::MAX_QUEUES as usize];
/// The port of the disk.
const DISK: Port = Port(0);

// Feature bits (5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

// Request types and status (5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Bytes of a request's header: type, reserved word, sector.
const HEADER: usize = 16;
/// Bytes of a segment of a discard or a write of zeroes: sector, number of sectors, flags.
const SEGMENT: usize = 16;
const ID_LEN: usize = 20;
const FLAG_UNMAP: u32 = 1;

/// The maximum number of segments in a request and of bytes in each. Together they bound what one
/// request can make the machine buffer.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SIZE_MAX: u32 = 64 * 1024;
const MAX_DATA: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// The maximum number of bytes that [`finish`] fills with zeroes.
const MAX_FILL: usize = 64 << 10;
/// The largest range of one discard or write of zeroes: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// The properties of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Its serial number. The device keeps the first 20 bytes.
    pub serial: Vec<u8>,
    /// Number of request queues, 1 to [`Block::MAX_QUEUES`].
    pub queues: u16,
}

config_space! {
    /// The configuration space (5.2.4). Fields of features that this device never offers read as
    /// zero.
    #[derive(Default)]
    struct Space {
        capacity: u64,
        size_max: u32,
        seg_max: u32,
        cylinders: u16,
        heads: u8,
        sectors: u8,
        blk_size: u32,
        physical_block_exp: u8,
        alignment_offset: u8,
        min_io_size: u16,
        opt_io_size: u32,
        writeback: u8,
        unused: u8,
        num_queues: u16,
        max_discard_sectors: u32,
        max_discard_seg: u32,
        discard_sector_alignment: u32,
        max_write_zeroes_sectors: u32,
        max_write_zeroes_seg: u32,
        write_zeroes_may_unmap: bool,
        unused_end: [u8; 3],
    }
}

saved_state! {
    /// The saved state of a disk. It contains the serial number, because the guest may have read
    /// it.
    struct State {
        sectors: u64,
        read_only: bool,
        serial: Bytes<ID_LEN>,
        queues: u16,
        features: u64,
    }
}

/// A virtio disk.
#[derive(Debug)]
pub struct Block {
    config: BlockConfig,
    features: u64,
}

struct Header {
    kind: u32,
    sector: u64,
}

impl Block {
    /// The maximum number of request queues.
    pub const MAX_QUEUES: u16 = 16;

    /// A disk with these properties on port 0. A number of queues outside the range becomes the
    /// nearest valid one.
    #[must_use]
    pub fn new(mut config: BlockConfig) -> Self {
        config.serial.truncate(ID_LEN);
        config.queues = config.queues.clamp(1, Self::MAX_QUEUES);
        Self { config, features: 0 }
    }

    /// Whether a range lies on the disk.
    fn contains(&self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.config.sectors)
    }

    fn may_write(&self) -> bool {
        !self.config.read_only
    }

    /// Whether the driver has accepted a feature. The device serves only accepted features.
    fn accepted(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn read<'e>(
        &self,
        sector: u64,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let len = data_len(chain.writable())?;
        if !self.data_fits(sector, len) {
            return fail(chain, S_IOERR);
        }
        let into = chain.take_space(len)?;
        Ok(gate.block_read(DISK, sector, into))
    }

    fn write<'e>(
        &self,
        sector: u64,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let len = chain.readable();
        if !self.may_write() || !self.data_fits(sector, len) {
            return fail(chain, S_IOERR);
        }
        let data = chain.take_payload(len)?;
        Ok(gate.token::<BlockWrite>().stage(DISK, sector, data))
    }

    /// Whether `len` bytes from `sector` are a valid request.
    fn data_fits(&self, sector: u64, len: usize) -> bool {
        len > 0
            && len <= MAX_DATA
            && len.is_multiple_of(SECTOR)
            && self.contains(sector, (len / SECTOR) as u64)
    }

    fn discard<'e>(
        &self,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let Some((sector, sectors, flags)) = self.segment(chain)? else {
            return fail(chain, S_IOERR);
        };
        // A discard has no flags (5.2.6.2).
        if flags != 0 {
            return fail(chain, S_UNSUPP);
        }
        Ok(gate.token::<BlockDiscard>().stage(DISK, sector, sectors))
    }

    fn write_zeroes<'e>(
        &self,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let Some((sector, sectors, flags)) = self.segment(chain)? else {
            return fail(chain, S_IOERR);
        };
        if flags & !FLAG_UNMAP != 0 {
            return fail(chain, S_UNSUPP);
        }
        let unmap = flags & FLAG_UNMAP != 0;
        Ok(gate.token::<BlockWriteZeroes>().stage(DISK, sector, sectors, unmap))
    }

    /// Reads the one segment of a discard or a write of zeroes: sector, number of sectors, flags.
    /// `None` if it is not valid for this disk.
    fn segment(&self, chain: &mut Chain<'_>) -> Result<Option<(u64, u64, u32)>, DeviceError> {
        if chain.readable() != SEGMENT {
            return Ok(None);
        }
        let mut bytes = [0; SEGMENT];
        chain.read(&mut bytes)?;
        let sector = u64_at(&bytes, 0);
        let sectors = u32_at(&bytes, 8);
        let fits =
            sectors > 0 && sectors <= MAX_RANGE_SECTORS && self.contains(sector, sectors.into());
        Ok((self.may_write() && fits).then(|| (sector, sectors.into(), u32_at(&bytes, 12))))
    }

    fn get_id<'e>(&self, chain: &mut Chain<'_>) -> Result<Verdict<'e>, DeviceError> {
        if data_len(chain.writable())? != ID_LEN {
            return fail(chain, S_IOERR);
        }
        let mut id = [0; ID_LEN];
        let len = self.config.serial.len().min(ID_LEN);
        id[..len].copy_from_slice(&self.config.serial[..len]);
        chain.write(&id)?;
        chain.write(&[S_OK])?;
        Ok(Verdict::Done(ID_LEN as u32 + 1))
    }
}

impl Device for Block {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn features(&self) -> u64 {
        let common = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        let several = if self.config.queues > 1 { F_MQ } else { 0 };
        common | several | if self.config.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queues(&self) -> &[u16] {
        // The device serves the requests of all queues alike: the driver is responsible for the
        // order of requests in flight.
        &SIZES[..usize::from(self.config.queues)]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&Space {
            capacity: self.config.sectors,
            size_max: SIZE_MAX,
            seg_max: SEG_MAX,
            blk_size: SECTOR as u32,
            num_queues: self.config.queues,
            max_discard_sectors: MAX_RANGE_SECTORS,
            max_discard_seg: 1,
            discard_sector_alignment: 1,
            max_write_zeroes_sectors: MAX_RANGE_SECTORS,
            max_write_zeroes_seg: 1,
            write_zeroes_may_unmap: true,
            ..Space::default()
        })
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
        if queue > 0 && !self.accepted(F_MQ) {
            return Err(DeviceError::Malformed(
                "expected requests on the first queue only, without VIRTIO_BLK_F_MQ",
            ));
        }
        if chain.writable() == 0 {
            return Err(DeviceError::Malformed("expected room for a status, found none"));
        }
        let header = header(chain)?;
        match header.kind {
            T_IN => self.read(header.sector, chain, gate),
            T_OUT => self.write(header.sector, chain, gate),
            T_FLUSH if self.accepted(F_FLUSH) => Ok(gate.token::<BlockFlush>().stage(DISK)),
            T_GET_ID => self.get_id(chain),
            T_DISCARD if self.accepted(F_DISCARD) => self.discard(chain, gate),
            T_WRITE_ZEROES if self.accepted(F_WRITE_ZEROES) => self.write_zeroes(chain, gate),
            // The device answers requests whose feature the driver has not accepted in the same way
            // (5.2.6.1).
            other => {
                note::debug("virtio-blk: an unknown request", &[("type", other.into())]);
                fail(chain, S_UNSUPP)
            }
        }
    }

    fn complete(&mut self, _queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let (status, filled) = match outcome {
            Outcome::Success(len) => (S_OK, len),
            Outcome::Failed => (S_IOERR, 0),
            Outcome::Unsupported => (S_UNSUPP, 0),
        };
        // The driver may have changed the chain since `process`. Without room for a status, it gets
        // none.
        finish(chain, filled as usize, status).unwrap_or(0)
    }

    fn save(&self) -> SavedState {
        let state = State {
            sectors: self.config.sectors,
            read_only: self.config.read_only,
            serial: Bytes(self.config.serial.clone()),
            queues: self.config.queues,
            features: self.features,
        };
        SavedState::of(&IDENTITY, &state)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let State { sectors, read_only, serial, queues, features } = state.open(&IDENTITY)?;
        let refuse =
            |field, expected, found| Err(StateError::number(&IDENTITY, field, expected, found));
        if sectors != self.config.sectors {
            return refuse("sectors", "as many as here", sectors);
        }
        if read_only != self.config.read_only {
            return refuse("read_only", "the same as here", read_only.into());
        }
        if queues != self.config.queues {
            return refuse("queues", "as many as here", queues.into());
        }
        *self =
            Self { config: BlockConfig { sectors, read_only, serial: serial.0, queues }, features };
        Ok(())
    }
}

fn header(chain: &mut Chain<'_>) -> Result<Header, DeviceError> {
    let mut bytes = [0; HEADER];
    chain.read(&mut bytes)?;
    Ok(Header { kind: u32_at(&bytes, 0), sector: u64_at(&bytes, 8) })
}

/// Bytes of room for data: all but the last byte, which is for the status.
fn data_len(writable: usize) -> Result<usize, DeviceError> {
    writable.checked_sub(1).ok_or(DeviceError::Malformed("expected room for a status, found none"))
}

/// Ends a request at once with a status.
fn fail<'e>(chain: &mut Chain<'_>, status: u8) -> Result<Verdict<'e>, DeviceError> {
    Ok(Verdict::Done(finish(chain, 0, status)?))
}

/// Writes the status into the last byte of the room, of which the first `filled` bytes are already
/// written. Returns the number of bytes for the used ring.
///
/// The number may count only bytes that are written, from the beginning of the room (2.7.8.2). The
/// status is the last byte, so zeroes replace the missing data before it. If more than [`MAX_FILL`]
/// bytes are missing, the status is written but not counted: otherwise a guest with thousands of
/// refused requests could make the machine write zeroes without limit.
fn finish(chain: &mut Chain<'_>, filled: usize, status: u8) -> Result<u32, DeviceError> {
    let room = data_len(chain.writable())?;
    let filled = filled.min(room);
    chain.skip_writable(filled)?;
    let mut rest = room - filled;
    if rest > MAX_FILL {
        chain.skip_writable(rest)?;
        chain.write(&[status])?;
        return Ok(filled as u32);
    }
    let zeroes = [0; SECTOR];
    while rest > 0 {
        let now = rest.min(SECTOR);
        chain.write(&zeroes[..now])?;
        rest -= now;
    }
    chain.write(&[status])?;
    Ok(room as u32 + 1)
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use io_gate::host::{ChainOutcome, EffectOp, InputOp, Request};

    use super::*;
    use crate::test_support::{Memory, Pieces, TestGate, chain};

    const HEADER_AT: u64 = 0x100;
    const STATUS_AT: u64 = 0x200;
    const DATA_AT: u64 = 0x1000;

    fn disk() -> Block {
        let serial = b"disk".to_vec();
        Block::new(BlockConfig { sectors: 1000, read_only: false, serial, queues: 1 })
    }

    struct Bench {
        memory: Memory,
        gate: TestGate,
        device: Block,
    }

    impl Bench {
        fn new(mut device: Block) -> Self {
            device.activate(device.features());
            Self { memory: Memory::new(), gate: TestGate::open(), device }
        }

        /// Lets the device process a request whose chain has `readable` and `writable` between the
        /// header and the status.
        fn request(
            &mut self,
            kind: u32,
            sector: u64,
            readable: Pieces<'_>,
            writable: Pieces<'_>,
        ) -> Result<ChainOutcome, DeviceError> {
            let mut header = kind.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(sector.to_le_bytes());
            self.memory.put(HEADER_AT as usize, &header);
            self.memory.put(STATUS_AT as usize, &[0xaa]);
            let readable = [&[(HEADER_AT, 16)], readable].concat();
            let writable = [writable, &[(STATUS_AT, 1)]].concat();
            let chain = chain(&self.memory, &readable, &writable);
            self.gate.process(&mut self.device, 0, chain)
        }

        fn status(&self) -> u8 {
            self.memory.get(STATUS_AT as usize, 1)[0]
        }

        fn refuses(&mut self, status: u8, kind: u32, sector: u64, readable: Pieces<'_>) {
            let outcome = self.request(kind, sector, readable, &[]);
            assert_eq!(outcome, Ok(ChainOutcome::Done(1)));
            assert_eq!(self.status(), status);
            assert!(self.gate.requests().is_empty());
        }

        fn segment(&self, sector: u64, sectors: u32, flags: u32) {
            let at = DATA_AT as usize;
            self.memory.put(at, &sector.to_le_bytes());
            self.memory.put(at + 8, &sectors.to_le_bytes());
            self.memory.put(at + 12, &flags.to_le_bytes());
        }
    }

    #[test]
    fn a_write_is_staged_with_its_data_in_place() {
        let mut bench = Bench::new(disk());
        let outcome = bench.request(T_OUT, 9, &[(DATA_AT, 512), (DATA_AT + 4096, 512)], &[]);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let requests = bench.gate.requests();
        let [Request::Effect(EffectOp::BlockWrite { sector: 9, data, .. })] = requests.as_slice()
        else {
            panic!("{requests:?}")
        };
        assert_eq!((data.len(), data.guest_ranges().map(<[_]>::len)), (1024, Some(2)));
    }

    #[test]
    fn a_read_asks_for_all_but_the_status() {
        let mut bench = Bench::new(disk());
        let outcome = bench.request(T_IN, 3, &[], &[(DATA_AT, 1024)]);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let requests = bench.gate.requests();
        let [Request::Input(InputOp::BlockRead { sector: 3, into, .. })] = requests.as_slice()
        else {
            panic!("{requests:?}")
        };
        assert_eq!(into.len(), 1024);
    }

    /// The status may share a descriptor with the data.
    #[test]
    fn a_status_in_the_datas_descriptor_is_found() {
        let mut bench = Bench::new(disk());
        bench.memory.put(HEADER_AT as usize, &[0; 16]);
        let whole = chain(&bench.memory, &[(HEADER_AT, 16)], &[(DATA_AT, 513)]);
        let outcome = bench.gate.process(&mut bench.device, 0, whole);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let mut whole = chain(&bench.memory, &[(HEADER_AT, 16)], &[(DATA_AT, 513)]);
        bench.memory.put(DATA_AT as usize + 512, &[0xaa]);
        assert_eq!(bench.device.complete(0, &mut whole, Outcome::Success(512)), 513);
        assert_eq!(bench.memory.get(DATA_AT as usize + 512, 1), [S_OK]);
    }

    #[test]
    fn a_flush_is_staged() {
        let mut bench = Bench::new(disk());
        assert!(matches!(bench.request(T_FLUSH, 0, &[], &[]), Ok(ChainOutcome::Waiting(_))));
        let requests = bench.gate.requests();
        assert!(matches!(requests.as_slice(), [Request::Effect(EffectOp::BlockFlush { .. })]));
    }

    #[test]
    fn discards_and_zeroes_carry_their_range() {
        let mut bench = Bench::new(disk());
        bench.segment(10, 20, 0);
        let outcome = bench.request(T_DISCARD, 0, &[(DATA_AT, 16)], &[]);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        bench.segment(30, 40, FLAG_UNMAP);
        let outcome = bench.request(T_WRITE_ZEROES, 0, &[(DATA_AT, 16)], &[]);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        let requests = bench.gate.requests();
        let expected = [
            Request::Effect(EffectOp::BlockDiscard { port: DISK, sector: 10, sectors: 20 }),
            Request::Effect(EffectOp::BlockWriteZeroes {
                port: DISK,
                sector: 30,
                sectors: 40,
                unmap: true,
            }),
        ];
        assert_eq!(requests, expected);
    }

    #[test]
    fn impossible_requests_fail_with_a_status() {
        let mut bench = Bench::new(disk());
        bench.refuses(S_IOERR, T_OUT, 1000, &[(DATA_AT, 512)]);
        bench.refuses(S_IOERR, T_OUT, u64::MAX, &[(DATA_AT, 512)]);
        bench.refuses(S_IOERR, T_OUT, 0, &[(DATA_AT, 511)]);
        bench.refuses(S_IOERR, T_OUT, 0, &[]);
        bench.refuses(S_IOERR, T_IN, 0, &[]);
        bench.refuses(S_UNSUPP, 99, 0, &[]);
        bench.segment(0, 8, 0);
        bench.refuses(S_IOERR, T_DISCARD, 0, &[(DATA_AT, 15)]);
        bench.refuses(S_IOERR, T_DISCARD, 0, &[(DATA_AT, 32)]);
        bench.segment(0, 8, 1);
        bench.refuses(S_UNSUPP, T_DISCARD, 0, &[(DATA_AT, 16)]);
        bench.segment(0, 8, 2);
        bench.refuses(S_UNSUPP, T_WRITE_ZEROES, 0, &[(DATA_AT, 16)]);
        for (sector, sectors) in [(0, 0), (999, 2), (u64::MAX, 8), (0, u32::MAX)] {
            bench.segment(sector, sectors, 0);
            bench.refuses(S_IOERR, T_DISCARD, 0, &[(DATA_AT, 16)]);
        }
    }

    #[test]
    fn chains_of_no_shape_are_errors() {
        let mut bench = Bench::new(disk());
        for (readable, writable) in [
            (vec![], vec![]),
            (vec![(HEADER_AT, 16)], vec![]),
            (vec![(HEADER_AT, 15)], vec![(STATUS_AT, 1)]),
            (vec![], vec![(STATUS_AT, 1)]),
        ] {
            let chain = chain(&bench.memory, &readable, &writable);
            assert!(bench.gate.process(&mut bench.device, 0, chain).is_err());
        }
        assert!(bench.gate.requests().is_empty());
    }

    #[test]
    fn a_read_only_disk_refuses_to_change() {
        let config = BlockConfig { read_only: true, ..disk().config };
        let mut bench = Bench::new(Block::new(config));
        assert_eq!(bench.device.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
        bench.refuses(S_IOERR, T_OUT, 0, &[(DATA_AT, 512)]);
        bench.segment(0, 8, 0);
        // A read-only disk offers neither feature.
        bench.refuses(S_UNSUPP, T_DISCARD, 0, &[(DATA_AT, 16)]);
        bench.refuses(S_UNSUPP, T_WRITE_ZEROES, 0, &[(DATA_AT, 16)]);
    }

    #[test]
    fn what_the_driver_has_not_accepted_is_not_served() {
        for (kind, feature, data) in [
            (T_FLUSH, F_FLUSH, &[][..]),
            (T_DISCARD, F_DISCARD, &[(DATA_AT, 16)]),
            (T_WRITE_ZEROES, F_WRITE_ZEROES, &[(DATA_AT, 16)]),
        ] {
            let mut bench = Bench::new(disk());
            bench.segment(0, 8, 0);
            let all = bench.device.features();
            bench.device.activate(all & !feature);
            bench.refuses(S_UNSUPP, kind, 0, data);
            bench.device.activate(feature);
            let outcome = bench.request(kind, 0, data, &[]);
            assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))), "{kind}: {outcome:?}");
        }
    }

    /// The guest gives more room than a real request has. It cannot make the machine fill the room
    /// with zeroes.
    #[test]
    fn room_without_end_is_not_filled() {
        let mut bench = Bench::new(disk());
        let room = MAX_FILL as u32 + 2;
        let outcome = bench.request(T_IN, 0, &[], &[(1 << 40, room)]);
        assert_eq!(outcome, Ok(ChainOutcome::Done(0)));
        assert_eq!(bench.status(), S_IOERR);
    }

    #[test]
    fn the_serial_number_is_told() {
        let mut bench = Bench::new(disk());
        let outcome = bench.request(T_GET_ID, 0, &[], &[(DATA_AT, 20)]);
        assert_eq!(outcome, Ok(ChainOutcome::Done(21)));
        assert_eq!(&bench.memory.get(DATA_AT as usize, 5), b"disk\0");
        assert_eq!(bench.status(), S_OK);
    }

    #[test]
    fn outcomes_become_statuses() {
        let mut bench = Bench::new(disk());
        // Missing data becomes zeroes, so that all counted bytes are written.
        for (outcome, status, data) in [
            (Outcome::Success(512), S_OK, 0xaa),
            (Outcome::Success(0), S_OK, 0),
            (Outcome::Failed, S_IOERR, 0),
            (Outcome::Unsupported, S_UNSUPP, 0),
        ] {
            bench.memory.put(DATA_AT as usize, &[0xaa; 512]);
            let mut whole =
                chain(&bench.memory, &[(HEADER_AT, 16)], &[(DATA_AT, 512), (STATUS_AT, 1)]);
            assert_eq!(bench.device.complete(0, &mut whole, outcome), 513);
            assert_eq!(bench.status(), status);
            assert_eq!(bench.memory.get(DATA_AT as usize, 512), [data; 512]);
        }
        let mut write = chain(&bench.memory, &[(HEADER_AT, 16)], &[(STATUS_AT, 1)]);
        assert_eq!(bench.device.complete(0, &mut write, Outcome::Failed), 1);
        // The driver has removed the room for the status.
        let mut none = chain(&bench.memory, &[(HEADER_AT, 16)], &[]);
        assert_eq!(bench.device.complete(0, &mut none, Outcome::Success(0)), 0);
    }

    #[test]
    fn the_configuration_space_is_as_specified() {
        let device = disk();
        let mut capacity = [0; 8];
        device.config().read(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 1000);
        let mut segments = [0; 4];
        device.config().read(40, &mut segments);
        assert_eq!(u32::from_le_bytes(segments), 1);
        let mut beyond = [0xaa; 8];
        device.config().read(58, &mut beyond);
        assert_eq!(beyond, [0; 8]);
        device.config().read(u64::MAX, &mut beyond);
        assert_eq!(beyond, [0; 8]);
    }

    #[test]
    fn it_has_as_many_queues_as_it_is_told() {
        let with = |queues| Block::new(BlockConfig { queues, ..disk().config });
        assert_eq!((disk().queues().len(), disk().features() & F_MQ), (1, 0));
        let device = with(4);
        assert_eq!((device.queues(), device.features() & F_MQ), (&[QUEUE_SIZE; 4][..], F_MQ));
        let mut num_queues = [0; 2];
        device.config().read(34, &mut num_queues);
        assert_eq!(num_queues, [4, 0]);
        assert_eq!((with(0).queues().len(), with(99).queues().len()), (1, 16));
        // Every queue takes the same requests.
        let mut bench = Bench::new(with(4));
        let _ = bench.request(T_FLUSH, 0, &[], &[]);
        let whole = chain(&bench.memory, &[(HEADER_AT, 16)], &[(STATUS_AT, 1)]);
        let outcome = bench.gate.process(&mut bench.device, 3, whole);
        assert!(matches!(outcome, Ok(ChainOutcome::Waiting(_))));
        assert!(with(2).restore(&device.save()).is_err());
    }

    #[test]
    fn its_state_comes_back() {
        let mut device = disk();
        device.activate(0x201);
        let saved = device.save();
        let mut other = Block::new(BlockConfig { serial: b"other".to_vec(), ..disk().config });
        assert_eq!(other.restore(&saved), Ok(()));
        assert_eq!(other.save(), saved);
        let mut smaller = Block::new(BlockConfig { sectors: 999, ..disk().config });
        assert!(smaller.restore(&saved).is_err());
        assert!(disk().restore(&saved).is_ok());
        // The guest sees the first 20 bytes of a serial number, and these are saved.
        let long = BlockConfig { serial: vec![b'x'; 21], ..disk().config };
        assert_eq!(Block::new(long.clone()).config.serial.len(), ID_LEN);
        assert_eq!(disk().restore(&Block::new(long).save()), Ok(()));
    }

    /// A device restored from the saved state completes a request in flight.
    #[test]
    fn a_restored_device_completes_what_was_in_flight() {
        let mut bench = Bench::new(disk());
        let _ = bench.request(T_OUT, 0, &[(DATA_AT, 512)], &[]);
        let saved = bench.device.save();
        bench.device = disk();
        assert_eq!(bench.device.restore(&saved), Ok(()));
        let mut whole = chain(&bench.memory, &[(HEADER_AT, 16), (DATA_AT, 512)], &[(STATUS_AT, 1)]);
        assert_eq!(bench.device.complete(0, &mut whole, Outcome::Success(0)), 1);
        assert_eq!(bench.status(), S_OK);
    }
}
