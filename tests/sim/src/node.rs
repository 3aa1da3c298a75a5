//! A process: one of the two machines, with the driver around it.

use ft_core::Epoch;
use ft_core::primary::Primary;
use ft_core::standby::Standby;
use ft_core::wire::EpochDigest;
use io_gate::host::{Ledger, Performable};

use crate::guest::Guest;

pub(crate) struct Active {
    pub(crate) core: Primary,
    pub(crate) ledger: Ledger,
    pub(crate) guest: Guest,
    pub(crate) digest: EpochDigest,
    /// The next page to be sent while the guest runs.
    pub(crate) precopy: Option<usize>,
    pub(crate) verify: bool,
    /// Performed, and the guest does not know yet.
    pub(crate) unsettled: Vec<Performable>,
}

pub(crate) struct Passive {
    pub(crate) core: Standby,
    pub(crate) guest: Guest,
    /// Of the last checkpoint applied.
    pub(crate) state: Option<crate::guest::State>,
    /// A check that is under way: no more data is given until it is answered.
    pub(crate) check: Option<Epoch>,
}

pub(crate) enum Role {
    Active(Box<Active>),
    Passive(Box<Passive>),
    Gone,
}

pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) asleep_until: u64,
    /// What was asked of the arbiter.
    pub(crate) asked: Option<u64>,
    pub(crate) started: u64,
}
