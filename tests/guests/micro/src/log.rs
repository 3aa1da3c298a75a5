//! The log on disk. Several operations are written at a time, in the order of their index. They are
//! applied in the same order, each when its own write (and flush) is complete.

use crate::faults;
use crate::virtio::blk::{Blk, Kind, MAX_SLOTS};
use kemari_workload::record::{SCRATCH_SECTORS, SCRATCH_START, SECTOR_LEN, SLOT_LEN};
use kemari_workload::{CHAIN_START, OpCode, Record, Request, log_capacity, log_sector};

/// Slots beyond those of the records: one for flushes, one for requests for which the guest waits.
const RESERVED: usize = 2;
/// Minimum number of records in the log. With fewer, outstanding writes could overlap.
const MIN_CAPACITY: u64 = MAX_SLOTS as u64;
/// Number of records that a verification reads.
const READ_BACK: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Writing,
    Written,
    Flushing,
    Durable,
    Failed,
}

/// An accepted operation that is not applied yet.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The client's index.
    pub client: usize,
    /// The client's ID.
    pub client_id: u32,
    /// The client's sequence number of the request.
    pub seq: u64,
    /// The kind of operation.
    pub op: OpCode,
    /// The key of a put.
    pub key: u32,
    /// The value of a put.
    pub value: u64,
    /// The number of applied operations, including this one.
    pub index: u64,
    /// The hash chain after this operation.
    pub chain: u64,
    flush: bool,
    phase: Phase,
}

/// The result of the oldest operation.
pub enum Outcome {
    /// The operation is on disk, and is to be applied next.
    Durable(Entry),
    /// The operation is not on disk, and never will be.
    Failed(Entry),
}

/// The log of operations on the disk, and its entries that are not on the disk yet.
pub struct Log {
    blk: Blk,
    boot_id: u64,
    capacity: u64,
    slots: usize,
    entries: [Option<Entry>; MAX_SLOTS],
    /// The index and chain of the last accepted operation; then of the last durable operation.
    accepted: (u64, u64),
    durable: (u64, u64),
    failing: bool,
    flushing: bool,
    /// Whether a verification has waited for the disk: the results of other requests may have
    /// arrived then.
    waited: bool,
}

impl Log {
    /// The log on `blk`; `None` if the disk is read-only, too small, or has too few slots.
    pub fn new(blk: Blk, boot_id: u64) -> Option<Self> {
        let capacity = log_capacity(blk.sectors);
        if blk.read_only() || capacity < MIN_CAPACITY || blk.slots() <= RESERVED {
            return None;
        }
        Some(Self {
            slots: blk.slots() - RESERVED,
            blk,
            boot_id,
            capacity,
            entries: [None; MAX_SLOTS],
            accepted: (0, CHAIN_START),
            durable: (0, CHAIN_START),
            failing: false,
            flushing: false,
            waited: false,
        })
    }

    fn slot_of(&self, index: u64) -> usize {
        (index % self.slots as u64) as usize
    }

    fn flush_slot(&self) -> usize {
        self.slots
    }

    fn wait_slot(&self) -> usize {
        self.slots + 1
    }

    /// Whether another operation can be accepted now.
    pub fn has_room(&self) -> bool {
        let next = self.slot_of(self.accepted.0 + 1);
        !self.failing && self.entries[next].is_none() && self.blk.is_free(next)
    }

    /// Number of accepted puts that are not applied yet.
    pub fn puts_under_way(&self) -> usize {
        let entries = self.entries.iter().flatten();
        entries.filter(|entry| entry.op == OpCode::Put).count()
    }

