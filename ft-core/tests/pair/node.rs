//! A process: one of the two machines, with the driver around it.

use ft_core::primary::Primary;
use ft_core::standby::Standby;
use ft_core::wire::EpochDigest;
use io_gate::host::{Ledger, Performable};

use crate::guest::Guest;

pub struct Active {
    pub core: Primary,
    pub ledger: Ledger,
    pub guest: Guest,
    pub digest: EpochDigest,
    /// The next page to be sent while the guest runs.
    pub precopy: Option<usize>,
    pub verify: bool,
    /// Performed, and the guest does not know yet.
    pub unsettled: Vec<Performable>,
}

pub struct Passive {
    pub core: Standby,
    pub guest: Guest,
    /// Of the last checkpoint applied.
    pub state: Option<crate::guest::State>,
    pub checks: Option<u64>,
}

pub enum Role {
    Active(Box<Active>),
    Passive(Box<Passive>),
    Gone,
}

pub struct Node {
    pub role: Role,
    pub asleep_until: u64,
    /// What was asked of the arbiter.
    pub asked: Option<u64>,
    pub started: u64,
}
