//! The clock that measures leases.

use ft_core::Time;

/// The current time of the clock that also measures the age of a permission: see
/// [`io_gate_host::since_boot`] (P2).
pub(super) fn boottime() -> Time {
    Time(u64::try_from(io_gate_host::since_boot().as_nanos()).expect("584 years have not passed"))
}