    /// Starts the write of a request that changes state. The caller must have checked
    /// [`has_room`](Self::has_room).
    pub fn accept(&mut self, client: usize, request: &Request<'_>) {
        let index = self.accepted.0 + 1;
        let chain = request.chain_after(self.accepted.1);
        self.accepted = (index, chain);
        let (key, value) = match request.op {
            kemari_workload::Op::Put { key, value, .. } => (key, value),
            _ => (0, 0),
        };
        let slot = self.slot_of(index);
        self.entries[slot] = Some(Entry {
            client,
            client_id: request.client,
            seq: request.seq,
            op: request.op.code(),
            key,
            value,
            index,
            chain,
            flush: request.op.wants_flush() && self.blk.has_flush(),
            phase: Phase::Writing,
        });
        let boot_id = self.boot_id;
        let data = self.blk.data(slot);
        let length = request.op.with_log_payload(|payload| {
            let record = Record {
                index,
                client: request.client,
                seq: request.seq,
                op: request.op.code(),
                chain,
                boot_id,
                payload,
            };
            record.encode(data).expect("a request that was decoded fits a record")
        });
        let sector = log_sector(index, self.capacity);
        self.blk.submit(slot, Kind::Write, sector, length);
    }

    /// Processes completions of the disk. Returns whether there were any.
    pub fn poll(&mut self) -> bool {
        let completed = self.blk.poll();
        if !completed && !core::mem::take(&mut self.waited) {
            return false;
        }
        self.take_flush();
        for slot in 0..self.slots {
            let Some(entry) = &mut self.entries[slot] else {
                continue;
            };
            match self.blk.take_result(slot) {
                None => continue,
                Some(false) => entry.phase = Phase::Failed,
                Some(true) if entry.flush => entry.phase = Phase::Written,
                Some(true) => entry.phase = Phase::Durable,
            }
        }
        self.start_flush();
        true
    }

    fn take_flush(&mut self) {
        let Some(ok) = self.blk.take_result(self.flush_slot()) else {
            return;
        };
        self.flushing = false;
        let phase = if ok { Phase::Durable } else { Phase::Failed };
        for entry in self.entries.iter_mut().flatten() {
            if entry.phase == Phase::Flushing {
                entry.phase = phase;
            }
        }
    }

    /// Starts one flush for all completed writes.
    fn start_flush(&mut self) {
        if self.flushing {
            return;
        }
        for entry in self.entries.iter_mut().flatten() {
            if entry.phase == Phase::Written {
                entry.phase = Phase::Flushing;
                self.flushing = true;
            }
        }
        if self.flushing {
            self.blk.submit_flush(self.slots);
        }
    }

