//! A guest's memory.

use std::cell::RefCell;
use std::fmt::Write;

use io_gate::Payload;
use io_gate::host::{GuestBytes, GuestRange, MemoryFault};

/// The bytes from address 0, and for each byte whether it has been written. Accesses beyond the end
/// fail.
#[derive(Clone)]
pub(crate) struct Memory(RefCell<Vec<u8>>, RefCell<Vec<bool>>);

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        Self(RefCell::new(vec![0; len]), RefCell::new(vec![false; len]))
    }

    /// Marks the bytes of these ranges as not written.
    pub(crate) fn forget_writes(&self, ranges: &[GuestRange]) {
        let mut written = self.1.borrow_mut();
        for range in ranges {
            let start = range.addr as usize;
            written[start..start + range.len as usize].fill(false);
        }
    }

    /// Number of written bytes at the beginning of these ranges, up to the first gap.
    pub(crate) fn written(&self, ranges: &[GuestRange]) -> usize {
        let written = self.1.borrow();
        let bytes = ranges.iter().flat_map(|range| {
            let start = range.addr as usize;
            &written[start..start + range.len as usize]
        });
        bytes.take_while(|written| **written).count()
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        let start = addr as usize;
        self.0.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// The bytes of all ranges. Ranges outside memory are left out.
    pub(crate) fn gather(&self, ranges: &[GuestRange]) -> Vec<u8> {
        let memory = self.0.borrow();
        let within = |range: &GuestRange| {
            let start = usize::try_from(range.addr).ok()?;
            memory.get(start..start.checked_add(range.len as usize)?)
        };
        ranges.iter().filter_map(within).flatten().copied().collect()
    }

    /// Fills ranges with bytes that depend only on `seed`. Ranges outside memory are left out.
    pub(crate) fn fill(&self, ranges: &[GuestRange], seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let end = self.0.borrow().len() as u64;
        for range in ranges.iter().filter(|range| range.addr + u64::from(range.len) <= end) {
            let bytes: Vec<u8> = (0..range.len).map(|_| random.u8(..)).collect();
            let _ = self.write_at(range.addr, &bytes);
        }
    }

    /// Describes the bytes of a payload for the log.
    pub(crate) fn describe(&self, payload: &Payload<'_>) -> String {
        match (payload.inline_bytes(), payload.guest_ranges()) {
            (Some(bytes), _) => brief(bytes),
            (None, Some(ranges)) => brief(&self.gather(ranges)),
            (None, None) => brief(&[]),
        }
    }
}

impl GuestBytes for Memory {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let start = usize::try_from(addr).map_err(|_| MemoryFault(addr))?;
        let end = start.checked_add(into.len()).ok_or(MemoryFault(addr))?;
        into.copy_from_slice(self.0.borrow().get(start..end).ok_or(MemoryFault(addr))?);
        Ok(())
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        let start = usize::try_from(addr).map_err(|_| MemoryFault(addr))?;
        let end = start.checked_add(from.len()).ok_or(MemoryFault(addr))?;
        let mut memory = self.0.borrow_mut();
        memory.get_mut(start..end).ok_or(MemoryFault(addr))?.copy_from_slice(from);
        self.1.borrow_mut()[start..end].fill(true);
        Ok(())
    }
}

/// Describes bytes for a line of a log. Different bytes give different texts, except when hashes
/// collide.
pub(crate) fn brief(bytes: &[u8]) -> String {
    let mut text = format!("{} bytes", bytes.len());
    for byte in bytes.iter().take(24) {
        let _ = write!(text, " {byte:02x}");
    }
    if bytes.len() > 24 {
        let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let _ = write!(text, " .. (sum {sum:016x})");
    }
    text
}
