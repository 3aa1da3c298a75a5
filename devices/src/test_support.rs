//! Helpers for the devices' unit tests: guest memory, and a gate with one session for each call.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use io_gate::host::{
    ChainOutcome, GuestBytes, GuestRange, Ledger, MemoryFault, Origin, Performable, Request, Term,
    lend_chain, lend_merged, new_gate,
};
use io_gate::{Chain, Device, DeviceError, Port, RegisterDevice};

/// Guest memory: 1 MiB from address 0.
pub(crate) struct Memory(RefCell<Vec<u8>>);

impl Memory {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(vec![0; 1 << 20]))
    }

    pub(crate) fn put(&self, addr: usize, bytes: &[u8]) {
        self.0.borrow_mut()[addr..addr + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn get(&self, addr: usize, len: usize) -> Vec<u8> {
        self.0.borrow()[addr..addr + len].to_vec()
    }
}

impl GuestBytes for Memory {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let start = addr as usize;
        let memory = self.0.borrow();
        let bytes = memory.get(start..start + into.len()).ok_or(MemoryFault(addr))?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        let start = addr as usize;
        let mut memory = self.0.borrow_mut();
        let bytes = memory.get_mut(start..start + from.len()).ok_or(MemoryFault(addr))?;
        bytes.copy_from_slice(from);
        Ok(())
    }
}

pub(crate) type Pieces<'a> = &'a [(u64, u32)];

pub(crate) fn chain<'m>(
    memory: &'m Memory,
    readable: Pieces<'_>,
    writable: Pieces<'_>,
) -> Chain<'m> {
    let ranges = |pieces: Pieces<'_>| {
        pieces.iter().map(|(addr, len)| GuestRange { addr: *addr, len: *len }).collect()
    };
    lend_chain(memory, ranges(readable), ranges(writable))
}

/// A chain with the room of `merged` chains.
pub(crate) fn merged_chain<'m>(memory: &'m Memory, writable: Pieces<'_>, merged: u16) -> Chain<'m> {
    let ranges = writable.iter().map(|(addr, len)| GuestRange { addr: *addr, len: *len });
    lend_merged(memory, Vec::new(), ranges.collect(), merged)
}

/// A gate. Its ledger has the requests that devices have made.
pub(crate) struct TestGate {
    pub(crate) ledger: Ledger,
}

impl TestGate {
    /// An open gate: it releases each effect at once.
    pub(crate) fn open() -> Self {
        let (mut ledger, mut authority) = new_gate();
        let _ = ledger.run_alone(authority.alone(Term(0)));
        Self { ledger }
    }

    /// Lets a device process one chain.
    pub(crate) fn process(
        &mut self,
        device: &mut dyn Device,
        queue: u16,
        mut chain: Chain<'_>,
    ) -> Result<ChainOutcome, DeviceError> {
        let origin = Origin::Chain { slot: 0, queue, head: 0 };
        self.ledger.chain_session(origin, |gate| device.process(queue, &mut chain, gate))
    }

    pub(crate) fn write_register(
        &mut self,
        device: &mut dyn RegisterDevice,
        offset: u64,
        bytes: &[u8],
    ) {
        self.ledger.detached_session(0, |gate| device.write(offset, bytes, gate));
    }

    pub(crate) fn read_register<const N: usize>(
        &mut self,
        device: &mut dyn RegisterDevice,
        offset: u64,
    ) -> [u8; N] {
        let mut bytes = [0xaa; N];
        self.ledger.detached_session(0, |gate| device.read(offset, &mut bytes, gate));
        bytes
    }

    /// Gives the device data from a port. Returns the number of bytes that it consumed.
    pub(crate) fn give(
        &mut self,
        device: &mut dyn RegisterDevice,
        port: Port,
        data: &[u8],
    ) -> usize {
        self.ledger.detached_session(0, |gate| device.intake(port, data, gate))
    }

    /// The requests that the gate has released since the last call.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        let ready = self.ledger.take_ready();
        ready.iter().map(Performable::record).map(|record| record.request.clone()).collect()
    }
}
