//! The ledger alone: it stages, seals, releases and settles effects. Nothing is performed.

use io_gate::host::{
    CommitAuthority, GuestBytes, GuestRange, Ledger, MemoryFault, Origin, Term, lend_chain,
    new_gate,
};
use io_gate::{NetTx, Port};

use crate::guest::BATCH;

/// Number of bytes of an effect. The ledger never reads them.
pub(crate) const SIZE: u32 = 1500;

/// Memory without content.
struct Nowhere;

impl GuestBytes for Nowhere {
    fn read_at(&self, _addr: u64, _into: &mut [u8]) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write_at(&self, _addr: u64, _from: &[u8]) -> Result<(), MemoryFault> {
        Ok(())
    }
}

/// A ledger without a machine; see the module.
pub(crate) struct Alone {
    ledger: Ledger,
    authority: CommitAuthority,
}

impl Alone {
    pub(crate) fn holding() -> Self {
        let (ledger, authority) = new_gate();
        Self { ledger, authority }
    }

    pub(crate) fn open() -> Self {
        let mut alone = Self::holding();
        let released = alone.ledger.run_alone(alone.authority.alone(Term(1)));
        assert!(released.is_empty());
        alone
    }

    pub(crate) fn batch(&mut self) {
        for head in 0..BATCH {
            let origin = Origin::Chain { slot: 1, queue: 1, head };
            let range = GuestRange { addr: 0x1000, len: SIZE };
            let mut chain = lend_chain(&Nowhere, vec![range], Vec::new());
            self.ledger
                .chain_session(origin, |gate| {
                    let frame = chain.take_payload(SIZE as usize)?;
                    Ok(gate.token::<NetTx>().stage(Port(0), frame))
                })
                .unwrap();
        }
        let released = if self.ledger.holds() {
            let epoch = self.ledger.seal();
            self.ledger.release(self.authority.acknowledged(epoch))
        } else {
            self.ledger.take_ready()
        };
        assert_eq!(released.len(), usize::from(BATCH));
        released.into_iter().for_each(|done| self.ledger.settle(done));
    }
}
