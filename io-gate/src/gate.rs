//! The gate as a device sees it: it issues tokens and takes requests for input.

use core::marker::PhantomData;

use crate::chain::{GuestBytes, MemoryFault, Payload, Space};
use crate::effect::{
    BlockDiscard, BlockFlush, BlockWrite, BlockWriteZeroes, ConsoleTx, EffectKind, EffectOp,
    InputOp, NetTx, Origin, Port, Power, PowerEvent,
};
use crate::ledger::Ledger;
use crate::verdict::{Brand, Held, Pending, Verdict};

/// The only way out of a device. It is lent for one call.
pub struct Gate<'e> {
    ledger: &'e mut Ledger,
    origin: Origin,
    /// Guest memory, for a bus master only: every write through it is marked dirty (P8).
    memory: Option<&'e dyn GuestBytes>,
    brand: Brand<'e>,
}

impl<'e> Gate<'e> {
    pub(crate) fn new(
        ledger: &'e mut Ledger,
        origin: Origin,
        memory: Option<&'e dyn GuestBytes>,
    ) -> Self {
        Self { ledger, origin, memory, brand: PhantomData }
    }

    /// Whether the device has so many unsettled requests that it must wait, if it can. It continues
    /// in [`RegisterDevice::proceed`](crate::RegisterDevice::proceed) when some of them are
    /// settled. Staging still works while the gate is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ledger.is_full(self.origin.slot())
    }

    /// Reads guest memory, as a bus master does. A device that serves descriptor chains may not do
    /// this: it sees only the memory that a chain lends.
    ///
    /// # Errors
    /// [`MemoryFault`] when any byte lies outside guest memory, and always while the device may not
    /// master the bus.
    pub fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.memory.ok_or(MemoryFault(addr))?.read_at(addr, into)
    }

    /// Writes guest memory, as a bus master does. The written pages are marked dirty (P8).
    ///
    /// # Errors
    /// As [`dma_read`](Self::dma_read).
    pub fn dma_write(&mut self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        self.memory.ok_or(MemoryFault(addr))?.write_at(addr, from)
    }

    /// The right to one effect in this call. A token that is dropped unspent counts as returned.
    #[must_use = "a token does nothing until it is staged"]
    pub fn token<K: EffectKind>(&mut self) -> EffectToken<'_, 'e, K> {
        self.ledger.count_issued();
        EffectToken {
            ledger: self.ledger,
            origin: self.origin,
            spent: false,
            brand: PhantomData,
            kind: PhantomData,
        }
    }

    /// Reads from a disk into the chain. The chain is completed when the data has arrived.
    pub fn block_read(&mut self, port: Port, sector: u64, into: Space<'_>) -> Verdict<'e> {
        self.input(InputOp::BlockRead { port, sector, into: into.for_record() })
    }

    /// Fills the chain with random bytes.
    pub fn entropy(&mut self, into: Space<'_>) -> Verdict<'e> {
        self.input(InputOp::Entropy { into: into.for_record() })
    }

    fn input(&mut self, op: InputOp) -> Verdict<'e> {
        self.ledger.request_input(self.origin, op);
        Verdict::Pending(Pending(PhantomData))
    }
}

/// The right to cause one effect of kind `K`: issued by [`Gate::token`], spent by value.
#[must_use = "a token does nothing until it is staged"]
pub struct EffectToken<'g, 'e, K: EffectKind> {
    ledger: &'g mut Ledger,
    origin: Origin,
    spent: bool,
    brand: Brand<'e>,
    kind: PhantomData<K>,
}

impl<K: EffectKind> Drop for EffectToken<'_, '_, K> {
    fn drop(&mut self) {
        if !self.spent {
            self.ledger.count_returned();
        }
    }
}

impl<'e, K: EffectKind> EffectToken<'_, 'e, K> {
    fn hold(mut self, op: EffectOp) -> Verdict<'e> {
        self.spent = true;
        let origin = self.origin;
        self.ledger.stage(origin, op);
        Verdict::Held(Held(self.brand))
    }

    /// Stages an effect for which no chain waits. Its bytes must be the device's own: a chain that
    /// is completed at once gives its memory back to the guest.
    fn detach(mut self, op: EffectOp) {
        self.spent = true;
        let slot = self.origin.slot();
        self.ledger.stage(Origin::Detached { slot }, op);
    }
}

impl<'e> EffectToken<'_, 'e, NetTx> {
    /// Stages a frame (virtio-net header first). The chain is completed when the frame has left.
    pub fn stage(self, port: Port, frame: Payload<'_>) -> Verdict<'e> {
        self.hold(EffectOp::NetTx { port, frame: frame.for_record() })
    }

    /// Stages a frame (virtio-net header first) for which no chain waits, for instance one that a
    /// bus master has read from its ring.
    pub fn emit(self, port: Port, frame: alloc::vec::Vec<u8>) {
        self.detach(EffectOp::NetTx { port, frame: Payload::inline(frame) });
    }
}

impl<'e> EffectToken<'_, 'e, BlockWrite> {
    /// Stages a write. The chain is completed when the write has been performed.
    pub fn stage(self, port: Port, sector: u64, data: Payload<'_>) -> Verdict<'e> {
        self.hold(EffectOp::BlockWrite { port, sector, data: data.for_record() })
    }
}

impl<'e> EffectToken<'_, 'e, BlockFlush> {
    /// Stages a flush. The chain is completed when all earlier writes are durable (P3).
    pub fn stage(self, port: Port) -> Verdict<'e> {
        self.hold(EffectOp::BlockFlush { port })
    }
}

impl<'e> EffectToken<'_, 'e, BlockDiscard> {
    /// Stages a discard of `sectors` sectors.
    pub fn stage(self, port: Port, sector: u64, sectors: u64) -> Verdict<'e> {
        self.hold(EffectOp::BlockDiscard { port, sector, sectors })
    }
}

impl<'e> EffectToken<'_, 'e, BlockWriteZeroes> {
    /// Stages the zeroing of `sectors` sectors. `unmap` allows the backend to deallocate the space.
    pub fn stage(self, port: Port, sector: u64, sectors: u64, unmap: bool) -> Verdict<'e> {
        self.hold(EffectOp::BlockWriteZeroes { port, sector, sectors, unmap })
    }
}

impl<'e> EffectToken<'_, 'e, ConsoleTx> {
    /// Stages console output from a chain.
    pub fn stage(self, port: Port, bytes: Payload<'_>) -> Verdict<'e> {
        self.hold(EffectOp::ConsoleTx { port, bytes: bytes.for_record() })
    }

    /// Stages console output for which no chain waits, for instance a byte written to a register.
    pub fn emit(self, port: Port, bytes: alloc::vec::Vec<u8>) {
        self.detach(EffectOp::ConsoleTx { port, bytes: Payload::inline(bytes) });
    }
}

impl EffectToken<'_, '_, Power> {
    /// Stages a power event.
    pub fn emit(self, event: PowerEvent) {
        self.detach(EffectOp::Power(event));
    }
}
