//! A machine has one authority: two could disagree on whether an effect may leave.

use io_gate::host::{CommitAuthority, new_gate};

pub fn two() -> (CommitAuthority, CommitAuthority) {
    let (_ledger, authority) = new_gate();
    (authority.clone(), authority)
}

fn main() {}
