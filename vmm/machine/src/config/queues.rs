//! `queues=` of disks and networks.

use kemari_support::values::{Part, Unit};

/// Parses a device's number of queues. Both sides of a pair must have the same.
pub(super) fn parse_queues(part: &Part, most: u16) -> Result<u16, String> {
    let count = part.number(1..=most.into(), Unit::Count("a number of queues"))?;
    u16::try_from(count).map_err(|_| part.wrong(&format!("at most {most} queues")))
}
