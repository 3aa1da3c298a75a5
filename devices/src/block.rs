//! A virtio disk (virtio 1.2, 5.2): one request queue.

use alloc::format;
use alloc::vec::Vec;

use io_gate::{
    BlockDiscard, BlockFlush, BlockWrite, BlockWriteZeroes, Chain, Device, DeviceError, Gate,
    Identity, Intake, Outcome, Port, SavedState, StateError, Verdict,
};

use crate::read_bytes;

const IDENTITY: Identity = Identity { kind: "virtio-blk", virtio_id: 2, state_version: 1 };

const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 256;
/// The disk behind it.
const DISK: Port = Port(0);

// Feature bits (5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
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

/// Type, reserved word, sector.
const HEADER: usize = 16;
/// Sector, count, flags of a discard.
const SEGMENT: usize = 16;
const ID_LEN: usize = 20;
const FLAG_UNMAP: u32 = 1;

/// Segments of a request, and bytes in each: together they bound what one request can make the
/// machine buffer.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SIZE_MAX: u32 = 64 * 1024;
const MAX_DATA: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// The largest range of one discard or write of zeroes: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// What a disk is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Its serial number; the first 20 bytes count.
    pub serial: Vec<u8>,
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
    /// A disk of this kind behind port 0.
    #[must_use]
    pub fn new(config: BlockConfig) -> Self {
        Self { config, features: 0 }
    }

    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| {
            space[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.config.sectors.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
        put(40, &1_u32.to_le_bytes()); // max_discard_seg
        put(44, &1_u32.to_le_bytes()); // discard_sector_alignment
        put(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        space
    }

    /// Whether a range lies on the disk.
    fn contains(&self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.config.sectors)
    }

    fn may_write(&self) -> bool {
        !self.config.read_only
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

    /// Whether `len` bytes from `sector` can be one request.
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

    /// The one segment of a discard or a write of zeroes, if the disk can do it.
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
        common | if self.config.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_bytes(&self.config_space(), offset, into);
    }

    fn write_config(&mut self, _offset: u64, _from: &[u8], _gate: &mut Gate<'_>) {
        // Nothing in it can be written.
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        if chain.writable() == 0 {
            return Err(DeviceError::Malformed("expected room for a status, found none".into()));
        }
        let header = header(chain)?;
        match header.kind {
            T_IN => self.read(header.sector, chain, gate),
            T_OUT => self.write(header.sector, chain, gate),
            T_FLUSH => Ok(gate.token::<BlockFlush>().stage(DISK)),
            T_GET_ID => self.get_id(chain),
            T_DISCARD => self.discard(chain, gate),
            T_WRITE_ZEROES => self.write_zeroes(chain, gate),
            other => {
                log::debug!("virtio-blk: request type {other}");
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
        // A driver that has changed the chain in the meantime gets no status.
        if finish(chain, status).is_err() { 0 } else { filled.saturating_add(1) }
    }

    fn intake_queue(&self, _port: Port) -> Option<u16> {
        None
    }

    fn intake(
        &mut self,
        _port: Port,
        data: &[u8],
        _chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        Ok(Intake { used: 0, consumed: data.len() })
    }

    fn save(&self) -> SavedState {
        SavedState::new(&IDENTITY)
            .number("sectors", self.config.sectors)
            .number("read_only", self.config.read_only.into())
            .bytes("serial", &self.config.serial)
            .number("features", self.features)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let config = BlockConfig {
            sectors: fields.number("sectors")?,
            read_only: fields.number("read_only")? != 0,
            serial: fields.bytes("serial")?,
        };
        let features = fields.number("features")?;
        if config.sectors != self.config.sectors || config.read_only != self.config.read_only {
            return Err(fields.invalid(
                "sectors",
                &format!("{} (read-only: {})", self.config.sectors, self.config.read_only),
                &format!("{} (read-only: {})", config.sectors, config.read_only),
            ));
        }
        fields.close()?;
        // The serial number is the guest's to have seen: it comes with the state.
        *self = Self { config, features };
        Ok(())
    }
}

fn header(chain: &mut Chain<'_>) -> Result<Header, DeviceError> {
    let mut bytes = [0; HEADER];
    chain.read(&mut bytes)?;
    Ok(Header { kind: u32_at(&bytes, 0), sector: u64_at(&bytes, 8) })
}

/// The room for data: all but the status byte at the end.
fn data_len(writable: usize) -> Result<usize, DeviceError> {
    writable
        .checked_sub(1)
        .ok_or_else(|| DeviceError::Malformed("expected room for a status, found none".into()))
}

/// Ends a request at once with a status.
fn fail<'e>(chain: &mut Chain<'_>, status: u8) -> Result<Verdict<'e>, DeviceError> {
    finish(chain, status)?;
    Ok(Verdict::Done(1))
}

/// Writes the status into the last byte.
fn finish(chain: &mut Chain<'_>, status: u8) -> Result<(), DeviceError> {
    chain.skip_writable(data_len(chain.writable())?)?;
    Ok(chain.write(&[status])?)
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
