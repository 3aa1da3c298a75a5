//! The clock that leases are counted by.

use ft_core::Time;

/// Now, by the clock that also tells how old a permission is: see [`io_gate_host::since_boot`] (P2).
pub(super) fn boottime() -> Time {
    Time(u64::try_from(io_gate_host::since_boot().as_nanos()).expect("584 years have not passed"))
}