    /// The oldest operation, once its result is known. After a failure, all operations accepted
    /// later fail too, because their chains depend on it. The log then continues after the last
    /// durable operation.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        let slot = self.slot_of(self.durable.0 + 1);
        if !self.failing {
            let entry = self.entries[slot]?;
            match entry.phase {
                Phase::Durable => {
                    self.entries[slot] = None;
                    self.durable = (entry.index, entry.chain);
                    return Some(Outcome::Durable(entry));
                }
                // Report the error to the client and count no fault: a disk may fail.
                Phase::Failed => self.failing = true,
                _ => return None,
            }
        }
        self.take_failed()
    }

    fn take_failed(&mut self) -> Option<Outcome> {
        for slot in 0..self.slots {
            let Some(entry) = self.entries[slot] else {
                continue;
            };
            if matches!(entry.phase, Phase::Writing | Phase::Flushing) {
                continue;
            }
            self.entries[slot] = None;
            return Some(Outcome::Failed(entry));
        }
        if self.entries.iter().all(Option::is_none) {
            self.failing = false;
            self.accepted = self.durable;
        }
        None
    }

    /// Notifies the disk of new requests.
    pub fn notify(&mut self) {
        self.blk.notify();
    }

    /// Enables or disables interrupts. Returns whether a completion is already available.
    pub fn want_interrupts(&mut self, wanted: bool) -> bool {
        self.blk.want_interrupts(wanted)
    }

    /// Acknowledges the disk's interrupt.
    pub fn acknowledge_interrupt(&self) {
        self.blk.acknowledge_interrupt();
    }

    /// Reads the last records, and tests the disk's other requests. Returns the number of faults.
    pub fn verify(&mut self) -> u64 {
        self.waited = true;
        let bad = self.verify_records();
        bad + self.verify_id() + self.verify_scratch()
    }

    fn read(&mut self, sector: u64) -> Option<[u8; SLOT_LEN]> {
        let slot = self.wait_slot();
        // Overwrite old data, so that it cannot pass for data from the disk.
        self.blk.data(slot).fill(0xa5);
        self.blk.submit(slot, Kind::Read, sector, SLOT_LEN);
        self.blk.wait(slot).then(|| *self.blk.data(slot))
    }

    /// Checks the last records, newest first: each must be as written, and they must form a chain.
    fn verify_records(&mut self) -> u64 {
        let (last, mut chain) = self.durable;
        let mut bad = 0;
        // Read only slots that hold records: in a short log, outstanding writes of new records may
        // use older slots.
        let room = self.capacity - MIN_CAPACITY.min(self.capacity - 1);
        let mut follower: Option<[u8; SLOT_LEN]> = None;
        for index in (1..=last).rev().take(READ_BACK.min(room) as usize) {
            let sector = log_sector(index, self.capacity);
            let Some(data) = self.read(sector) else {
                faults::bad_disk("read failed", sector);
                return bad + 1;
            };
            let record = match Record::decode(&data) {
                Ok(record) => record,
                Err(_) => {
                    faults::bad_disk("no record where one was written", sector);
                    return bad + 1;
                }
            };
            let chained = match &follower {
                None => record.chain == chain,
                Some(next) => Record::decode(next).is_ok_and(|next| next.follows(record.chain)),
            };
            if record.index != index || record.boot_id != self.boot_id || !chained {
                faults::bad_disk("another record than was written", sector);
                bad += 1;
            }
            chain = record.chain;
            follower = Some(data);
        }
        // The first record must follow the start of the chain.
        if let Some(data) = follower
            && let Ok(record) = Record::decode(&data)
            && record.index == 1
            && !record.follows(CHAIN_START)
        {
            faults::bad_disk("the first record does not start the chain", LOG_FIRST);
            bad += 1;
        }
        let _ = chain;
        bad
    }

    fn verify_id(&mut self) -> u64 {
        let slot = self.wait_slot();
        self.blk.submit_id(slot);
        if self.blk.wait(slot) {
            return 0;
        }
        faults::bad_disk("cannot tell its name", 0);
        1
    }

    /// Writes a pattern to the scratch sectors, zeroes and discards them if the disk supports this,
    /// and checks the results.
    fn verify_scratch(&mut self) -> u64 {
        let slot = self.wait_slot();
        let pattern = (self.boot_id as u8) | 1;
        let sectors = (SLOT_LEN / SECTOR_LEN) as u32;
        self.blk.data(slot).fill(pattern);
        self.blk.submit(slot, Kind::Write, SCRATCH_START, SLOT_LEN);
        if !self.blk.wait(slot) || self.read(SCRATCH_START) != Some([pattern; SLOT_LEN]) {
            faults::bad_disk("scratch is not what was written", SCRATCH_START);
            return 1;
        }
        if self.blk.has_write_zeroes() {
            self.blk.submit_range(slot, Kind::WriteZeroes, SCRATCH_START, sectors);
            if !self.blk.wait(slot) || self.read(SCRATCH_START) != Some([0; SLOT_LEN]) {
                faults::bad_disk("scratch was not zeroed", SCRATCH_START);
                return 1;
            }
        }
        if self.blk.has_discard() {
            // Check only the status: the contents of a discarded sector are unspecified (virtio
            // 1.2, section 5.2.6.2).
            let count = SCRATCH_SECTORS as u32;
            self.blk.submit_range(slot, Kind::Discard, SCRATCH_START, count);
            if !self.blk.wait(slot) {
                faults::bad_disk("scratch was not dropped", SCRATCH_START);
                return 1;
            }
        }
        0
    }
}

/// The sector in the report of a wrong start of the chain.
const LOG_FIRST: u64 = kemari_workload::record::LOG_START;
